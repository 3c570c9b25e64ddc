"""Clean a predicted label map: drop tumour components too small to be believed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), np.bool_)
"""Voxels that share a face, an edge or a corner belong to one component (26-connected)."""


def drop_small_components(
    label_XYZ: npt.NDArray[np.uint8], smallest_mm3: float, voxel_mm3: float
) -> npt.NDArray[np.uint8]:
    """Set to background every connected component of the whole tumour that is smaller than a given volume.

    `label_XYZ`: labels, 0 is background; all other labels together form the components, so that a tumour is kept or
    dropped as a whole. `smallest_mm3`: smallest volume to keep, 0 keeps everything; `voxel_mm3`: volume of one voxel.
    Returns a new array of the same shape and dtype.
    """
    tumour_XYZ = label_XYZ > 0
    component_XYZ, _ = ndimage.label(tumour_XYZ, TOUCHING)
    # Counting over the tumour's voxels only: a copy of the whole volume in 64-bit integers would be 70 MB.
    component = component_XYZ[tumour_XYZ]
    is_small = np.bincount(component) * voxel_mm3 < smallest_mm3
    kept_XYZ = label_XYZ.copy()
    kept_XYZ[tumour_XYZ] = np.where(is_small[component], 0, label_XYZ[tumour_XYZ])
    return kept_XYZ

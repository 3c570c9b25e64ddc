"""A whole volume, uncropped and in fp32, as imported networks of patches see it.

Axes: C modalities, X Y Z voxels in LPS order, Z H W the same as axial slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.slices import SliceStack

Box = tuple[slice, slice, slice]


def prepare_whole(
    images_CXYZ: npt.NDArray[np.float32], scheme: str, modalities: Sequence[str] = MODALITIES
) -> SliceStack:
    """Normalise a case and lay it out as axial slices of the whole volume, fp32.

    `images_CXYZ`: float32, background 0; `scheme`: one of PREPROCESSINGS; `modalities`: the order of the channels.
    """
    order = [MODALITIES.index(each) for each in modalities]
    scored_CXYZ = normalised(images_CXYZ[order], scheme)
    images_ZCHW = np.ascontiguousarray(scored_CXYZ.transpose(3, 0, 2, 1))
    brain_ZHW = np.ascontiguousarray((images_CXYZ != 0).any(axis=0).transpose(2, 1, 0))
    width, height, depth = images_CXYZ.shape[1:]
    return SliceStack(images_ZCHW, brain_ZHW, False, (0, 0, 0), (width, height, depth))


def normalised(images_CXYZ: npt.NDArray[np.float32], scheme: str) -> npt.NDArray[np.float32]:
    """Z-score each modality; a new array.

    `zscore-brain`: over its own voxels that are not 0. The other two are nnU-Net's: `zscore-mask`, over the voxels
    where any modality is not 0, with holes filled; `zscore-all`, over the bounding box of those. Voxels that do not
    count stay as they are.
    """
    scored_CXYZ = images_CXYZ.copy()
    if scheme == "zscore-brain":
        for scored_XYZ in scored_CXYZ:
            mask_XYZ = scored_XYZ != 0
            # By torch, as MONAI does: numpy adds up in another order, which moves logits by 10⁻⁵.
            values = torch.from_numpy(scored_XYZ[mask_XYZ])
            deviation = float(values.std(unbiased=False)) if values.numel() else 0.0
            scored_XYZ[mask_XYZ] = ((values - float(values.mean())) / (deviation or 1.0)).numpy()
        return scored_CXYZ
    mask_XYZ = np.asarray(ndimage.binary_fill_holes((images_CXYZ != 0).any(axis=0)))
    if scheme == "zscore-all":
        mask_XYZ[box_of(mask_XYZ)] = True
    for scored_XYZ in scored_CXYZ:
        voxels = scored_XYZ[mask_XYZ]
        scored_XYZ[mask_XYZ] = (voxels - voxels.mean()) / max(voxels.std(), 1e-8)
    return scored_CXYZ


def box_of(mask: npt.NDArray[np.bool_]) -> Box:
    """The bounding box of a mask that holds something, as an index."""
    used = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    first, second, third = (slice(int(each[0]), int(each[-1]) + 1) for each in used)
    return first, second, third

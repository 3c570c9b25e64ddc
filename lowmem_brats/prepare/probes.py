"""Ask whether an image would lie as well on T1ce aside, turned, or mirrored.

Of a good registration the answer is no. A wrong one is given away by it even where the two images, being heads, still
tell much of each other.

Axes: X Y Z voxels in LPS order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.data.alignment import grey_levels, sampling_steps, shared_information

Image = npt.NDArray[np.float32]
ASIDE_MM, TURNED_DEGREES = 8.0, 8.0
"""Smaller ones do not tell: an image of thick slices lies as well 4 mm aside."""
SMOOTH_MM = 20.0
"""Width of the Gaussian over which a bias field is taken to be constant."""
MOST_VOXELS = 50_000
"""About so many voxels of the brain are compared."""
Place = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""3 × 3, about the middle of the brain, and a shift in mm."""
STILL: Place = np.eye(3), np.zeros(3)


def over_probes(fixed_XYZ: Image, moving_XYZ: Image, spacing_mm: Sequence[float]) -> float:
    """Mutual information in place over the largest of all probes; below 1, a probe lies better. 0 without any brain.

    Both images on one grid, 0 outside the brain. Probes: a shift to both sides along each axis, a rotation both ways
    about each axis; a mirror image along each axis, as it is and shifted and turned likewise.
    """
    if not (fixed_XYZ.any() and moving_XYZ.any()):
        return 0.0
    steps = sampling_steps(spacing_mm)
    sampled = tuple(slice(None, None, step) for step in steps)
    voxel_mm = np.multiply(spacing_mm, steps)
    fixed, moving = (grey_levels(without_bias(image[sampled], voxel_mm)) for image in (fixed_XYZ, moving_XYZ))
    brain = np.argwhere(fixed >= 0)
    middle, voxels = brain.mean(0), brain[:: max(1, len(brain) // MOST_VOXELS)]
    here = fixed[tuple(voxels.T)]

    def shared(turn: npt.NDArray[np.float64], shift_mm: npt.NDArray[np.float64]) -> float:
        matrix = np.diag(1 / voxel_mm) @ turn @ np.diag(voxel_mm)
        places = np.rint((voxels - middle) @ matrix.T + middle + shift_mm / voxel_mm).astype(np.intp)
        inside = ((places >= 0) & (places < moving.shape)).all(1)
        return shared_information(here[inside], moving[tuple(places[inside].T)])

    return shared(*STILL) / max(1e-9, *(shared(*place) for place in _probes(voxel_mm)))


def without_bias(image_XYZ: Image, voxel_mm: npt.NDArray[np.float64]) -> Image:
    """An image over its own mean around each voxel, so that a coil's bias does not hide what two images share."""
    brain_XYZ = (image_XYZ != 0).astype(np.float32)
    mean, share = (ndimage.gaussian_filter(each, SMOOTH_MM / voxel_mm) for each in (image_XYZ, brain_XYZ))
    return np.asarray(image_XYZ * share / np.where(brain_XYZ * mean > 0, mean, 1), np.float32)


def _probes(voxel_mm: npt.NDArray[np.float64]) -> list[Place]:
    """All probes; a shift is a voxel at least."""
    near: list[Place] = []
    for axis in range(3):
        along, (i, j) = np.eye(3)[axis], [each for each in range(3) if each != axis]
        for sign in (1, -1):
            near.append((np.eye(3), sign * max(ASIDE_MM, voxel_mm[axis]) * along))
            angle, turn = sign * np.radians(TURNED_DEGREES), np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            near.append((turn, np.zeros(3)))
    mirrors = [np.eye(3) - 2 * np.diag(along) for along in np.eye(3)]
    return near + [(turn @ mirror, shift_mm) for mirror in mirrors for turn, shift_mm in (STILL, *near)]

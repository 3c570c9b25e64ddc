"""Ask whether an image would lie as well on T1ce aside, turned, or mirrored.

Of a good registration the answer is no. A wrong one is given away by it even where the two images, being heads, still
tell much of each other.

Axes: X Y Z voxels in LPS order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.alignment import SAMPLING_MM, grey_levels, shared_information

Image = npt.NDArray[np.float32]
ASIDE_MM, TURNED_DEGREES = 8.0, 8.0
"""Smaller ones do not tell: a thick image lies as well 4 mm aside, along its slices' normal."""


def over_probes(fixed_XYZ: Image, moving_XYZ: Image, spacing_mm: Sequence[float]) -> float:
    """Mutual information in place over the largest of all probes; below 1, a probe lies better. 0 without any brain.

    Both images on one grid, 0 outside the brain. Probes: a shift to both sides along each axis, a rotation both ways
    about each axis and a mirror image along each axis, through the middle of the brain.
    """
    if not (fixed_XYZ.any() and moving_XYZ.any()):
        return 0.0
    steps = [max(1, round(SAMPLING_MM / size)) for size in spacing_mm]
    sampled = tuple(slice(None, None, step) for step in steps)
    voxel_mm = np.multiply(spacing_mm, steps)
    fixed, moving = grey_levels(fixed_XYZ[sampled]), grey_levels(moving_XYZ[sampled])
    voxels = np.argwhere(fixed >= 0)
    here, middle = fixed[fixed >= 0], voxels.mean(0)
    best = 1e-9
    for turn, shift_mm in _probes(voxel_mm):
        matrix = np.diag(1 / voxel_mm) @ turn @ np.diag(voxel_mm)
        places = np.rint((voxels - middle) @ matrix.T + middle + shift_mm / voxel_mm).astype(np.intp)
        inside = ((places >= 0) & (places < moving.shape)).all(1)
        best = max(best, shared_information(here[inside], moving[tuple(places[inside].T)]))
    return shared_information(fixed, moving) / best


def _probes(voxel_mm: npt.NDArray[np.float64]) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Matrix and shift in mm of each probe; the shift is a voxel at least."""
    for axis in range(3):
        along = np.eye(3)[axis]
        yield np.eye(3) - 2 * np.diag(along), np.zeros(3)
        for sign in (1, -1):
            yield np.eye(3), sign * max(ASIDE_MM, voxel_mm[axis]) * along
            angle, (i, j) = sign * np.radians(TURNED_DEGREES), [each for each in range(3) if each != axis]
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            yield turn, np.zeros(3)

"""Measure whether the modalities of a case lie on each other.

Where two images of a head lie on each other, each tells most of the other: their mutual information is largest, and
falls as one is shifted. Where it does not fall, or is larger a few millimetres aside, they are not registered.

Axes: C modalities; X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import MODALITIES

Levels = npt.NDArray[np.intp]
"""Grey level of each voxel, from 0; −1 where there is no brain."""

LEVELS = 32
"""Grey levels that are told apart, each of as many voxels of the brain as any other."""
SHIFT_MM = 8.0
SAMPLING_MM = 2.0
"""Finer grids are looked at in steps of about this size."""
SURELY_APART = 1.25
"""Of 84 BraTS cases none is apart; the worst pairs of images have 1.29 times the mean and 1.06 times the best."""
MIRRORED = 0.8
"""Of nine pairs of images of BraTS all have 2.4 or more, and 0.41 or less where one is mirrored."""
NOTHING = 1e-6
"""Nats of mutual information that are as good as none."""
SMALLEST_BRAIN_ML = 700
"""A smaller volume, such as a synthetic case's, is not judged."""


@dataclass(frozen=True)
class Alignment:
    """How much more two images tell of each other in place than shifted by SHIFT_MM."""

    over_mean: float
    """Mutual information in place, over the mean of all shifts to both sides along each axis."""
    over_best: float
    """The same over the largest of the shifts; below 1 the images lie better on each other when shifted."""
    over_mirror: float
    """The same with the middles of both brains on each other along X, over that with one mirrored, left for right."""

    @property
    def mirrored(self) -> bool:
        """Whether left is right in one of the images. Heads are so alike on both sides that shifts do not tell."""
        return self.over_mirror < MIRRORED

    @property
    def apart(self) -> bool:
        """Whether the images surely do not lie on each other."""
        return self.over_mean < SURELY_APART or self.over_best < 1


def sampling_steps(spacing_mm: Sequence[float]) -> list[int]:
    """Every how many voxels along each axis an image is looked at, so that they lie about SAMPLING_MM apart."""
    return [max(1, round(SAMPLING_MM / size)) for size in spacing_mm]


def measure_alignment(
    images_CXYZ: npt.NDArray[np.float32], missing: Collection[str], spacing_mm: Sequence[float]
) -> dict[str, Alignment]:
    """Compare each modality with T1ce, or without it with the first: modality → Alignment.

    `images_CXYZ`: 0 outside the brain, any intensity unit. Empty for a volume too small to be a brain.
    """
    brain_ml = float(images_CXYZ.any(0).sum() * np.prod(spacing_mm)) / 1000
    present = [modality for modality in MODALITIES if modality not in missing]
    if brain_ml < SMALLEST_BRAIN_ML:
        return {}
    anchor = "t1ce" if "t1ce" in present else present[0]
    steps = sampling_steps(spacing_mm)
    sampled_CXYZ = images_CXYZ[:, :: steps[0], :: steps[1], :: steps[2]]
    voxels = [max(1, round(SHIFT_MM / (size * step))) for size, step in zip(spacing_mm, steps, strict=True)]
    levels = {modality: grey_levels(sampled_CXYZ[MODALITIES.index(modality)]) for modality in present}
    return {modality: _compare(levels[anchor], levels[modality], voxels) for modality in present if modality != anchor}


def _compare(fixed: Levels, moving: Levels, voxels: Sequence[int]) -> Alignment:
    """Judge two images; `voxels`: shift along each axis."""
    aside = [
        shared_information(*_shifted(fixed, moving, axis, sign * voxels[axis]))
        for axis, sign in product(range(3), (1, -1))
    ]
    in_place = shared_information(fixed, moving)
    first, second = _centred(fixed, moving)
    same, mirrored = (max(shared_information(first, each), NOTHING) for each in (second, second[::-1]))
    return Alignment(in_place / max(float(np.mean(aside)), 1e-9), in_place / max(*aside, 1e-9), same / mirrored)


def _centred(fixed: Levels, moving: Levels) -> tuple[Levels, Levels]:
    """The parts of two images that lie on each other once the middles of their brains do, along X."""
    extents = [np.flatnonzero((levels >= 0).any(axis=(1, 2))) for levels in (fixed, moving)]
    if not all(extent.size for extent in extents):
        return fixed[:0], moving[:0]
    length = min(int(extent[-1] - extent[0]) + 1 for extent in extents)
    starts = [int(extent[0] + extent[-1] + 1 - length) // 2 for extent in extents]
    first, second = (slice(start, start + length) for start in starts)
    return fixed[first], moving[second]


def grey_levels(image: npt.NDArray[np.float32]) -> Levels:
    """The grey level of each voxel of an image that is 0 outside the brain."""
    brain = image != 0
    found = np.full(image.shape, -1, np.intp)
    if brain.any():
        edges = np.percentile(image[brain], np.linspace(0, 100, LEVELS + 1)[1:-1])
        found[brain] = np.searchsorted(edges, image[brain])
    return found


def _shifted(fixed: Levels, moving: Levels, axis: int, by: int) -> tuple[Levels, Levels]:
    """The parts of two images that lie on each other once `moving` is shifted by a number of voxels along an axis."""
    first, last = [slice(None)] * 3, [slice(None)] * 3
    first[axis], last[axis] = slice(None, -abs(by)), slice(abs(by), None)
    return (fixed[tuple(last)], moving[tuple(first)]) if by > 0 else (fixed[tuple(first)], moving[tuple(last)])


def shared_information(fixed: Levels, moving: Levels) -> float:
    """Mutual information, in nats, of the voxels where both have brain; 0 where there are none."""
    both = (fixed >= 0) & (moving >= 0)
    if not both.any():
        return 0.0
    pairs = np.bincount(fixed[both] * LEVELS + moving[both], minlength=LEVELS**2).reshape(LEVELS, LEVELS)
    joint = pairs / pairs.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / alone[seen])).sum())

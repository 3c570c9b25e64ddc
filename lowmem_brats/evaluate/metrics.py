"""How well a predicted region matches its reference: Dice, HD95, sensitivity and specificity, as BraTS reports them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

HD95_ONE_EMPTY_MM = 373.13
"""HD95 when exactly one of the two masks is empty: the diagonal of the 240 × 240 × 155 mm BraTS grid."""

HEADINGS = ("Dice", "HD95 mm", "sensitivity", "specificity")
"""Of the columns of `RegionScore.shown`."""


@dataclass(frozen=True)
class RegionScore:
    """The four BraTS measures of one region, for one patient or averaged over patients; all are finite."""

    dice: float
    """Overlap, 0 to 1."""
    hd95_mm: float
    """95th percentile of the surface distances in mm; 0 is perfect."""
    sensitivity: float
    """Share of the reference's voxels that were found."""
    specificity: float
    """Share of the voxels outside the reference that were left as background."""

    def shown(self) -> tuple[str, str, str, str]:
        """The four measures for people to read."""
        return f"{self.dice:.3f}", f"{self.hd95_mm:.1f}", f"{self.sensitivity:.3f}", f"{self.specificity:.4f}"


def dice(tp: float, fp: float, fn: float) -> float:
    """Dice of one patient from voxel counts summed over all its slices: 2·TP / (2·TP + FP + FN).

    `tp`, `fp`, `fn`: true positive, false positive and false negative voxels. Returns 0 to 1; 1 when all are zero
    (nothing to find and nothing found).
    Source: Hashemi et al., "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation",
    eq. 3.
    """
    voxels = 2 * tp + fp + fn
    return 2 * tp / voxels if voxels else 1.0


def mask_dice(predicted: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    """Dice of two boolean masks of one shape, 0 to 1; 1 if both are empty."""
    tp = int(np.count_nonzero(predicted & reference))
    return dice(tp, int(np.count_nonzero(predicted)) - tp, int(np.count_nonzero(reference)) - tp)


def score_region(
    predicted_XYZ: npt.NDArray[np.bool_],
    reference_XYZ: npt.NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> RegionScore:
    """Score one region of one patient.

    `predicted_XYZ`, `reference_XYZ`: boolean, of one shape; `spacing_mm`: voxel edge along X, Y, Z.
    If both masks are empty: Dice 1, HD95 0, sensitivity 1. If exactly one is empty: Dice 0, HD95 HD95_ONE_EMPTY_MM,
    sensitivity 0 (also if it is the reference, for which TP / (TP + FN) is undefined). If the reference fills the
    volume: specificity 1.
    Source: the rules for empty regions are those of the BraTS evaluation.
    """
    tp = int(np.count_nonzero(predicted_XYZ & reference_XYZ))
    fp = int(np.count_nonzero(predicted_XYZ)) - tp
    fn = int(np.count_nonzero(reference_XYZ)) - tp
    tn = reference_XYZ.size - tp - fp - fn
    # With an empty reference the ratio is undefined, and anything predicted is wrong.
    sensitivity = tp / (tp + fn) if tp + fn else float(fp == 0)
    return RegionScore(
        dice=dice(tp, fp, fn),
        hd95_mm=_hd95_mm(predicted_XYZ, reference_XYZ, spacing_mm),
        sensitivity=sensitivity,
        specificity=tn / (tn + fp) if tn + fp else 1.0,
    )


def _hd95_mm(a_XYZ: npt.NDArray[np.bool_], b_XYZ: npt.NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """The 95th percentile of the surface distances from a to b and from b to a, taken together.

    Arguments and empty masks as in `score_region`. Returns mm.
    Source: the definition of `hd95` in MedPy (`medpy.metric.binary`). Tools that take the percentile of each direction
    and then the larger of both give values that are at least as large.
    """
    if not (a_XYZ.any() and b_XYZ.any()):
        return HD95_ONE_EMPTY_MM if a_XYZ.any() or b_XYZ.any() else 0.0
    # Cropped to the box of both masks, which is many times faster and exact: everything outside is background, and the
    # erosion below takes the outside of the crop for background too, so surfaces and distances do not change.
    (box,) = ndimage.find_objects((a_XYZ | b_XYZ).view(np.uint8))
    a_surface, b_surface = _surface(a_XYZ[box]), _surface(b_XYZ[box])
    a_to_b = ndimage.distance_transform_edt(~b_surface, sampling=spacing_mm)[a_surface]
    b_to_a = ndimage.distance_transform_edt(~a_surface, sampling=spacing_mm)[b_surface]
    return float(np.percentile(np.concatenate((a_to_b, b_to_a)), 95))


def _surface(mask_XYZ: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask's voxels with a face on the background or on the border of the array."""
    faces = ndimage.generate_binary_structure(mask_XYZ.ndim, 1)
    inner_XYZ: npt.NDArray[np.bool_] = ndimage.binary_erosion(mask_XYZ, faces, border_value=0)
    return mask_XYZ & ~inner_XYZ

"""Put lesions of other patients into training slices, for trainings with few patients.

Source: Zhang et al. 2021, "CarveMix: A Simple Data Augmentation Method for Brain Lesion Segmentation" (arXiv
2108.06883): a lesion and its surroundings replace the same place in another patient, in image and label. Deviations:
it works on slices instead of volumes; the surroundings have a fixed width; the edge is a ramp, and the lesion is
shifted to the brightness of its new surroundings, so that the network cannot learn to recognise seams. All patients
must be in one space, as BraTS cases are.
Shape suffixes: N slices, C channels, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lowmem_brats.slice_cache import CachedCase

MARGIN = 6
"""Pixels of healthy tissue around a lesion that are moved with it; their brightness is compared."""
RAMP = 3
"""Pixels on either side of the margin's edge over which one patient becomes the other."""


def draw_donors(
    rng: np.random.Generator, cases: Sequence[CachedCase], rows: npt.NDArray[np.int64], share: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Choose about `share` of the `rows` to get a lesion, and a donor row for each.

    `rows`: int64 [n, 3] of case, view and slice; `share`: 0 to 1. A donor is a slice of another case that is no flat
    stack, at the same relative position along the view's axis, with a lesion.
    Returns the indices of the chosen rows, and their donors, int64 [chosen, 3].
    """
    taken, donors = [], []
    for n in np.flatnonzero(rng.random(len(rows)) < share):
        if candidates := _candidates(cases, *rows[n].tolist()):
            taken.append(n)
            donors.append(candidates[rng.integers(len(candidates))])
    return np.array(taken, np.intp), np.array(donors, np.int64).reshape(-1, 3)


def _candidates(cases: Sequence[CachedCase], i: int, view: int, number: int) -> list[tuple[int, int, int]]:
    """The rows from which a slice of case `i` can get its lesion."""
    if cases[i].flat:  # the position of a single slice along the axis is not known
        return []
    own = len(cases[i].depth_VN[view])
    others = [(j, case.depth_VN[view]) for j, case in enumerate(cases) if j != i and not case.flat]
    as_far = [(j, depth_N, number * len(depth_N) // own) for j, depth_N in others]
    return [(j, view, there) for j, depth_N, there in as_far if depth_N[there]]


def transplant(
    slices_NCHW: Tensor, depth_N1HW: Tensor, donor_NCHW: Tensor, donor_N1HW: Tensor
) -> tuple[Tensor, Tensor]:
    """Put the donors' lesions into slices and nesting depths; returns both as new tensors.

    `slices_NCHW`, `donor_NCHW`: fp32 z-scores, background 0; `depth_N1HW`, `donor_N1HW`: float, the number of nested
    regions that hold each pixel. Background stays background.
    """
    lesion_N1HW = (donor_N1HW > 0).float()
    carved_N1HW = functional.max_pool2d(lesion_N1HW, 2 * MARGIN + 1, stride=1, padding=MARGIN)
    share_N1HW = functional.avg_pool2d(carved_N1HW, 2 * RAMP + 1, stride=1, padding=RAMP, count_include_pad=False)
    both_NCHW = (slices_NCHW != 0) & (donor_NCHW != 0)
    healthy_NCHW = both_NCHW & (carved_N1HW > lesion_N1HW) & (depth_N1HW == 0)
    difference_NCHW = (slices_NCHW - donor_NCHW) * healthy_NCHW
    shift_NC11 = difference_NCHW.sum((2, 3), keepdim=True) / healthy_NCHW.sum((2, 3), keepdim=True).clamp(min=1)
    mixed_NCHW = torch.lerp(slices_NCHW, donor_NCHW + shift_NC11, share_N1HW * both_NCHW)
    moved_N1HW = (share_N1HW >= 0.5) & both_NCHW.any(dim=1, keepdim=True)
    return mixed_NCHW, torch.where(moved_N1HW, donor_N1HW, depth_N1HW)

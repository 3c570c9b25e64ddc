"""Lesions of other patients in training slices, for who has few patients.

Source: Zhang et al. 2021, "CarveMix: A Simple Data Augmentation Method for Brain Lesion Segmentation" (arXiv
2108.06883): a lesion and what surrounds it replace the same place of another patient, in image and label. Deviations:
slices in place of volumes; the surroundings have one width; the edge is a ramp, and the lesion is shifted to the
brightness of its new surroundings, so that the network cannot learn to see seams. Patients must be in one space, as
BraTS cases are.
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
"""Pixels around a lesion that move with it: healthy tissue, to compare brightness by."""
RAMP = 3
"""Pixels on either side of the margin's edge over which one patient becomes the other."""


def draw_donors(
    rng: np.random.Generator, cases: Sequence[CachedCase], rows: npt.NDArray[np.int64], share: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Which of the `rows` [n, 3] (case, view, slice) get a lesion, about `share` of them, and from which rows.

    A donor is the volume of another case that has a lesion as far along the view's axis.
    """
    taken, donors = [], []
    for n in np.flatnonzero(rng.random(len(rows)) < share):
        if candidates := _candidates(cases, *rows[n].tolist()):
            taken.append(n)
            donors.append(candidates[rng.integers(len(candidates))])
    return np.array(taken, np.intp), np.array(donors, np.int64).reshape(-1, 3)


def _candidates(cases: Sequence[CachedCase], i: int, view: int, number: int) -> list[tuple[int, int, int]]:
    """The rows that a slice of case `i` can get its lesion from."""
    if cases[i].flat:  # where along the axis a single slice lies is not known
        return []
    own = len(cases[i].depth_VN[view])
    others = [(j, case.depth_VN[view]) for j, case in enumerate(cases) if j != i and not case.flat]
    as_far = [(j, depth_N, number * len(depth_N) // own) for j, depth_N in others]
    return [(j, view, there) for j, depth_N, there in as_far if depth_N[there]]


def transplant(
    slices_NCHW: Tensor, depth_N1HW: Tensor, donor_NCHW: Tensor, donor_N1HW: Tensor
) -> tuple[Tensor, Tensor]:
    """Slices and nesting depths with the donors' lesions in them, as new tensors.

    `slices_NCHW`, `donor_NCHW`: fp32 z-scores, background 0; `depth_N1HW`, `donor_N1HW`: float, how many of the nested
    regions hold a pixel. Background stays background.
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

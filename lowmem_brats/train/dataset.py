"""Which patients and which slices a training learns from, and how slices become batches.

Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowmem_brats.data.case_list import LabelledCase
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.data.slices import seen_from, with_context
from lowmem_brats.errors import InputError
from lowmem_brats.train.windows import cut


@dataclass(frozen=True)
class Split:
    """Cases by what they are used for; no patient is in two parts."""

    training: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]
    """To choose the best epoch."""
    test: tuple[LabelledCase, ...]
    """Scored once, at the end."""

    @property
    def parts(self) -> tuple[tuple[LabelledCase, ...], ...]:
        """The three, in this order."""
        return self.training, self.validation, self.test


def split_cases(
    cases: Sequence[LabelledCase], validation: float, test: float, fold: tuple[int, int] | None, seed: int
) -> Split:
    """Split by patient, the same for the same seed and names.

    `test`: share of patients held out, the same for every fold; `validation`: share of all patients, at least one and
    not all, 0: none; `fold`: (k, n), validate on the k-th of n folds of those not held out instead. Raises InputError
    for too few patients.
    """
    patients = sorted({case.patient for case in cases})
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    held_out = round(test * len(order))
    rest = order[held_out:]
    needed = fold[1] if fold else 1 + (validation > 0)
    if len(rest) < needed:
        found = f"{len(rest)} labelled patient{'' if len(rest) == 1 else 's'}"
        besides = f" besides {held_out} held out for the test" if held_out else ""
        advice = "Add cases."
        if len(patients) < len(cases):
            besides += f", in {len(cases)} cases"
            advice = "Add patients, or say in the column `patient` of a CSV or JSON list whom each case shows."
        raise InputError("training data", found + besides, f"at least {needed}", advice)
    chosen = min(max(round(validation * len(order)), 1), len(rest) - 1) if validation else 0
    validated = set(rest[fold[0] - 1 :: fold[1]] if fold else rest[:chosen])
    parts = set(rest) - validated, validated, set(order[:held_out])
    ordered = sorted(cases, key=lambda case: case.case_id)
    return Split(*(tuple(case for case in ordered if case.patient in part) for part in parts))


def frame_of(cases: Sequence[CachedCase], views: int) -> tuple[int, int]:
    """The smallest (H, W) that holds every case's slices in the first `views` views that are usable."""
    sizes = [size_HW for case in cases for size_HW in case.sizes_HW(case.usable(views))]
    height, width = np.array(sizes).max(axis=0).tolist()
    return height, width


def training_rows(cases: Sequence[CachedCase], region: Region, views: int) -> npt.NDArray[np.int64]:
    """Case, view and number of every slice that a region's network learns from, [rows, 3]; InputError for none."""
    rows = [
        (i, view, number)
        for i, case in enumerate(cases)
        for view, active_N in enumerate(case.active_VN(region, views))
        for number in np.flatnonzero(active_N).tolist()
    ]
    if not rows:
        found = f"no slice for {region.name} in {len(cases)} case{'s' if len(cases) > 1 else ''}"
        raise InputError("training data", found, "tumours in the training cases", "Add cases that have one.")
    return np.array(rows, np.int64)


def row_weights(cases: Sequence[CachedCase], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How often to draw each of the rows, relative to each other.

    A case counts as the fourth root of its slices, so one of a single slice is neither lost among volumes nor as good
    as one (docs/history.md compares it with the square root); of its slices, one that holds d nested regions counts
    1 + d times.
    """
    depths = np.array([cases[i].depth_VN[view][number] for i, view, number in rows.tolist()])
    counts = np.bincount(rows[:, 0])
    shares = (1.0 + depths) / np.bincount(rows[:, 0], 1.0 + depths)[rows[:, 0]]
    weights: npt.NDArray[np.float64] = shares * counts[rows[:, 0]] ** 0.25
    return weights


def gather(
    cases: Sequence[CachedCase],
    rows: npt.NDArray[np.int64],
    corners_N2: npt.NDArray[np.int64],
    size_HW: tuple[int, int],
    context: int = 0,
) -> tuple[Tensor, Tensor]:
    """One batch of rows of `training_rows`: `slices_NCHW` fp32 and `depth_N1HW` fp32, windows of `size_HW` pixels.

    `corners_N2`: where in its slice each window begins; `context`: how many neighbours follow as further channels, as
    `with_context`; depth: how many of the nested regions hold a pixel.
    """
    slices, depths = [], []
    for (i, view, number), corner_HW in zip(rows.tolist(), corners_N2.tolist(), strict=True):
        seen_NCHW = seen_from(view, cases[i].slices_ZCHW)
        slices.append(cut(with_context(seen_NCHW, np.array([number]), context, cases[i].flat)[0], corner_HW, size_HW))
        depths.append(cut(seen_from(view, cases[i].depth_ZHW)[number][None], corner_HW, size_HW))
    return torch.from_numpy(np.stack(slices)).float(), torch.from_numpy(np.stack(depths)).float()


def targets_of(depth_N1HW: Tensor, regions: Sequence[Region]) -> Tensor:
    """What networks of the regions learn: `target_NKHW`, fp32 0 or 1."""
    return torch.cat([depth_N1HW >= region.depth for region in regions], dim=1).float()

"""Train the decision network of a bank: which member does best on each slice, learnt from the slices.

Source: Wang et al. 2022, "Med-DANet: Dynamic Architecture Network for Efficient Medical Volumetric Segmentation",
equations 4 and 7 and section 4.1. The paper leaves the weights of the loss open.
Shape suffixes: V views, N slices, M members, S choices, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.data.slices import seen_from
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks.shufflenet import DecisionNetwork
from lowmem_brats.segment.stack import place, predict_stack
from lowmem_brats.train.dataset import frame_of, gather, training_rows
from lowmem_brats.train.windows import centred
from lowmem_brats.weights.file import load_network
from lowmem_brats.weights.header import WeightsFile

ALPHA = 0.001
"""How much the cost counts beside Dice in the choice (equation 4); the paper's."""
SKIP_WEIGHT = 0.5
"""Weight of skipping in the loss, where a member has 1: a slice that is skipped in error costs tumour."""
EPOCHS, BATCH, RATE, DECAY = 50, 64, 0.01, 1e-5
"""The paper's: passes over the slices, slices per step, largest learning rate, weight decay."""
SHIFT, SCALE = 0.1, 0.1
"""At most so much is added to a modality, in standard deviations, and so much of it is taken away or added."""
JITTER = 8
"""Pixels by which a slice is moved in its frame at most, either way."""
PAPER_MEGAPIXELS = 128 * 128 / 1e6
"""Of the slices for which the paper counts its operations; the choice depends on that unit."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """For each slice that holds brain, the best choice."""

    rows: Rows
    """Case, view and number of each slice, [N, 3]."""
    best_N: npt.NDArray[np.int64]
    """0: skip it; k: member k."""
    dice_NM: npt.NDArray[np.float64]
    """Of each member in each slice that holds tumour, the mean over the regions that the slice holds; else 0."""


def best_choice(dice_NM: npt.NDArray[np.float64], costs_M: Sequence[float]) -> npt.NDArray[np.int64]:
    """The best member of each slice, counted from 1: of equally good ones the cheapest (equation 4).

    `costs_M`: 10⁹ multiply-adds for a slice of 128 × 128 pixels.
    """
    cheap_M = functional.softmax(1 / torch.tensor(costs_M, dtype=torch.float64), dim=0).numpy()
    best_N: npt.NDArray[np.int64] = 1 + np.argmax((1 - ALPHA) * dice_NM + ALPHA * cheap_M, axis=1)
    return best_N


def label_slices(
    cases: Sequence[CachedCase],
    members: Sequence[WeightsFile],
    gmac_per_megapixel: Sequence[float],
    plan: InferencePlan,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Labels:
    """Let every member segment every slice that holds tumour, one member in memory at a time, and compare."""
    views = members[0].network.views
    rows = training_rows(cases, Region.WT, views)
    dice_NM = np.zeros((len(rows), len(members)))
    for m, file in enumerate(members):
        network = place(load_network(file), plan)
        for i, case in enumerate(cases):
            of_case_N = rows[:, 0] == i
            dice_NM[of_case_N, m] = _dice_of_slices(network, case, rows[of_case_N], plan)
            on_progress(m * len(cases) + i + 1, len(members) * len(cases))
        del network
    best_N = best_choice(dice_NM, [cost * PAPER_MEGAPIXELS for cost in gmac_per_megapixel])
    holds_N = np.array([cases[i].depth_VN[view][number] > 0 for i, view, number in rows.tolist()])
    return Labels(rows, np.where(holds_N, best_N, 0), dice_NM)


def _dice_of_slices(network: torch.nn.Module, case: CachedCase, rows: Rows, plan: InferencePlan) -> list[float]:
    """Mean Dice over the regions that a slice holds, of each of a case's rows; 0 where it holds none."""
    scores = np.zeros(len(rows))
    depth_ZHW, views = np.asarray(case.depth_ZHW), case.usable(len(case.depth_VN))
    for view in sorted(set(rows[:, 1].tolist())):
        active_VN = [np.zeros(len(depth_N), np.bool_) for depth_N in case.depth_VN[:views]]
        active_VN[view] = np.array(case.depth_VN[view]) > 0
        found = predict_stack(lambda _: network, case.slices_ZCHW, active_VN, plan, flat=case.flat)  # type: ignore[arg-type, return-value]
        nested_KZHW = np.logical_and.accumulate(found.mask_KZHW)  # as fusion will leave it
        seen_KNHW, depth_NHW = seen_from(view, nested_KZHW, 1), seen_from(view, depth_ZHW)
        for place_, (_, of_view, number) in enumerate(rows.tolist()):
            if of_view == view and active_VN[view][number]:
                truths = [depth_NHW[number] >= region.depth for region in Region]
                dice = [_dice(seen_KNHW[k, number], truth) for k, truth in enumerate(truths) if truth.any()]
                scores[place_] = sum(dice) / len(dice)
    return scores.tolist()


def _dice(found_HW: npt.NDArray[np.bool_], truth_HW: npt.NDArray[np.bool_]) -> float:
    return 2 * float((found_HW & truth_HW).sum()) / float(found_HW.sum() + truth_HW.sum())


def train_decision(
    cases: Sequence[CachedCase],
    labels: Labels,
    choices: int,
    seed: int,
    epochs: int = EPOCHS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[DecisionNetwork, tuple[int, int]]:
    """Train on the CPU, where the network is small enough; returns it, in evaluation mode, and the frame of its slices.

    Learning rate: rises over the first epoch, then falls as (1 - progress)^0.9 (the paper's poly).
    """
    torch.manual_seed(seed)
    frame_HW = frame_of(cases, 1 + int(labels.rows[:, 1].max()))
    network = DecisionNetwork(len(MODALITIES), choices).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # on the CPU 1.4 times as fast
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=DECAY)
    weights_S = torch.tensor([SKIP_WEIGHT] + [1.0] * (choices - 1))
    batch = min(BATCH, len(labels.rows))
    per_epoch = len(labels.rows) // batch
    total = per_epoch * epochs
    for step in range(total):
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(labels.rows))
        chosen = order[number * batch : (number + 1) * batch]
        rng = np.random.default_rng([seed, 1, step])
        slices_NCHW = _varied(rng, cases, labels.rows[chosen], frame_HW)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / per_epoch) * (1 - step / total) ** 0.9
        optimizer.zero_grad()
        best_N = torch.from_numpy(labels.best_N[chosen])
        functional.cross_entropy(network(slices_NCHW), best_N, weights_S).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_progress(step + 1, total)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval(), frame_HW


def _varied(rng: np.random.Generator, cases: Sequence[CachedCase], rows: Rows, frame_HW: tuple[int, int]) -> Tensor:
    """Slices in their frame: moved, mirrored, darker or brighter at random, [N, C, H, W]."""
    corners_N2 = centred(cases, rows, frame_HW) + rng.integers(-JITTER, JITTER + 1, (len(rows), 2))
    slices_NCHW, _ = gather(cases, rows, corners_N2, frame_HW)
    for axis in (2, 3):
        mirrored_N = torch.from_numpy(rng.random(len(rows)) < 0.5)
        slices_NCHW[mirrored_N] = slices_NCHW[mirrored_N].flip(axis)
    size = (*slices_NCHW.shape[:2], 1, 1)
    scale = torch.from_numpy(rng.uniform(1 - SCALE, 1 + SCALE, size)).float()
    shift = torch.from_numpy(rng.uniform(-SHIFT, SHIFT, size)).float()
    brain_NCHW = slices_NCHW != 0
    return slices_NCHW.mul_(scale).add_(shift).mul_(brain_NCHW)

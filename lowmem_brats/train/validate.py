"""Score the weights of a running training on the validation patients.

Shape suffixes: Z slices of a case, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.data.slices import SliceStack
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.evaluate.metrics import mask_dice
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import PatchNetwork, SliceNetwork, build_any
from lowmem_brats.segment.patches import predict_volume
from lowmem_brats.segment.stack import Prediction, place, predict_finite, predict_stack

EXAMPLES = 4
THRESHOLDS = (0.0, -0.5, 0.5, -1.0, 1.0, -1.5, -2.0)
"""Mean logits above which a pixel could count as tumour; of equally good ones the first is taken."""


@dataclass(frozen=True)
class Example:
    """A slice of a validation patient and the prediction for it."""

    case_id: str
    slice_CHW: npt.NDArray[np.float32]
    """Channels as config.MODALITIES, z-scored, background 0."""
    reference_HW: npt.NDArray[np.bool_]
    predicted_HW: npt.NDArray[np.bool_]
    z: int
    dice: float
    """Dice of the whole patient, not of the slice."""


@dataclass(frozen=True)
class Validation:
    """The scores of some weights on the validation patients."""

    dice: dict[str, dict[str, float]]
    """Region → patient → Dice (TP, FP, FN summed over slices), on slices where the reference holds the parent."""
    examples: list[Example]
    """For each of the first patients, the slice with most of the network's region (of three regions, the first)."""
    peak_bytes: int
    """Peak bytes of the prediction alone."""
    precision: str = "fp32"
    """The format that it ran in: fp32 where the one asked for gives NaN or infinity."""


def validate(
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    cases: Sequence[CachedCase],
    regions: Sequence[Region],
    device: str,
    precision: str,
) -> Validation:
    """Segment the cases with a copy of the weights as `segment` will, in its format, and score the masks.

    Unlike there, a network of slices looks at those with the parent in the reference, each region is judged without its
    parent's mask, and doubtful findings stay.

    `state`: a state dict; `regions`: in the order of the network's outputs; `precision`: a key of `precision.DTYPES`.
    """
    scores: dict[str, dict[str, float]] = {region.value: {} for region in regions}
    examples, peak_bytes = list[Example](), 0
    for case, found, plan in _predict(state, config, cases, regions, _plan(config, device, precision), True):
        precision = plan.precision
        depth_ZHW = case.depth_ZHW
        peak_bytes = max(peak_bytes, found.peak_bytes)
        for region, mask_ZHW in zip(regions, found.mask_KZHW, strict=True):
            scores[region.value][case.case_id] = _dice(case, region, mask_ZHW, depth_ZHW)
        if len(examples) < EXAMPLES:
            truth_ZHW = depth_ZHW >= regions[0].depth
            z = int(truth_ZHW.sum(axis=(1, 2)).argmax())
            slice_CHW, score = case.slices_ZCHW[z].astype(np.float32), scores[regions[0].value][case.case_id]
            examples.append(Example(case.case_id, slice_CHW, truth_ZHW[z], found.mask_KZHW[0, z], z, score))
    return Validation(scores, examples, peak_bytes, precision)


def best_thresholds(
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    cases: Sequence[CachedCase],
    regions: Sequence[Region],
    device: str,
    precision: str,
) -> dict[str, tuple[float, float]]:
    """Region → (the one of THRESHOLDS at which masks have the best mean Dice, that Dice); arguments as `validate`.

    Networks that were trained on few patients find too little tumour, so 0 is seldom best. Every slice is looked at,
    because where `routing` looks depends on the threshold.
    """
    scores = np.zeros((len(regions), len(THRESHOLDS)))
    for case, found, _ in _predict(state, config, cases, regions, _plan(config, device, precision), False):
        depth_ZHW, views = case.depth_ZHW, case.usable(config.views)
        for region, sum_ZHW, row in zip(regions, found.sum_KZHW, scores, strict=True):
            for i, threshold in enumerate(THRESHOLDS):
                # The sum is over all views, as each has seen every voxel of the parent; outside the brain it is 0.
                mask_ZHW = (sum_ZHW > threshold * views) & (sum_ZHW != 0)
                row[i] += _dice(case, region, mask_ZHW, depth_ZHW) / len(cases)
    best = scores.argmax(axis=1)
    return {
        region.value: (THRESHOLDS[i], round(float(row[i]), 4))
        for region, row, i in zip(regions, scores, best, strict=True)
    }


def _predict(
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    cases: Sequence[CachedCase],
    regions: Sequence[Region],
    plan: InferencePlan,
    narrow: bool,
) -> Iterator[tuple[CachedCase, Prediction, InferencePlan]]:
    """Yield each case with the prediction for the slices that the network has to segment there, and how it was made."""
    for case in cases:
        active_VN = case.active_VN(regions[0], config.views)

        def run(
            plan: InferencePlan, case: CachedCase = case, active_VN: list[npt.NDArray[np.bool_]] = active_VN
        ) -> Prediction:
            network = _copy(state, config, plan)
            if isinstance(network, PatchNetwork):
                return predict_volume(network, _volume(case), plan)
            return predict_stack(lambda view: network, case.slices_ZCHW, active_VN, plan, narrow=narrow, flat=case.flat)

        found, plan = predict_finite(run, plan, partial(replace, plan, precision="fp32"))
        yield case, found, plan


def _plan(config: NetworkConfig, device: str, precision: str) -> InferencePlan:
    """One slice at a time, or one patch as large as the crops of the training."""
    return InferencePlan(device, precision, 1, sides_of(config.patch), config.cropped)


def _volume(case: CachedCase) -> SliceStack:
    """A case as networks of patches see it: its brain, which is all that they look at."""
    slices_ZCHW = case.slices_ZCHW
    depth, _, height, width = slices_ZCHW.shape
    return SliceStack(slices_ZCHW, (slices_ZCHW != 0).any(axis=1), case.flat, (0, 0, 0), (width, height, depth))


def _copy(state: Mapping[str, Tensor], config: NetworkConfig, plan: InferencePlan) -> SliceNetwork | PatchNetwork:
    """The network with a copy of the weights, as the plan wants it."""
    with torch.device("meta"):
        network = build_any(config)
    copies = {key: value.to(plan.device, _format(value, plan.precision), copy=True) for key, value in state.items()}
    network.load_state_dict(copies, assign=True)
    return place(network, plan)


def _dice(case: CachedCase, region: Region, mask_ZHW: npt.NDArray[np.bool_], depth_ZHW: npt.NDArray[np.uint8]) -> float:
    """Dice on the axial slices where the reference holds the region's parent."""
    (active_Z,) = case.active_VN(region, views=1)
    return mask_dice(mask_ZHW[active_Z], depth_ZHW[active_Z] >= region.depth)


def _format(value: Tensor, precision: str) -> torch.dtype:
    return DTYPES[precision] if value.is_floating_point() else value.dtype

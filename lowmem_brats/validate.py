"""Score weights on the validation patients while training goes on.

Shape suffixes: Z slices of a case, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.figures import Example
from lowmem_brats.labels import Region
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.metrics import dice
from lowmem_brats.networks import build_network
from lowmem_brats.precision import DTYPES
from lowmem_brats.predict import place, predict_stack
from lowmem_brats.slice_cache import CachedCase

EXAMPLES = 4


@dataclass(frozen=True)
class Validation:
    """What the weights reached."""

    dice: dict[str, dict[str, float]]
    """Region → patient → Dice (TP, FP, FN summed over slices), on slices where the reference holds its parent."""
    examples: list[Example]
    """Of the first patients, the slice with most of the region; of three regions, the first."""
    peak_bytes: int
    """Of prediction alone."""


def validate(
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    cases: Sequence[CachedCase],
    regions: Sequence[Region],
    device: str,
    precision: str,
) -> Validation:
    """Segment the cases with weights given as a state dict, in a copy of the stated format, as `segment` will run."""
    plan = InferencePlan(device, precision, batch=1)
    with torch.device("meta"):
        network = build_network(config)
    copies = {key: value.to(device, _format(value, precision), copy=True) for key, value in state.items()}
    network.load_state_dict(copies, assign=True)
    network = place(network, plan)
    scores: dict[str, dict[str, float]] = {region.value: {} for region in regions}
    examples, peak_bytes = list[Example](), 0
    for case in cases:
        slices_ZCHW, depth_ZHW = case.slices_ZCHW, case.depth_ZHW
        views = min(config.views, len(case.brain_VN))
        found = predict_stack(network, slices_ZCHW, [case.seen_by(regions[0], v) for v in range(views)], plan)
        peak_bytes = max(peak_bytes, found.peak_bytes)
        for region, mask_ZHW in zip(regions, found.mask_KZHW, strict=True):
            mask_ZHW, truth_ZHW = mask_ZHW[case.seen_by(region)], depth_ZHW[case.seen_by(region)] >= region.depth
            hits = int((mask_ZHW & truth_ZHW).sum())
            score = dice(hits, int(mask_ZHW.sum()) - hits, int(truth_ZHW.sum()) - hits)
            scores[region.value][case.case_id] = score
        if len(examples) < EXAMPLES:
            truth_ZHW = depth_ZHW >= regions[0].depth
            z = int(truth_ZHW.sum(axis=(1, 2)).argmax())
            slice_CHW, score = slices_ZCHW[z].astype(np.float32), scores[regions[0].value][case.case_id]
            examples.append(Example(case.case_id, slice_CHW, truth_ZHW[z], found.mask_KZHW[0, z], z, score))
    return Validation(scores, examples, peak_bytes)


def _format(value: Tensor, precision: str) -> torch.dtype:
    return DTYPES[precision] if value.is_floating_point() else value.dtype

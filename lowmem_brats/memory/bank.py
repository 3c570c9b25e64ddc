"""Plan how the members of a bank run inside a budget, one of them in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.footprint import inference_footprint
from lowmem_brats.memory.planner import InferencePlan, plan_inference


def plan_members(
    networks: Sequence[NetworkConfig],
    size: tuple[int, ...],
    budget: MemoryBudget,
    device: str,
    precision: str,
    brain_ZHW: tuple[int, ...] = (),
) -> InferencePlan:
    """Find the fastest plan by which each of several networks can run, one in memory at a time.

    Its bytes are those of the one that needs most. Arguments and errors as `plan_inference`; of several networks all
    see slices.
    """
    plans = [plan_inference(network, size, budget, device, precision, brain_ZHW=brain_ZHW) for network in networks]
    if len(plans) == 1:
        return plans[0]
    slowest, where = min(plans, key=lambda plan: plan.batch), torch.device(device)
    largest = max(
        (inference_footprint(network, size, slowest.batch, DTYPES[precision], where) for network in networks),
        key=lambda footprint: footprint.total,
    )
    return replace(slowest, predicted_bytes=largest.total, components=asdict(largest))

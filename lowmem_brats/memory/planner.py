"""Plan how a network runs inside a budget. Needs no data, no weights and no card.

The concessions are a fixed list, ordered by what they cost in time. The first that fits is the plan, so more memory
never gives a slower plan. A smaller crop of a volume, which changes what is learnt, is conceded after all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

import torch

from lowmem_brats.config import DICE, NetworkConfig, Objective
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.budget import MIB, MemoryBudget, format_budget, format_bytes
from lowmem_brats.memory.footprint import (
    Concessions,
    Footprint,
    inference_footprint,
    training_footprint,
)
from lowmem_brats.memory.inference_plan import BATCHES as BATCHES
from lowmem_brats.memory.inference_plan import InferencePlan as InferencePlan
from lowmem_brats.memory.inference_plan import plans_of_patches, plans_of_slices
from lowmem_brats.memory.training_plan import TrainPlan as TrainPlan
from lowmem_brats.memory.training_plan import training_plans
from lowmem_brats.networks import PatchNetwork, has_width, patches_of, stride_of, title_of

LADDER = tuple(size * MIB for size in (256, 512, 1024, 1536, 2048, 4096, 6144, 8192))
"""Bytes of the budgets that `plan` shows: the memory of small and old cards."""
WIDTHS = tuple(range(8, 129, 8))
"""Widths among which the largest that fits is searched; multiples of 8, because group norm has 8 groups."""
LARGEST_SIDE = 16384
"""Pixels; no image is larger, and counts of bytes must not overflow."""


Plan = TypeVar("Plan", InferencePlan, TrainPlan)
Planned = TypeVar("Planned")


def plan_inference(
    network: NetworkConfig,
    size: tuple[int, ...],
    budget: MemoryBudget,
    device: str,
    precision: str,
    smallest: bool = False,
    brain_ZHW: tuple[int, ...] = (),
) -> InferencePlan:
    """Find the fastest plan for segmenting slices of H × W pixels, or a volume of Z × H × W voxels, inside a budget.

    A network of patches runs as its authors run it where that fits; only then the fastest other way is looked for.
    `precision`: `fp32`, `fp16` or `bf16`; `smallest`: find the plan with the lowest peak instead, however slow;
    `brain_ZHW`: of a volume, the size of the brain's bounding box. Raises BudgetError if not even one slice or patch
    fits, and InputError as `check_slices`.
    """
    where, patches = torch.device(device), _check_seen(network, size, 1)
    if patches is None:
        plans = plans_of_slices(device, precision)
    else:
        plans = plans_of_patches(patches, size, brain_ZHW or size, device, precision)

    def count(config: NetworkConfig, plan: InferencePlan, name: str) -> Footprint:
        return inference_footprint(config, plan.patch_ZHW or size, plan.batch, DTYPES[name], where)

    return _choose(network, plans, plans[-1:], budget, count, smallest)


def plan_train(
    network: NetworkConfig,
    size: tuple[int, ...],
    batch: int,
    budget: MemoryBudget,
    device: str,
    precision: str,
    objective: Objective = DICE,
    smallest: bool = False,
) -> TrainPlan:
    """Find the fastest plan for training with `batch` slices per step inside a budget; arguments as `plan_inference`.

    For a network of patches, the one with the largest crop that fits in a volume of this size and the budget, and of
    those the fastest; a network whose patch is set has this crop alone. Raises BudgetError if nothing fits, and
    InputError as `check_slices`, or for a network that is not trained here.
    """
    where = torch.device(device)
    _check_seen(network, size, batch)

    def count(config: NetworkConfig, plan: TrainPlan, name: str) -> Footprint:
        shape = plan.crop_ZHW or size
        return training_footprint(config, shape, batch, DTYPES[name], where, _concessions(plan), objective)

    plans = training_plans(network, size, batch, device, precision)
    # Among plans with the same number of passes, the one that concedes most needs least.
    # Between one pass and two it is open: two hold the gradients during a forward pass, which can outweigh the maps
    # that they spare. So both ends are compared.
    least = plans[-1].crop_ZHW, "all", plans[-1].state_on_host
    most = [plan for plan in plans if (plan.crop_ZHW, plan.recompute, plan.state_on_host) == least]
    ends = [plan for plan in most if plan.micro_batch in (batch, 1)]
    return _choose(network, plans, ends, budget, count, smallest)


def _check_seen(network: NetworkConfig, size: tuple[int, ...], batch: int) -> PatchNetwork | None:
    """`patches_of` the network. Raises InputError for a size that it does not see, and for a batch smaller than 1."""
    patches = patches_of(network)
    if len(size) != (3 if patches else 2):
        expected = "Z, H and W of a volume" if patches else "H and W of a slice"
        raise InputError("size", " × ".join(map(str, size)), f"{expected} for {network.name}", "Leave it out.")
    if patches is None:
        check_slices(network, (size[0], size[1]), batch)
    _check_batch(batch)
    return patches


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise InputError("--batch", str(batch), "at least 1", "Use 1 or more.")


def _concessions(plan: TrainPlan) -> Concessions:
    return Concessions(plan.micro_batch, plan.stages, plan.state_on_host)


def leaner_plan(plan: TrainPlan, network: NetworkConfig, size: tuple[int, ...], objective: Objective) -> TrainPlan:
    """Find the fastest plan that needs less than a `plan` that did not fit after all.

    `size`: as `plan_train`; of a network of patches, the patch is set. Raises BudgetError if there is none.
    """
    where, dtype = torch.device(plan.device), DTYPES[plan.precision]
    need = training_footprint(network, size, plan.batch, dtype, where, _concessions(plan), objective).total
    budget = MemoryBudget(need - 1 + plan.reserve_bytes, plan.reserve_bytes)
    return plan_train(network, size, plan.batch, budget, plan.device, plan.precision, objective)


def check_slices(network: NetworkConfig, size_HW: tuple[int, int], batch: int = 1) -> None:
    """Raise InputError for a slice size that the network cannot take, and for a batch smaller than 1."""
    _check_batch(batch)
    if patches_of(network):
        raise InputError("--network", f"{network.name}, which sees patches", "one that sees slices", "Choose another.")
    stride = stride_of(network)
    if any(side % stride or not stride <= side <= LARGEST_SIDE for side in size_HW):
        nearest = [min(max(stride, (side + stride // 2) // stride * stride), LARGEST_SIDE) for side in size_HW]
        raise InputError(
            "--size",
            f"{size_HW[0]} × {size_HW[1]}",
            f"multiples of {stride} from {stride} to {LARGEST_SIDE}",
            f"The nearest is --size {nearest[0]} {nearest[1]}.",
        )


def ladder(
    plan: Callable[[MemoryBudget], Planned], reserve_bytes: int = 0, sizes: Iterable[int | None] = LADDER
) -> list[tuple[int | None, Planned | BudgetError]]:
    """For each of `sizes` (bytes; None: no limit), the size and its plan, or the BudgetError if nothing fits."""
    rows: list[tuple[int | None, Planned | BudgetError]] = []
    for size in sizes:
        try:
            rows.append((size, plan(MemoryBudget(size, reserve_bytes))))
        except BudgetError as error:
            rows.append((size, error))
    return rows


def largest_width(network: NetworkConfig, plan: Callable[[NetworkConfig], object]) -> int | None:
    """The largest of WIDTHS for which `plan` finds a plan, or None; for a network whose width can be chosen.

    It assumes that wider networks need more. It is much faster if `plan` makes `smallest` plans.
    """
    fits, too_wide = -1, len(WIDTHS)
    while too_wide - fits > 1:
        middle = (fits + too_wide) // 2
        try:
            plan(replace(network, width=WIDTHS[middle]))
            fits = middle
        except BudgetError:
            too_wide = middle
    return WIDTHS[fits] if fits >= 0 else None


def _choose(
    network: NetworkConfig,
    plans: Sequence[Plan],
    ends: Sequence[Plan],
    budget: MemoryBudget,
    count: Callable[[NetworkConfig, Plan, str], Footprint],
    smallest: bool,
) -> Plan:
    """The first of `plans` that fits; if `smallest`, the one that needs least.

    `ends`: the plans among which the one that needs least is found; `count(network, plan, precision)`: counts bytes.
    Raises BudgetError if none fits.
    """
    precision = plans[0].precision

    def need(plan: Plan) -> int:
        return count(network, plan, precision).total

    candidates = [min(ends, key=need)] if smallest else plans
    for i, plan in enumerate(candidates):
        if i == 1 and not any(budget.allows(need(end)) for end in ends):
            break  # before the rest is counted for nothing
        if budget.allows(need(plan)):
            footprint = count(network, plan, precision)
            return replace(
                plan,
                predicted_bytes=footprint.total,
                components=asdict(footprint),
                reserve_bytes=budget.reserve_bytes,
            )

    def least(config: NetworkConfig, name: str) -> str:
        tensor_bytes = min(count(config, plan, name).total for plan in ends)
        return format_budget(tensor_bytes + budget.reserve_bytes)

    narrower = replace(network, width=max(network.width // 16 * 8, min(WIDTHS))) if has_width(network) else network
    if precision == "fp32":
        concession = f"half precision (--precision fp16 or bf16: {least(network, 'fp16')})"
    elif narrower != network:
        concession = f"a narrower network (width {narrower.width}: {least(narrower, precision)})"
    else:
        concession = "smaller slices"
    raise BudgetError(
        "--vram",
        f"{format_bytes(budget.total_bytes or 0)}, too little for {title_of(network)}",
        f"at least {least(network, precision)}",
        f"Next to concede: {concession}.",
    )

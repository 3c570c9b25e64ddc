"""The table of plans per budget, and what is promised of it."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.config import DICE, NetworkConfig, Objective
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.budget import MIB, MemoryBudget, format_budget, format_bytes, parse_budget
from lowmem_brats.memory.concessions import stages_to_recompute, training_rows
from lowmem_brats.memory.footprint import Concessions, inference_footprint, training_footprint
from lowmem_brats.memory.planner import (
    InferencePlan,
    TrainPlan,
    ladder,
    largest_width,
    leaner_plan,
    plan_inference,
    plan_train,
)

SMALL = NetworkConfig(width=8, depth=2)
SIZE_HW = (32, 32)
CPU = torch.device("cpu")
KIB = 1024


def train_small(
    budget: MemoryBudget, batch: int = 6, precision: str = "fp32", norm: str = "group", smallest: bool = False
) -> TrainPlan:
    network = NetworkConfig(width=8, depth=2, norm=norm)
    return plan_train(network, SIZE_HW, batch, budget, "cpu", precision, smallest=smallest)


@pytest.mark.parametrize(
    ("megabytes", "precision", "expected"),
    [
        (1700, "fp32", ("none", 10, False)),
        (1600, "fp32", ("widest", 10, False)),
        (900, "fp32", ("all", 10, False)),
        (512, "fp32", ("none", 2, False)),
        (256, "fp32", ("widest", 1, False)),
        (200, "fp32", ("widest", 1, True)),
        (1024, "bf16", ("none", 10, False)),
        (256, "bf16", ("none", 1, False)),
        pytest.param(100, "bf16", ("all", 1, True), marks=pytest.mark.slow),
    ],
)
def test_training_of_width_32_per_budget(megabytes: int, precision: str, expected: tuple[str, int, bool]) -> None:
    plan = plan_train(NetworkConfig(), (240, 240), 10, MemoryBudget(megabytes * MIB), "cpu", precision)
    assert (plan.recompute, plan.micro_batch, plan.state_on_host) == expected
    assert plan.batch == 10
    assert plan.predicted_bytes <= megabytes * MIB
    assert sum(plan.components.values()) == plan.predicted_bytes


@pytest.mark.parametrize(("megabytes", "expected"), [(490, 1), (520, 2), (768, 8), (1024, 16), (1400, 32), (8192, 32)])
def test_inference_of_width_32_per_budget_on_a_card(megabytes: int, expected: int) -> None:
    plan = plan_inference(NetworkConfig(), (240, 240), parse_budget(f"{megabytes}M", "cuda"), "cuda", "fp16")
    assert plan.batch == expected
    assert plan.predicted_bytes + plan.reserve_bytes <= megabytes * MIB


def test_on_the_cpu_four_two_or_one_slice_is_run_at_once() -> None:
    def batch(slices: int, spare: int = 0) -> int:
        need = inference_footprint(SMALL, SIZE_HW, slices, torch.float32, CPU).total
        return plan_inference(SMALL, SIZE_HW, MemoryBudget(need + spare), "cpu", "fp32").batch

    assert [batch(slices) for slices in (1, 2, 3, 4, 32)] == [1, 2, 2, 4, 4]
    assert [batch(slices, spare=-1) for slices in (2, 4)] == [1, 2]


@pytest.mark.parametrize("plan", [InferencePlan("cpu", "fp32", 4), TrainPlan("cpu", "fp32", 4, 2)])
def test_a_plan_written_by_hand_predicts_nothing(plan: InferencePlan | TrainPlan) -> None:
    assert (plan.predicted_bytes, plan.components, plan.reserve_bytes) == (0, {}, 0)


def test_numbers_that_the_project_promises() -> None:
    """Issue 3: smallest plans of the width-32 networks, and the paper's width 64 in 2 GiB with its batch of 10."""
    slices, network, wide = (240, 240), NetworkConfig(width=32), NetworkConfig(width=64)
    assert inference_footprint(network, slices, 1, torch.float16, CPU).total <= 32 * MIB
    assert inference_footprint(network, slices, 1, torch.float32, CPU).total <= 64 * MIB
    two_gib = parse_budget("2G", "cuda")
    for precision in ("fp16", "fp32"):  # what the precision controller may fall back to fits as well
        assert plan_train(wide, slices, 10, two_gib, "cuda", precision).batch == 10
    for precision in ("bf16", "fp32"):
        plan_train(network, slices, 10, MemoryBudget(256 * MIB), "cpu", precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_batch_of_all_slices_of_a_case_fits_into_512_mib(precision: str) -> None:
    plan_train(NetworkConfig(width=32), (240, 240), 155, MemoryBudget(512 * MIB), "cpu", precision)


@pytest.mark.slow
def test_transunet_trains_in_2_gib() -> None:
    """Its weights, gradients and Adam's moments alone take 1.6 GiB; a card keeps 448 MiB of 2 GiB for CUDA."""
    network, two_gib = NetworkConfig(name="transunet"), parse_budget("2G", "cuda")
    for precision, recompute in (("fp16", "widest"), ("fp32", "all")):
        plan = plan_train(network, (240, 240), 10, two_gib, "cuda", precision)
        assert (plan.recompute, plan.micro_batch, plan.state_on_host) == (recompute, 10, True)
        assert plan.predicted_bytes + plan.reserve_bytes <= 2048 * MIB


@pytest.mark.parametrize("batch", [6, 16, 25, 100])
def test_a_large_batch_needs_little_more_than_a_small_one(batch: int) -> None:
    """At most what 6 slices need: the others wait on the host while parts of the batch are on the device."""
    whole = train_small(MemoryBudget(None), 6).predicted_bytes
    plan = train_small(MemoryBudget(whole), batch)
    assert (plan.batch, plan.predicted_bytes <= whole) == (batch, True)
    assert plan.relative_time == (1.0 if batch == 6 else 1.33)
    alone = train_small(MemoryBudget(None), 6, smallest=True).predicted_bytes
    assert train_small(MemoryBudget(None), batch, smallest=True).predicted_bytes == alone


def test_a_loss_that_keeps_more_needs_more() -> None:
    size, plan = (240, 240), TrainPlan("cpu", "fp32", 10, 10)
    needs = {}
    for loss in ("dice", "ce", "dice+ce"):
        needs[loss] = plan_train(NetworkConfig(), size, plan.batch, MemoryBudget(None), "cpu", "fp32", Objective(loss))
    planes = needs["dice+ce"].predicted_bytes - needs["dice"].predicted_bytes
    assert 0 < planes <= 4 * 10 * 240 * 240 * 4


@pytest.mark.parametrize(("width", "size_HW"), [(8, (32, 32)), (64, (16, 16))])
def test_a_plan_is_the_first_row_that_fits(width: int, size_HW: tuple[int, int]) -> None:
    network, batch = NetworkConfig(width=width, depth=2), 5
    rows = {}
    for recompute, micro_batch, on_host, _ in training_rows(batch, micro_batches=True):
        stages = stages_to_recompute(network, size_HW, recompute, torch.float32, CPU)
        conceded = Concessions(micro_batch, stages, on_host)
        need = training_footprint(network, size_HW, batch, torch.float32, CPU, conceded).total
        rows[recompute, micro_batch, on_host] = need
    for budget in sorted(rows.values()):
        plan = plan_train(network, size_HW, batch, MemoryBudget(budget), "cpu", "fp32")
        found = plan.recompute, plan.micro_batch, plan.state_on_host
        assert found == next(row for row, need in rows.items() if need <= budget)


def test_no_limit_gives_the_fastest_plan() -> None:
    plan = train_small(MemoryBudget(None))
    assert (plan.recompute, plan.micro_batch, plan.relative_time) == ("none", 6, 1.0)


def test_batch_norm_is_given_no_micro_batches() -> None:
    least = train_small(MemoryBudget(None), norm="batch").predicted_bytes
    with pytest.raises(BudgetError):
        train_small(MemoryBudget(least // 4), norm="batch")
    train_small(MemoryBudget(least // 4 + 256 * KIB))


@settings(max_examples=60, deadline=None)
@given(st.integers(100 * KIB, 8 * MIB), st.integers(0, 2 * MIB), st.sampled_from(["fp32", "bf16"]))
def test_more_memory_is_never_slower_and_no_plan_exceeds_it(size: int, more: int, precision: str) -> None:
    try:
        plan = train_small(MemoryBudget(size), precision=precision)
    except BudgetError:
        return
    assert plan.predicted_bytes <= size
    assert train_small(MemoryBudget(size + more), precision=precision).relative_time <= plan.relative_time


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8 * MIB), st.integers(0, 4 * MIB))
def test_more_memory_never_gives_smaller_batches(size: int, more: int) -> None:
    def batch(total: int) -> int:
        try:
            return plan_inference(SMALL, SIZE_HW, MemoryBudget(total), "cuda", "fp16").batch
        except BudgetError:
            return 0

    assert batch(size) <= batch(size + more)


@pytest.mark.parametrize(
    ("device", "precision", "next_one"),
    [("cpu", "fp32", "half precision"), ("cuda", "fp16", "width 8")],
)
@pytest.mark.parametrize("task", ["train", "segment"])
def test_a_refusal_names_budgets_that_work(task: str, device: str, precision: str, next_one: str) -> None:
    network = NetworkConfig(width=16, depth=2)

    def plan(config: NetworkConfig, budget: MemoryBudget, precision: str) -> object:
        if task == "train":
            return plan_train(config, SIZE_HW, 3, budget, device, precision)
        return plan_inference(config, SIZE_HW, budget, device, precision)

    reserve = 300 * MIB if device == "cuda" else 0
    with pytest.raises(BudgetError, match=next_one) as refusal:
        plan(network, MemoryBudget(0, reserve), precision)
    named = re.findall(r"\d+M\b", str(refusal.value))
    assert len(named) == 2
    plan(network, parse_budget(named[0], device, reserve_bytes=reserve), precision)
    conceded = (network, "fp16") if "half" in next_one else (NetworkConfig(width=8, depth=2), precision)
    plan(conceded[0], parse_budget(named[1], device, reserve_bytes=reserve), conceded[1])


def test_a_network_of_fixed_size_has_smaller_slices_to_concede() -> None:
    network = NetworkConfig(name="emcad-b0")
    for plan in (
        lambda: plan_inference(network, SIZE_HW, MemoryBudget(0), "cuda", "fp16"),
        lambda: plan_train(network, SIZE_HW, 1, MemoryBudget(0), "cuda", "fp16"),
    ):
        with pytest.raises(BudgetError, match=r"too little for emcad-b0; expected .*Next to concede: smaller slices"):
            plan()


@pytest.mark.parametrize(
    ("width", "size_HW", "batch"), [(8, (32, 32), 6), (8, (64, 96), 1), (32, (16, 16), 2), (64, (16, 16), 2)]
)
def test_the_smallest_plan_needs_least_and_a_refusal_names_it(width: int, size_HW: tuple[int, int], batch: int) -> None:
    network = NetworkConfig(width=width, depth=2)
    needs = []
    for recompute, micro_batch, on_host, _ in training_rows(batch, micro_batches=True):
        stages = stages_to_recompute(network, size_HW, recompute, torch.float32, CPU)
        conceded = Concessions(micro_batch, stages, on_host)
        needs.append(training_footprint(network, size_HW, batch, torch.float32, CPU, conceded).total)
    arguments = network, size_HW, batch
    smallest = plan_train(*arguments, MemoryBudget(min(needs)), "cpu", "fp32", smallest=True)
    assert smallest.predicted_bytes == min(needs)
    assert plan_train(*arguments, MemoryBudget(min(needs)), "cpu", "fp32").predicted_bytes == min(needs)
    refusal = re.escape(f"--vram: {format_bytes(min(needs) - 1)}, too little for ")
    with pytest.raises(BudgetError, match=f"^{refusal}.*; expected at least {-(-min(needs) // MIB)}M"):
        plan_train(*arguments, MemoryBudget(min(needs) - 1), "cpu", "fp32")


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_leaner_plans_need_less_and_less_up_to_the_smallest(norm: str) -> None:
    network = NetworkConfig(width=8, depth=2, norm=norm)
    smallest = plan_train(network, SIZE_HW, 6, MemoryBudget(None), "cpu", "fp32", smallest=True)
    plans = [train_small(MemoryBudget(None), norm=norm)]
    with suppress(BudgetError):
        while True:
            plans.append(leaner_plan(plans[-1], network, SIZE_HW, DICE))
    needs = [plan.predicted_bytes for plan in plans]
    assert needs == sorted(set(needs), reverse=True)
    assert [plan.relative_time for plan in plans] == sorted(plan.relative_time for plan in plans)
    assert len(plans) > 2
    assert needs[-1] == smallest.predicted_bytes


def test_two_passes_can_need_more_than_one() -> None:
    """With wide networks and small slices: they hold gradients through a forward pass."""
    network = NetworkConfig(width=64, depth=2)
    plan = plan_train(network, (16, 16), 2, MemoryBudget(None), "cpu", "fp32", smallest=True)
    assert (plan.recompute, plan.micro_batch) == ("all", 2)


@pytest.mark.parametrize(
    ("size_HW", "nearest"),
    [((100, 100), "96 96"), ((0, 0), "16 16"), ((-16, 32), "16 32"), ((104, 16), "112 16"), ((10**18, 16), "16384 16")],
)
def test_slices_that_the_network_cannot_take(size_HW: tuple[int, int], nearest: str) -> None:
    for plan in (
        lambda: plan_inference(NetworkConfig(width=8), size_HW, MemoryBudget(None), "cpu", "fp32"),
        lambda: plan_train(NetworkConfig(width=8), size_HW, 1, MemoryBudget(None), "cpu", "fp32"),
    ):
        with pytest.raises(InputError, match=f"nearest is --size {nearest}\\."):
            plan()


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_none(batch: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        train_small(MemoryBudget(None), batch)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_smallest_is_the_last_resort(norm: str) -> None:
    network = NetworkConfig(width=8, depth=2, norm=norm)
    plan = plan_train(network, SIZE_HW, 6, MemoryBudget(None), "cpu", "fp32", smallest=True)
    assert (plan.recompute, plan.micro_batch) == ("all", 1 if norm == "group" else 6)
    assert train_small(MemoryBudget(plan.predicted_bytes), norm=norm) == plan
    assert plan_inference(SMALL, SIZE_HW, MemoryBudget(None), "cuda", "fp16", smallest=True).batch == 1


def test_ladder_says_what_each_budget_gives() -> None:
    rows = ladder(train_small, sizes=(64 * KIB, 8 * MIB))
    assert [size for size, _ in rows] == [64 * KIB, 8 * MIB]
    assert isinstance(rows[0][1], BudgetError)
    assert rows[1][1] == train_small(MemoryBudget(8 * MIB))
    usual = [format_budget(size or 0) for size, _ in ladder(lambda budget: budget)]
    assert usual == ["256M", "512M", "1G", "1536M", "2G", "4G", "6G", "8G"]
    assert ladder(train_small, sizes=(None,)) == [(None, train_small(MemoryBudget(None)))]


def test_largest_width() -> None:
    def plan(network: NetworkConfig) -> object:
        return plan_inference(network, SIZE_HW, budget, "cpu", "fp32")

    budget = MemoryBudget(inference_footprint(NetworkConfig(width=24, depth=2), SIZE_HW, 1, torch.float32, CPU).total)
    assert largest_width(SMALL, plan) == 24
    budget = MemoryBudget(1)
    assert largest_width(SMALL, plan) is None

"""Crops are planned from the largest down; what changes nothing that is learnt is conceded before a crop is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowmem_brats.config import NetworkConfig, Objective
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import TrainingStep, place, split_batch
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.footprint import Concessions, training_footprint
from lowmem_brats.memory.planner import leaner_plan, plan_train
from lowmem_brats.memory.training_plan import TrainPlan, training_plans
from lowmem_brats.networks import build_any
from lowmem_brats.networks.segresnet import SegResNet

pytest.importorskip("monai")

CPU = torch.device("cpu")
NETWORK = NetworkConfig(name="segresnet", width=8, outputs=3)
SQUARED = Objective("squared-dice")
VOLUME = (20, 24, 30)


@pytest.fixture
def two_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ladder of two crops, so that little has to be counted."""
    monkeypatch.setattr(SegResNet, "crops_ZHW", ((24, 32, 32), (16, 16, 16)))


def test_the_order_is_crop_then_time(two_crops: None) -> None:
    rows = [(p.crop_ZHW, p.recompute, p.micro_batch) for p in training_plans(NETWORK, VOLUME, 2, "cpu", "fp32")]
    steps = [("none", 2), ("widest", 2), ("all", 2), ("none", 1), ("widest", 1), ("all", 1)]
    assert rows == [(crop, *step) for crop in ((24, 24, 32), (16, 16, 16)) for step in steps]


def test_the_largest_crop_that_fits_is_planned_and_a_smaller_one_is_told(two_crops: None) -> None:
    def plan(total: int | None, **more: bool) -> TrainPlan:
        return plan_train(NETWORK, VOLUME, 1, MemoryBudget(total), "cpu", "bf16", SQUARED, **more)

    need = [(p, plan_bytes(p)) for p in training_plans(NETWORK, VOLUME, 1, "cpu", "bf16")]
    for total in sorted({least for _, least in need}):
        found = plan(total)
        assert found.predicted_bytes <= total
        expected = next(p for p, least in need if least <= total)
        assert (found.crop_ZHW, found.recompute) == (expected.crop_ZHW, expected.recompute)
        assert bool(found.smaller_crop) == (found.crop_ZHW == (16, 16, 16))
    assert plan(None).conceded == ""
    least = plan(None, smallest=True)
    assert least.conceded == "crops of 16 × 16 × 16 voxels in place of 24 × 24 × 32, recomputing all stages"
    with pytest.raises(BudgetError, match="too little for segresnet of width 8"):
        plan(least.predicted_bytes - 1)


def plan_bytes(plan: TrainPlan) -> int:
    concessions = Concessions(plan.micro_batch, plan.stages)
    return training_footprint(NETWORK, plan.crop_ZHW, plan.batch, torch.bfloat16, CPU, concessions, SQUARED).total


@pytest.mark.parametrize(
    ("batch", "micro_batch", "recompute", "dtype"),
    [(1, 1, "none", torch.float32), (1, 1, "all", torch.bfloat16), (2, 1, "widest", torch.bfloat16)],
)
def test_bytes_are_predicted_to_the_last(batch: int, micro_batch: int, recompute: str, dtype: torch.dtype) -> None:
    name = "fp32" if dtype == torch.float32 else "bf16"
    rows = training_plans(replace(NETWORK, patch="16x16x24"), VOLUME, batch, "cpu", name)
    (plan,) = (each for each in rows if (each.recompute, each.micro_batch) == (recompute, micro_batch))
    concessions = Concessions(micro_batch, plan.stages)
    predicted = training_footprint(NETWORK, (16, 16, 24), batch, dtype, CPU, concessions, SQUARED).total
    step = TrainingStep(place(build_any(NETWORK), CPU).train(), find_loss("squared-dice"))
    crops, target = torch.randn(batch, 4, 24, 16, 16), (torch.rand(batch, 3, 24, 16, 16) < 0.2).float()
    parts = split_batch(crops, target, micro_batch)
    step.take(parts, 1e-3, dtype, plan.stages)
    with PeakMeter(CPU, *step.resident()) as meter:
        step.take(parts, 1e-3, dtype, plan.stages)
    assert meter.peak_bytes == predicted


def test_a_network_whose_patch_is_set_has_this_crop_alone() -> None:
    network = replace(NETWORK, patch="16x24x16")
    plan = plan_train(network, VOLUME, 2, MemoryBudget(None), "cpu", "bf16", SQUARED)
    assert (plan.crop_ZHW, plan.wanted_ZHW, plan.smaller_crop) == ((16, 24, 16), (16, 24, 16), "")
    leaner = leaner_plan(plan, network, (16, 24, 16), SQUARED)
    assert leaner.crop_ZHW == (16, 24, 16)
    assert leaner.predicted_bytes < plan.predicted_bytes
    assert leaner.conceded in ("recomputing widest stages", "recomputing all stages")
    small = training_plans(network, VOLUME, 2, "cpu", "bf16")[3]
    assert small.conceded == "1 of 2 crops at once"
    with pytest.raises(InputError, match="network patch: 16x20x16; expected sides that are multiples of 8 × 8 × 8"):
        plan_train(replace(NETWORK, patch="16x20x16"), VOLUME, 1, MemoryBudget(None), "cpu", "bf16")


def test_what_is_not_the_size_of_a_volume_is_refused() -> None:
    with pytest.raises(InputError, match="Z, H and W of a volume for segresnet"):
        plan_train(NETWORK, (24, 24), 1, MemoryBudget(None), "cpu", "fp32")
    with pytest.raises(InputError, match="H and W of a slice for unet2d"):
        plan_train(NetworkConfig(), (24, 24, 24), 1, MemoryBudget(None), "cpu", "fp32")
    with pytest.raises(InputError, match="--batch: 0"):
        plan_train(NETWORK, VOLUME, 0, MemoryBudget(None), "cpu", "fp32")

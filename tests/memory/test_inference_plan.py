"""Plans of patches: the authors' way where it fits, else the fastest that does, and an error that names what would."""

from __future__ import annotations

import json
import re

import foreign_models as models
import pytest

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.budget import MIB, MemoryBudget
from lowmem_brats.memory.inference_plan import plans_of_patches
from lowmem_brats.memory.planner import InferencePlan, plan_inference
from lowmem_brats.networks import patches_of

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")

SEGRESNET = NetworkConfig(name="segresnet", width=8, outputs=3, patch="48x64x64")
VOLUME, BRAIN = (48, 64, 64), (40, 48, 56)


def flat() -> NetworkConfig:
    """A network of nnU-Net's 2-D configuration."""
    told = {"class": "PlainConvUNet", "settings": models.architecture(2)["arch_kwargs"]}
    return NetworkConfig(name="nnunet", outputs=3, patch="1x32x32", architecture=json.dumps(told))


def plan(mebibytes: float | None, config: NetworkConfig = SEGRESNET, smallest: bool = False) -> InferencePlan:
    budget = MemoryBudget(None if mebibytes is None else int(mebibytes * MIB))
    return plan_inference(config, VOLUME, budget, "cpu", "fp32", smallest, brain_ZHW=BRAIN)


def test_without_a_limit_it_is_the_authors_way() -> None:
    found = plan(None)
    assert (found.patch_ZHW, found.cropped, found.relative_time, found.batch) == ((48, 64, 64), False, 1.0, 1)
    assert found.predicted_bytes == sum(found.components.values())


def test_smaller_budgets_get_smaller_patches_and_more_memory_no_slower_ones() -> None:
    whole = plan(None).predicted_bytes / MIB
    budgets = [whole * share for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)]
    found = [plan(each) for each in budgets]
    assert all(each.cropped and each.predicted_bytes <= size * MIB for each, size in zip(found, budgets, strict=True))
    times = [each.relative_time for each in found]
    assert times == sorted(times)
    assert len({each.patch_ZHW for each in found}) > 2
    least = plan(None, smallest=True)
    assert least.predicted_bytes <= min(each.predicted_bytes for each in found)
    assert least.patch_ZHW == (16, 16, 16)


def test_too_small_a_budget_names_one_that_works() -> None:
    with pytest.raises(BudgetError) as caught:
        plan(1)
    needed = re.fullmatch(r"at least (\d+)M", caught.value.expected)
    assert needed
    assert plan(int(needed[1])).predicted_bytes <= int(needed[1]) * MIB
    with pytest.raises(BudgetError):
        plan(int(needed[1]) - 1)


def test_only_slices_are_seen_several_at_once() -> None:
    outline, of_slices = patches_of(SEGRESNET), patches_of(flat())
    assert outline
    assert of_slices
    assert {each.batch for each in plans_of_patches(outline, VOLUME, BRAIN, "cuda", "fp16")} == {1}
    assert [each.batch for each in plans_of_patches(of_slices, VOLUME, BRAIN, "cpu", "fp32")][:3] == [4, 2, 1]
    assert plan(None, flat()).batch == 4
    assert plan(None, flat()).patch_ZHW == (1, 32, 32)


def test_a_size_of_the_other_kind_is_refused() -> None:
    with pytest.raises(InputError, match="Z, H and W of a volume for segresnet"):
        plan_inference(SEGRESNET, (240, 240), MemoryBudget(None), "cpu", "fp32")
    with pytest.raises(InputError, match="H and W of a slice for unet2d"):
        plan_inference(NetworkConfig(), VOLUME, MemoryBudget(None), "cpu", "fp32")

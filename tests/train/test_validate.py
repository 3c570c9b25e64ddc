"""Validation is by patient, on the slices that a network will see, in a copy of the format that will segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from easy_cases import DEPTH, SIDE, TINY, easy_cached, easy_depth, store_slices

from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.engine import step
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import build_network
from lowmem_brats.segment.stack import Prediction
from lowmem_brats.train import validate as validate_module
from lowmem_brats.train.validate import EXAMPLES, THRESHOLDS, best_thresholds, validate


def says_tumour(outputs: int = 1) -> dict[str, torch.Tensor]:
    """Weights of a network that calls all brain tumour, in its first output; none in the others."""
    network = build_network(NetworkConfig(width=8, depth=1, outputs=outputs))
    torch.nn.init.zeros_(network.head.weight)
    network.head.bias.data = torch.tensor([1.0] + [-1.0] * (outputs - 1))
    return network.state_dict()


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    """A case with tumour in all slices, and one with tumour in the upper half."""
    full = easy_cached(tmp_path, "full")
    depth_ZHW = np.array(easy_depth())
    depth_ZHW[: DEPTH // 2] = 0
    return [full, store_slices(tmp_path / "half.json", "half", full.slices_ZCHW, depth_ZHW)]


@pytest.fixture
def deep(tmp_path: Path) -> CachedCase:
    """A case that is seen from three sides."""
    slices_ZCHW = np.random.default_rng(0).normal(size=(SIDE, 4, SIDE, SIDE)).astype(np.float16)
    case = store_slices(tmp_path / "deep.json", "deep", slices_ZCHW, np.array(easy_depth(SIDE)))
    assert not case.flat
    return case


def test_flat_stacks_are_seen_without_neighbours(cases: list[CachedCase], deep: CachedCase) -> None:
    config = NetworkConfig(width=8, depth=1, context=1)
    torch.manual_seed(0)
    state = build_network(config).state_dict()
    alone = {key: value.clone() for key, value in state.items()}
    next(iter(alone.values()))[:, 4:] = 0
    for case in (cases[0], deep):
        sums = []
        for weights in (state, alone):
            plan = InferencePlan("cpu", "fp32", batch=1)
            ((_, found, _),) = validate_module._predict(weights, config, [case], [Region.WT], plan, False)
            sums.append(found.sum_KZHW)
        assert np.array_equal(*sums) == case.flat


def test_validation_looks_where_segmenting_does(deep: CachedCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, so every second axial slice is enough; to choose a threshold all slices are needed."""
    passes, true = [], step.predict_batch
    monkeypatch.setattr(step, "predict_batch", lambda *arguments: (passes.append(1), true(*arguments))[1])
    config, nothing = NetworkConfig(width=8, depth=1, views=3), says_tumour()
    nothing["head.bias"] *= -1
    validate(nothing, config, [deep], [Region.WT], "cpu", "fp32")
    assert len(passes) == SIDE / 2
    best_thresholds(nothing, config, [deep], [Region.WT], "cpu", "fp32")
    assert len(passes) == SIDE / 2 + 3 * SIDE


def test_dice_is_by_patient_on_the_slices_seen(cases: list[CachedCase]) -> None:
    """All brain called tumour: Dice 2·TP / (2·TP + FP), over the slices with the parent only."""
    found = validate(says_tumour(), TINY, cases, [Region.TC], "cpu", "fp32")
    core = int((easy_depth()[0] >= 2).sum())
    expected = 2 * core / (core + SIDE * SIDE)
    assert found.dice == {"tc": {"full": pytest.approx(expected), "half": pytest.approx(expected)}}
    assert found.peak_bytes > sum(p.numel() * 4 for p in build_network(TINY).parameters())


def test_one_network_is_scored_on_every_region(cases: list[CachedCase]) -> None:
    config = NetworkConfig(width=8, depth=1, outputs=3)
    found = validate(says_tumour(3), config, cases, list(Region), "cpu", "fp32")
    tumour = int((easy_depth()[0] >= 1).sum())
    assert found.dice["wt"]["full"] == pytest.approx(2 * tumour / (tumour + SIDE * SIDE))
    assert found.dice["tc"] == found.dice["et"] == {"full": 0.0, "half": 0.0}


def test_the_weights_given_stay_as_they_are(cases: list[CachedCase]) -> None:
    state = says_tumour()
    before = {key: value.clone() for key, value in state.items()}
    for precision in ("bf16", "fp32"):
        validate(state, TINY, cases, [Region.WT], "cpu", precision)
        assert all(value.dtype == torch.float32 and torch.equal(value, before[key]) for key, value in state.items())


def test_what_half_precision_cannot_hold_is_validated_in_fp32(cases: list[CachedCase]) -> None:
    state = says_tumour()
    state["head.bias"] *= 1e6
    half, full = (validate(state, TINY, cases, [Region.WT], "cpu", precision) for precision in ("fp16", "fp32"))
    assert half.precision == full.precision == "fp32"
    assert half.dice == full.dice
    assert min(half.dice["wt"].values()) > 0
    assert best_thresholds(state, TINY, cases, [Region.WT], "cpu", "fp16")["wt"][1] > 0


def test_examples_are_the_busiest_slices_of_the_first_patients(tmp_path: Path, cases: list[CachedCase]) -> None:
    more = [easy_cached(tmp_path, f"more {n}") for n in range(EXAMPLES)]
    found = validate(says_tumour(), TINY, [cases[1], *more], [Region.WT], "cpu", "fp32")
    assert [example.case_id for example in found.examples] == ["half", "more 0", "more 1", "more 2"]
    example = found.examples[0]
    assert example.z == DEPTH // 2
    assert example.dice == found.dice["wt"]["half"]
    np.testing.assert_array_equal(example.reference_HW, easy_depth()[0] >= 1)
    np.testing.assert_array_equal(example.slice_CHW, cases[1].slices_ZCHW[example.z].astype(np.float32))
    assert example.predicted_HW.all()


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_threshold_is_where_dice_is_best(
    cases: list[CachedCase], deep: CachedCase, monkeypatch: pytest.MonkeyPatch, threshold: float, views: int
) -> None:
    """Mean logits a little above it in the tumour, a little below it in the brain around, 0 outside the brain.

    Two cases are too flat to be seen from three sides, the third is not.
    """
    config = NetworkConfig(width=8, depth=1, outputs=3, views=views)
    given = []
    for case in (cases := [*cases, deep]):
        deeper_KZHW = case.depth_ZHW >= np.array([1, 2, 3])[:, None, None, None]
        used = case.usable(views)
        sum_KZHW = (used * np.where(deeper_KZHW, threshold + 0.1, threshold - 0.1)).astype(np.float32)
        sum_KZHW[..., :4] = 0
        assert not deeper_KZHW[..., :3].any()
        found = Prediction(np.where(deeper_KZHW, used * (threshold + 0.1), sum_KZHW), 0, 1, [], 0)
        given.append((case, found, InferencePlan("cpu", "fp32", 1)))
    monkeypatch.setattr(validate_module, "_predict", lambda *arguments: given)
    best = best_thresholds({}, config, cases, list(Region), "cpu", "fp32")
    assert best == dict.fromkeys(("wt", "tc", "et"), (threshold, 1.0))


def test_of_equally_good_thresholds_the_first(cases: list[CachedCase]) -> None:
    """All brain is tumour at each threshold below 1."""
    dice = np.mean(list(validate(says_tumour(), TINY, cases, [Region.WT], "cpu", "fp32").dice["wt"].values()))
    found = best_thresholds(says_tumour(), TINY, cases, [Region.WT], "cpu", "fp32")
    assert found == {"wt": (0.0, pytest.approx(dice, abs=1e-4))}

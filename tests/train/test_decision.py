"""The decision network is told the best choice for each slice, and learns to make it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from easy_cases import SIDE, easy_cached, easy_depth, store_slices
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import build_network
from lowmem_brats.train.decision import Labels, best_choice, label_slices, train_decision
from lowmem_brats.weights.file import save_network
from lowmem_brats.weights.header import WeightsFile

PAPER_COSTS = (0.61, 1.07, 2.36, 4.98)
PLAN = InferencePlan("cpu", "fp32", batch=2)


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((0.5, 0.6, 0.7, 0.8), 4),
        ((0.8, 0.8, 0.8, 0.8), 1),  # equally good: the cheapest
        ((0.8, 0.8003, 0.8, 0.8), 2),  # α times the difference of the softmax is 0.00025
        ((0.8, 0.8002, 0.8, 0.8), 1),
        ((0.0, 0.0, 0.0, 0.0), 1),
        ((0.1, 0.9, 0.9, 0.2), 2),
    ],
)
def test_the_best_choice_is_equation_4(dice: tuple[float, ...], best: int) -> None:
    assert best_choice(np.array([dice]), PAPER_COSTS).tolist() == [best]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_best_choice_loses_at_most_what_alpha_allows(dice: list[float]) -> None:
    (best,) = best_choice(np.array([dice]), PAPER_COSTS).tolist()
    assert max(dice) - dice[best - 1] <= 0.0004  # as the facts of the paper say


def write_member(path: Path, channel: int, depth: int) -> WeightsFile:
    """A U-Net of one level whose every logit is positive where a modality of the easy cases is."""
    config = NetworkConfig(width=8, depth=depth, norm="none", outputs=3, views=3)
    network = build_network(config)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["down.0.0.weight"][0, channel, 1, 1] = state["down.0.2.weight"][0, 0, 1, 1] = 1
    last = f"up.{depth - 1}.conv"
    state[f"{last}.0.weight"][0, config.width, 1, 1] = state[f"{last}.2.weight"][0, 0, 1, 1] = 1
    state["head.weight"][:, 0], state["head.bias"][:] = 1, -0.05
    network.load_state_dict(state)
    file = WeightsFile(path, tuple(Region), config, {}, {})
    save_network(network, file)
    return file


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    """A case with tumour in every slice, and one without any."""
    empty = np.random.default_rng(1).normal(0, 0.1, (6, 4, SIDE, SIDE)).astype(np.float16) - 1
    return [
        easy_cached(tmp_path),
        store_slices(tmp_path / "empty.json", "empty", empty, np.zeros((6, SIDE, SIDE), np.uint8)),
    ]


def test_labels_are_the_member_with_the_best_mean_dice(cases: list[CachedCase], tmp_path: Path) -> None:
    """FLAIR shows WT and T1ce shows ET, so the members' masks, and their Dice, can be told by hand."""
    members = [write_member(tmp_path / "flair", 3, 1), write_member(tmp_path / "t1ce", 1, 2)]
    labels = label_slices(cases, members, [1.0, 2.0], PLAN)
    n_easy = int((labels.rows[:, 0] == 0).sum())
    assert (labels.best_N[n_easy:] == 0).all()
    assert len(labels.best_N) > n_easy
    truths = [easy_depth()[0] >= region.depth for region in Region]
    by_hand = []
    for found in (truths[0], truths[2]):
        dice = [2 * (found & truth).sum() / (found.sum() + truth.sum()) for truth in truths]
        by_hand.append(float(np.mean(dice)))
    axial_N = (labels.rows[:, 0] == 0) & (labels.rows[:, 1] == 0)
    np.testing.assert_allclose(labels.dice_NM[axial_N], [by_hand] * int(axial_N.sum()), atol=1e-6)
    assert (labels.best_N[axial_N] == 1 + int(np.argmax(by_hand))).all()


def test_it_learns_which_slices_to_skip_and_which_member_to_choose(tmp_path: Path) -> None:
    """Bright slices are best for member 2, dark ones for member 1, and those in between hold nothing."""
    rng, cases, best = np.random.default_rng(0), list[CachedCase](), list[int]()
    for number, (level, choice) in enumerate([(1.5, 2), (-1.5, 1), (0.5, 0)] * 2):
        slices = rng.normal(level, 0.05, (6, 4, SIDE, SIDE)).astype(np.float16)
        depth = np.full((6, SIDE, SIDE), int(choice > 0), np.uint8)
        cases.append(store_slices(tmp_path / f"{number}.json", f"{number}", slices, depth))
        best += [choice] * 6
    rows = np.array([(i, 0, n) for i in range(6) for n in range(6)])
    labels = Labels(rows, np.array(best), np.zeros((36, 2)))
    network, frame_HW = train_decision(cases, labels, 3, seed=0, epochs=60)
    assert not network.training
    slices_NCHW = torch.cat([torch.from_numpy(np.array(case.slices_ZCHW)).float() for case in cases])
    assert frame_HW == tuple(slices_NCHW.shape[2:])
    with torch.no_grad():
        assert network(slices_NCHW).argmax(dim=1).tolist() == best


def test_the_same_seed_gives_the_same_network(cases: list[CachedCase]) -> None:
    rows = np.array([(i, 0, n) for i in range(2) for n in range(6)])
    labels = Labels(rows, np.repeat([1, 0], 6), np.zeros((12, 1)))
    first, second, other = (train_decision(cases, labels, 2, seed, epochs=2)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["scores.weight"], other["scores.weight"])

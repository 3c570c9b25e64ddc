"""Learning rate, early stopping and the weights' average, by hand-made tables and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowmem_brats.config import TrainConfig
from lowmem_brats.train.schedule import AVERAGE_EVERY, WeightAverage, learning_rate, stops_early

CONFIG = TrainConfig(learning_rate=0.4, warmup=4)


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (1, 0.2), (3, 0.4), (4, 0.4), (1000, 0.4)])
def test_the_rate_rises_over_the_warm_up(steps: int, rate: float) -> None:
    assert learning_rate(CONFIG, steps, 0.0, []) == pytest.approx(rate)
    assert learning_rate(replace(CONFIG, schedule="plateau"), steps, 0.7, []) == pytest.approx(rate)


@pytest.mark.parametrize(("progress", "share"), [(0, 1), (0.25, (1 + math.sqrt(0.5)) / 2), (0.5, 0.5), (1, 0)])
def test_the_cosine_falls_to_zero(progress: float, share: float) -> None:
    assert learning_rate(CONFIG, 100, progress, [0.5] * 50) == pytest.approx(0.4 * share)


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 1), (1 / 14, 0.5), (0.1428, 0), (0.1429, 1), (2 / 7, 0.5), (0.4285, 0), (0.4287, 1), (5 / 7, 0.5), (1, 0)],
)
def test_it_restarts_twice_each_time_for_twice_as_long(progress: float, share: float) -> None:
    """Three half cosines of 1/7, 2/7 and 4/7 of the training."""
    rate = learning_rate(replace(CONFIG, schedule="restarts"), 100, progress, [0.5] * 50)
    assert rate == pytest.approx(0.4 * share, abs=1e-5)


def test_no_warm_up() -> None:
    assert learning_rate(replace(CONFIG, warmup=0), 0, 0.0, []) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("scores", "halvings"),
    [
        ([], 0),
        ([0.5], 0),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 0),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.5], 1),  # as good is not better
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.6], 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 0),
        ([0.5] + [0.4] * 9, 1),
        ([0.5] + [0.4] * 10, 2),
        ([0.5] + [0.4] * 5 + [0.6] + [0.5] * 5, 2),
    ],
)
def test_the_plateau_halves_after_five_epochs_without_a_better_score(scores: list[float], halvings: int) -> None:
    rate = learning_rate(replace(CONFIG, schedule="plateau"), 100, 0.9, scores)
    assert rate == pytest.approx(0.4 / 2**halvings)


@pytest.mark.parametrize(
    ("scores", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.5], 2, True),  # as good is not better
        ([0.5, 0.4, 0.4], None, False),
    ],
)
def test_early_stopping(scores: list[float], patience: int | None, stops: bool) -> None:
    assert stops_early(replace(CONFIG, patience=patience), scores) is stops


def network(value: float) -> nn.Sequential:
    """A convolution and a batch norm, all weights the same."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    for parameter in layers.parameters():
        nn.init.constant_(parameter, value)
    return layers


def test_the_average_against_its_sum_written_out() -> None:
    layers, expected = network(1.0), 1.0
    average = WeightAverage(layers, decay=0.8)
    for update in range(1, 100):
        for parameter in layers.parameters():
            nn.init.constant_(parameter, float(update))
        layers[1].num_batches_tracked.fill_(update)  # type: ignore[operator,union-attr]
        average.follow(layers, update * AVERAGE_EVERY)
        decay = min(0.8, update / (update + 10))
        expected = decay * expected + (1 - decay) * update
        assert average.state["0.bias"].tolist() == pytest.approx([expected] * 2), update
    assert average.updates == 99
    for key, value in average.state.items():
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(value, torch.full_like(value, expected))
    assert int(average.state["1.num_batches_tracked"]) == 99, "a count is not averaged"
    assert expected == pytest.approx(99 - 0.8 / 0.2, abs=0.01), "it lags behind by decay / (1 − decay) updates"


def test_it_follows_every_tenth_step_only() -> None:
    average, layers, followed = WeightAverage(network(1.0), decay=0.5), network(2.0), []
    for steps in range(1, 35):
        average.follow(layers, steps)
        followed.append(average.updates)
    assert followed == [steps // 10 for steps in range(1, 35)]


def test_it_is_a_copy() -> None:
    layers = network(1.0)
    average = WeightAverage(layers, decay=0.5)
    average.follow(network(3.0), AVERAGE_EVERY)
    assert torch.equal(layers[0].weight, torch.ones(2, 1, 1, 1))
    nn.init.constant_(layers[0].weight, 9.0)  # type: ignore[arg-type]
    assert float(average.state["0.weight"].max()) < 3.0
    assert all(value.device.type == "cpu" for value in average.state.values())


def test_it_goes_on_from_a_state() -> None:
    whole, first = WeightAverage(network(1.0), 0.9), WeightAverage(network(1.0), 0.9)
    for average in (whole, first):
        for update in range(1, 6):
            average.follow(network(float(update)), update * AVERAGE_EVERY)
    second = WeightAverage(network(7.0), 0.9)
    second.load({key: value.clone() for key, value in first.state.items()}, first.updates)
    for average in (whole, second):
        average.follow(network(6.0), 6 * AVERAGE_EVERY)
    assert all(torch.equal(whole.state[key], second.state[key]) for key in whole.state)

"""One network's training: it keeps the best epoch, ends when it should, goes on where it was, and obeys its plans."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from easy_cases import EASY, easy_cached

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.engine.step import place
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.networks import build_network
from lowmem_brats.train import loop as fit
from lowmem_brats.train.loop import Listener, NetworkTraining
from lowmem_brats.train.schedule import WeightAverage
from lowmem_brats.train.state import Epoch
from lowmem_brats.train.validate import Validation, validate

Make = Callable[..., NetworkTraining]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(config, seed=0, regions=(WT,), formats=("fp32",))`: a training on one easy case, another to validate on.

    `on_host`: with the optimizer's state in host memory.
    """
    cases = easy_cached(tmp_path, "case"), easy_cached(tmp_path, "held out", 1)

    def make(
        config: TrainConfig = EASY,
        seed: int = 0,
        regions: tuple[Region, ...] = (Region.WT,),
        formats: tuple[str, ...] = ("fp32",),
        on_host: bool = False,
    ) -> NetworkTraining:
        torch.manual_seed(seed)
        network = place(build_network(replace(config.network, outputs=len(regions))), torch.device("cpu"))
        config = replace(config, network=replace(config.network, outputs=len(regions)))
        plans = [TrainPlan("cpu", name, config.batch, config.batch, state_on_host=on_host) for name in formats]
        return NetworkTraining(regions, network.train(), cases[:1], cases[1:], config, plans)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock of seconds that only the test moves."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def losses_of(training: NetworkTraining, steps: int) -> list[float]:
    """Train until so many steps are taken, and return each step's loss."""
    losses: list[float] = []

    class ReachedError(Exception):
        pass

    def stop(*_: object) -> None:
        losses.append(training.history.losses[-1])
        if training.history.steps == steps:
            raise ReachedError

    with pytest.raises(ReachedError):
        training.run(Listener(on_progress=stop))
    return losses


def test_the_scale_of_the_loss_is_restored(make: Make) -> None:
    before, after = make(), make()
    before.state.step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    tensors, state = before.state.save()
    assert after.state.step.scaler.get_scale() != 64
    after.state.restore(tensors, json.loads(json.dumps(state)))
    assert after.state.step.scaler.get_scale() == 64


# What is kept


@pytest.mark.parametrize(("scores", "best"), [([0.2, 0.9, 0.5], 2), ([0.3, 0.4, 0.4], 3), ([0.7, 0.1, 0.2], 1)])
def test_the_best_epoch_s_averaged_weights_are_kept(
    make: Make, scores: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def score(state: dict[str, torch.Tensor], *_: object) -> Validation:
        states.append(copy.deepcopy(dict(state)))
        value = scores[len(states) - 1]
        return Validation({"wt": {"a": value + 0.1, "b": value - 0.1}}, [], 0)

    monkeypatch.setattr(fit, "validate", score)
    training = make(replace(EASY, epochs=3, batch=1))  # six steps an epoch; the average follows every ten
    chosen = training.run(Listener())
    assert (chosen.number, chosen.mean_dice) == (best, pytest.approx(scores[best - 1]))
    assert [epoch.number for epoch in training.history.epochs] == [1, 2, 3]
    assert all(torch.equal(training.state.best_weights[key], states[best - 1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    weights = training.network.state_dict()
    assert not torch.equal(weights["head.weight"], states[-1]["head.weight"]), "validated is the average"


def test_without_average_the_weights_themselves_are_validated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    result = Validation({"wt": {"a": 0.5}}, [], 0)
    monkeypatch.setattr(fit, "validate", lambda state, *_: seen.append(copy.deepcopy(dict(state))) or result)
    training = make(replace(EASY, epochs=1, average=0.0))
    training.run(Listener())
    assert all(torch.equal(seen[0][key], value) for key, value in training.network.state_dict().items())


def test_fewer_steps_than_the_average_takes_are_learnt_from_all_the_same(make: Make) -> None:
    training = make(replace(EASY, epochs=1, batch=1))  # six steps
    before = copy.deepcopy(training.network.state_dict())
    training.run(Listener())
    after = training.network.state_dict()
    assert all(torch.equal(training.state.best_weights[key], after[key]) for key in after)
    assert not all(torch.equal(after[key], before[key]) for key in after)


# When it ends


def test_the_time_limit_ends_a_network_after_its_share(make: Make, clock: SimpleNamespace) -> None:
    training = make(replace(EASY, epochs=1000, max_seconds=60.0, warmup=0))  # 20 s for each of three networks
    rates: list[float] = []

    def tick(*_: object) -> None:
        clock.now += 2.5
        rates.append(training.state.step.optimizer.param_groups[0]["lr"])

    best = training.run(Listener(on_progress=tick))
    assert len(rates) == 8
    assert (training.history.epochs[-1].steps, training.history.epochs[-1].seconds) == (8, 20.0)
    assert best in training.history.epochs
    expected = EASY.learning_rate * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6, err_msg="a half cosine over the time there is")


def test_one_network_of_three_has_all_the_time(make: Make, clock: SimpleNamespace) -> None:
    training = make(replace(EASY, epochs=1000, max_seconds=60.0), regions=tuple(Region))

    def tick(*_: object) -> None:
        clock.now += 2.5

    assert training.run(Listener(on_progress=tick)).network == "wt tc et"
    assert training.history.steps == 24


def test_even_the_shortest_time_allows_a_step(make: Make, clock: SimpleNamespace) -> None:
    training = make(replace(EASY, max_seconds=1e-9))

    def tick(*_: object) -> None:
        clock.now += 100

    assert training.run(Listener(on_progress=tick)).steps == 1


def test_patience_ends_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(fit, "validate", lambda *_: Validation({"wt": {"a": next(scores)}}, [], 0))
    training = make(replace(EASY, patience=2))
    assert training.run(Listener()).number == 2
    assert len(training.history.epochs) == 4


# Unsound gradients


def test_training_without_any_finite_gradient_is_an_error(make: Make) -> None:
    training = make()
    training.network.head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(InputError, match=r"no gradient of \d+ steps was finite"):
        training.run(Listener())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_without_finite_gradient_is_left_out(make: Make, bad: float) -> None:
    training = make(replace(EASY, epochs=1, batch=1))
    calls, states = [], []

    def spoil_the_third(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * bad if len(calls) == 3 else gradient

    training.network.head.weight.register_hook(spoil_the_third)
    best = training.run(Listener(lambda *_: states.append(copy.deepcopy(training.network.state_dict()))))
    assert (best.steps, best.skipped_steps) == (6, 1)
    changed = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(states)]
    assert changed == [True, False, True, True, True]
    assert all(p.isfinite().all() for p in training.network.parameters())


def test_injected_overflows_bring_fp32_for_a_while(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three gradients in a row that are not finite: fp32 for HOLD steps, then the fast format again."""
    monkeypatch.setattr("lowmem_brats.engine.precision.HOLD", 4)
    training = make(replace(EASY, batch=1), formats=("bf16", "fp32"))
    formats, calls = [], []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * torch.inf if len(calls) in (3, 5, 6, 7) else gradient

    training.network.head.weight.register_hook(spoil)
    take = training.state.step.take
    monkeypatch.setattr(training.state.step, "take", lambda *a: formats.append(a[2]) or take(*a))
    best = training.run(Listener())
    assert formats[:12] == [torch.bfloat16] * 7 + [torch.float32] * 4 + [torch.bfloat16]
    assert set(formats[12:]) == {torch.bfloat16}
    assert training.history.epochs[-1].fallback_steps == 4
    assert training.history.epochs[-1].skipped_steps == 4
    assert [step for step, _ in training.history.switches] == [7, 11]
    assert training.history.switches[0][1] == "fp32 for 4 steps: 3 gradients in a row were not finite"
    assert set(training.history.peaks) == {"bf16", "fp32"}, "each format's peak is measured"
    assert best.mean_dice > 0.6, "and it goes on learning"


def test_a_validation_that_half_precision_cannot_hold_is_noted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make(replace(EASY, epochs=1), formats=("bf16", "fp32"))
    monkeypatch.setattr(fit, "validate", lambda *_: Validation({"wt": {"a": 0.5}}, [], 0, "fp32"))
    training.run(Listener())
    assert training.history.notes == ["validated in fp32: bf16 gives NaN or infinity"]


def test_running_out_of_memory_takes_the_next_leaner_plans_and_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a card would do: the step that fails is taken again with more recomputing, then in smaller parts."""
    config = replace(EASY, batch=4, epochs=1)
    roomy, cramped = make(config), make(config)
    forward = cramped.network.forward

    def cramped_forward(slices_NCHW: torch.Tensor) -> torch.Tensor:
        if len(slices_NCHW) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(slices_NCHW)

    monkeypatch.setattr(cramped.network, "forward", cramped_forward)
    assert losses_of(cramped, 1) == pytest.approx(losses_of(roomy, 1), rel=1e-5)
    for ours, theirs in zip(cramped.network.parameters(), roomy.network.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert cramped.plans["fp32"].micro_batch == 1
    assert [note.removeprefix("the card ran out of memory: from now on ") for note in cramped.history.notes] == [
        "recomputing widest stages",
        "recomputing all stages",
        "2 of 4 slices at once",
        "1 of 4 slices at once",
    ]


def test_running_out_of_memory_with_the_smallest_plan_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make(replace(EASY, batch=2, epochs=1))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.network, "forward", full)
    with pytest.raises(BudgetError, match="out of memory with the smallest plan"):
        training.run(Listener())
    assert training.plans["fp32"].recompute == "all"


def test_validation_is_in_the_measured_peak(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and Adam's state are on the device too while a validation runs."""
    monkeypatch.setattr(fit, "validate", lambda *_: Validation({"wt": {"a": 1.0}}, [], 2**30))
    training = make(replace(EASY, epochs=1))
    training.run(Listener())
    count = sum(-(-p.numel() * 4 // 512) * 512 for p in training.network.parameters())
    steps = len(list(training.network.parameters())) * 512  # Adam counts its steps in a tensor per parameter
    assert training.history.peaks == {"fp32": 2**30 + 3 * count + steps}


# Going on


@pytest.mark.parametrize("at", [1, 3, 7, 12, 15])
def test_a_restored_training_goes_on_to_the_same_losses_and_weights(make: Make, at: int) -> None:
    """Within an epoch and at its end (6 steps each), with augmentation, through JSON as a checkpoint would."""
    config = replace(EASY, batch=1, augment=True, modality_dropout=0.5, epochs=3)
    whole = make(config)
    expected = losses_of(whole, 18)
    first = make(config)
    assert losses_of(first, at) == expected[:at]
    tensors, state = first.state.save()
    tensors = {key: value.clone() for key, value in tensors.items()}
    second = make(config, seed=5)
    second.state.restore(tensors, json.loads(json.dumps(state)))
    assert second.history.steps == at
    assert losses_of(second, 18) == expected[at:]
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True))
    assert [replace(e, seconds=0, slices_per_second=0) for e in second.history.epochs] == [
        replace(e, seconds=0, slices_per_second=0) for e in whole.history.epochs
    ]


@pytest.mark.parametrize("change", [{"spatial_dropout": 0.5}, {"optimizer": "radam"}, {"schedule": "restarts"}])
def test_a_restored_training_drops_and_steps_as_it_would_have(make: Make, change: dict[str, object]) -> None:
    config = replace(EASY, batch=1, epochs=3, **change)
    expected = losses_of(make(config), 12)
    first, second = make(config), make(config, seed=5)
    assert losses_of(first, 5) == expected[:5]
    tensors, state = first.state.save()
    second.state.restore({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(state)))
    assert losses_of(second, 12) == expected[5:]
    assert expected != losses_of(make(replace(EASY, batch=1, epochs=3)), 12), "else the option did nothing"


@pytest.mark.parametrize("on_host", [False, True])
def test_a_training_goes_on_from_a_state_that_lay_elsewhere(make: Make, on_host: bool) -> None:
    """The checkpoint is the same, whether the optimizer's state lay on the device or in host memory."""
    config = replace(EASY, batch=1, epochs=3)
    expected = losses_of(make(config), 12)
    first, second = make(config, on_host=not on_host), make(config, seed=5, on_host=on_host)
    assert losses_of(first, 5) == expected[:5]
    tensors, state = first.state.save()
    second.state.restore({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(state)))
    assert len(second.state.step.on_host()) == on_host * len(second.state.step.moments())
    assert losses_of(second, 12) == expected[5:]


def test_a_card_that_runs_out_of_memory_has_the_state_taken_to_host_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step, when there is a state; a batch of 50 slices has this plan before all recomputing ones."""
    config = replace(EASY, batch=50, epochs=3)
    roomy, cramped = make(config), make(config)
    expected = losses_of(roomy, 3)
    losses = losses_of(cramped, 1)
    forward, calls = cramped.network.forward, []

    def cramped_forward(slices_NCHW: torch.Tensor) -> torch.Tensor:
        if cramped.state.step.resident()[-1] is cramped.state.step.moments()[-1]:
            calls.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(slices_NCHW)

    monkeypatch.setattr(cramped.network, "forward", cramped_forward)
    losses += losses_of(cramped, 3)
    assert losses == expected
    assert len(calls) == 1
    assert cramped.history.notes == ["the card ran out of memory: from now on the optimizer's state in host memory"]
    assert all(torch.equal(a, b) for a, b in zip(roomy.network.parameters(), cramped.network.parameters(), strict=True))


def test_a_restored_precision_controller_remembers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make(formats=("bf16", "fp32"))
    for _ in range(3):
        training.state.controller.observe(1.0, float("nan"))
    tensors, state = training.state.save()
    again = make(formats=("bf16", "fp32"))
    again.state.restore(tensors, json.loads(json.dumps(state)))
    assert again.state.controller.precision == "fp32"
    assert again.state.controller.state() == training.state.controller.state()


def test_checkpoints_are_asked_for_after_every_epoch_and_every_ten_minutes(make: Make, clock: SimpleNamespace) -> None:
    steps: list[int] = []
    training = make(replace(EASY, epochs=2, batch=1))

    def tick(*_: object) -> None:
        clock.now += 250

    training.run(Listener(tick, on_checkpoint=lambda: steps.append(training.history.steps)))
    assert steps == [3, 6, 9, 12]


def test_a_training_resumed_without_time_ends_with_what_it_has(make: Make, clock: SimpleNamespace) -> None:
    first = make(replace(EASY, batch=1))
    losses_of(first, 3)
    tensors, state = first.state.save()
    second = make(replace(EASY, batch=1, max_seconds=1e-3))
    second.state.restore(tensors, json.loads(json.dumps(state | {"history": state["history"] | {"seconds": 60.0}})))
    best = second.run(Listener())
    assert (best.number, best.steps) == (1, 3)


# What is reported


def test_an_epoch_says_what_happened(make: Make, clock: SimpleNamespace) -> None:
    told: list[Epoch] = []
    training = make(replace(EASY, epochs=2))

    def tick(*_: object) -> None:
        clock.now += 0.5

    training.run(Listener(tick, lambda epoch, _: told.append(epoch)))
    assert told == training.history.epochs
    assert [(e.network, e.number, e.steps, e.seconds, e.slices_per_second) for e in told] == [
        ("wt", 1, 3, 1.5, 4.0),
        ("wt", 2, 6, 3.0, 4.0),
    ]
    assert list(told[0].validation_dice) == ["wt"]
    assert list(told[0].validation_dice["wt"]) == ["held out"]


@pytest.mark.parametrize(("every", "points"), [(4, [4, 6, 10, 12, 16]), (6, [6, 12]), (10, [6, 12])])
def test_a_point_of_the_curve_is_the_mean_of_the_steps_since_the_one_before(
    make: Make, monkeypatch: pytest.MonkeyPatch, every: int, points: list[int]
) -> None:
    """An epoch has 6 steps, and at its end the rest makes a point of its own."""
    monkeypatch.setattr(fit, "CURVE_STEPS", every)
    training = make(replace(EASY, batch=1, epochs=4))
    losses = losses_of(training, 16)
    assert [step for step, _ in training.history.curve] == points
    for before, (step, loss) in zip([0, *points], training.history.curve, strict=False):
        assert loss == pytest.approx(np.mean(losses[before:step]))


def test_a_step_without_a_finite_loss_leaves_the_curve_finite(make: Make) -> None:
    history = make().history
    history.steps, history.losses = 4, [5.0, 1.0, float("nan"), 2.0]
    history.add_point(3)
    history.losses = [float("inf")]
    history.add_point(1)
    assert history.curve == [(4, 1.5)]


def test_the_average_is_the_one_of_its_own_module(make: Make) -> None:
    """Fit passes every step to `WeightAverage.follow` once, in order."""
    training = make(replace(EASY, batch=1, epochs=4))
    by_hand = WeightAverage(training.network, EASY.average)
    losses_of_all: list[int] = []

    def follow(*_: object) -> None:
        losses_of_all.append(training.history.steps)
        by_hand.follow(training.network, training.history.steps)

    training.run(Listener(on_progress=follow))
    assert losses_of_all == list(range(1, 25))
    assert all(torch.equal(by_hand.state[key], value) for key, value in training.state.average.state.items())


def test_the_best_weights_take_their_masks_where_validation_dice_is_best(make: Make) -> None:
    training = make(replace(EASY, epochs=6), regions=tuple(Region))
    training.run(Listener())
    found = training.finish()
    moved_K = torch.tensor([found[region.value][0] for region in Region])
    best_K = training.state.best_weights["head.bias"]
    torch.testing.assert_close(training.network.last_bias().detach(), best_K - moved_K)
    assert found["et"][0] < 0, "else the test shows nothing"
    assert found["et"][1] > training.history.best.region_dice["et"]
    state = training.network.state_dict()
    now = validate(state, training.config.network, training.validation, training.regions, "cpu", "fp32").dice
    for region in Region:
        assert found[region.value][1] == pytest.approx(np.mean(list(now[region.value].values())), abs=1e-4)


def test_without_validation_the_last_weights_stay_as_they_are(make: Make) -> None:
    training = make(replace(EASY, epochs=1))
    training.validation = []
    training.run(Listener())
    assert training.finish() == {}
    for key, value in training.network.state_dict().items():
        torch.testing.assert_close(value, training.state.best_weights[key], rtol=0, atol=0)

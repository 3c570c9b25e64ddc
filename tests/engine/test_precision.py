"""The device's fastest format is chosen, one that it cannot compute in is refused, and instability brings fp32."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.config import PRECISIONS
from lowmem_brats.engine import precision
from lowmem_brats.engine.precision import DTYPES, HOLD, PrecisionController, choose_precision, cpu_has_bf16
from lowmem_brats.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
PASCAL, TURING, AMPERE, BLACKWELL = (6, 1), (7, 5), (8, 0), (12, 0)


@pytest.mark.parametrize(
    ("requested", "has_bf16", "chosen"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),  # never fp16: no processor is faster in it
        ("fp32", True, "fp32"),
        ("fp32", False, "fp32"),
        ("bf16", False, "bf16"),  # slow but right
        ("fp16", False, "fp16"),
        ("fp16", True, "fp16"),
    ],
)
def test_on_the_cpu(requested: str, has_bf16: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert choose_precision(requested, CPU) == chosen


@pytest.mark.parametrize(
    ("requested", "capability", "chosen"),
    [
        ("auto", PASCAL, "fp16"),
        ("auto", TURING, "fp16"),
        ("auto", AMPERE, "bf16"),
        ("auto", BLACKWELL, "bf16"),
        ("bf16", AMPERE, "bf16"),
        ("fp32", AMPERE, "fp32"),
        ("fp16", AMPERE, "fp16"),
        ("fp32", PASCAL, "fp32"),
    ],
)
def test_on_cuda(requested: str, capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(requested, CUDA) == chosen


def test_fp32_on_a_card_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: AMPERE)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    choose_precision("fp32", CUDA)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_emulated_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: TURING)
    with pytest.raises(InputError, match=r"compute capability 8\.0 or more\. Use fp16\."):
        choose_precision("bf16", CUDA)


@pytest.mark.parametrize("requested", ["half", "", "FP16", "float16"])
def test_unknown_name(requested: str) -> None:
    with pytest.raises(InputError, match="--precision") as caught:
        choose_precision(requested, CPU)
    assert caught.value.found == repr(requested)
    assert all(name in caught.value.expected for name in PRECISIONS)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, False),
        ({"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}, False),
        ({"_is_avx512_bf16_supported": True, "_is_amx_tile_supported": False}, True),
        ({"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": True}, True),
        ({"_is_amx_tile_supported": True}, True),
    ],
)
def test_the_processor_is_asked_by_whatever_this_torch_offers(
    answers: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert cpu_has_bf16() is expected


def test_every_precision_but_auto_has_a_format() -> None:
    assert set(DTYPES) | {"auto"} == set(PRECISIONS)
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == {"fp32": 4, "fp16": 2, "bf16": 2}


# The controller


def healthy(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Loss and gradient norm of a training as it should be: noisy, falling, with batches that hold little tumour."""
    rng = np.random.default_rng(seed)
    at = np.arange(steps)
    loss = 0.2 + 0.5 * np.exp(-at / 200) + rng.normal(0, 0.06, steps) + 0.3 * (rng.random(steps) < 0.02)
    norm = np.exp(rng.normal(0, 0.6, steps)) * (0.2 + 0.8 * np.exp(-at / 400))
    return list(zip(loss.tolist(), norm.tolist(), strict=True))


def observe_all(controller: PrecisionController, series: list[tuple[float, float]]) -> list[tuple[int, str]]:
    """The switches, each with the number of steps observed by then."""
    found = [(step, controller.observe(*each)) for step, each in enumerate(series, 1)]
    return [(step, why) for step, why in found if why]


def test_healthy_training_keeps_the_fast_format() -> None:
    alarms = [observe_all(PrecisionController("bf16", "fp32"), healthy(2000, seed)) for seed in range(5)]
    assert sum(map(len, alarms)) <= 2 * 5, "at most one fallback in 2000 steps"


def test_gradients_that_are_not_finite_bring_the_safer_format_and_smoothness_the_fast_one() -> None:
    controller = PrecisionController("fp16", "fp32")
    bad, good = (1.0, math.nan), (0.5, 1.0)
    assert observe_all(controller, [bad, bad, good, bad, bad]) == []
    assert controller.precision == "fp16", "two in a row are how the loss scale finds its level"
    assert observe_all(controller, [bad]) == [(1, f"fp32 for {HOLD} steps: 3 gradients in a row were not finite")]
    assert controller.precision == "fp32"
    assert observe_all(controller, [good] * HOLD) == [(HOLD, "back to fp16: training is smooth")]
    assert controller.precision == "fp16"
    assert observe_all(controller, [bad] * 3) == [
        (3, f"fp32 for {2 * HOLD} steps: 3 gradients in a row were not finite")
    ]
    assert len(observe_all(controller, [good] * (2 * HOLD))) == 1, "the second time it is held twice as long"


def test_trouble_in_the_safer_format_holds_it_longer() -> None:
    controller = PrecisionController("bf16", "fp32")
    observe_all(controller, [(1.0, math.inf)] * 3)
    series = [(0.5, 1.0)] * 60 + [(1.0, math.inf)] * 3 + [(0.5, 1.0)] * 200
    ((step, why),) = observe_all(controller, series)
    assert (step, why) == (63 + HOLD, "back to bf16: training is smooth")


def test_an_exploding_gradient_is_seen_at_once() -> None:
    controller = PrecisionController("bf16", "fp32")
    assert observe_all(controller, [(0.4, norm) for _, norm in healthy(300, seed=1)]) == []
    switches = observe_all(controller, [(0.4, 2.0**n) for n in range(1, 12)])
    assert switches
    assert switches[0][0] <= 8
    assert "usual is" in switches[0][1]


def test_one_odd_gradient_is_no_trouble_and_two_in_a_row_are() -> None:
    controller = PrecisionController("bf16", "fp32")
    usual, odd, borderline = (0.4, 1.0), (0.4, 10.5), (0.4, 10.0)
    assert observe_all(controller, [*[usual] * 50, odd, borderline, odd, usual, borderline, borderline]) == []
    assert observe_all(controller, [odd, odd]) == [(2, f"fp32 for {HOLD} steps: gradients up to 10.5, usual is 1")]


def test_a_loss_that_turns_upwards_is_seen_within_forty_steps() -> None:
    for seed in range(5):
        controller = PrecisionController("bf16", "fp32")
        observe_all(controller, [(loss, 1.0) for loss, _ in healthy(600, seed)])
        controller.held = 0
        rng = np.random.default_rng(seed)
        rising = [(0.25 + 0.05 * n + rng.normal(0, 0.06), 1.0) for n in range(40)]
        switches = observe_all(controller, rising)
        assert switches, seed
        assert "bends upwards" in switches[0][1]


@pytest.mark.parametrize("slopes", [(0.0, -0.04, 0.0), (0.01, 0.0), (0.01, 0.0, -0.01), (0.0, -0.04), (-0.04, -0.004)])
def test_a_loss_that_falls_or_rises_less_is_no_trouble(slopes: tuple[float, ...]) -> None:
    """Bends downwards, and the end of a fall, however sharp; the usual bend is next to nothing."""
    loss, series = 3.0, []
    for number, slope in enumerate(slopes):
        for step in range(40 if number else 150):
            loss += slope
            series.append((loss + 1e-6 * (-1) ** step, 1.0))
    assert observe_all(PrecisionController("bf16", "fp32"), series) == []


def test_without_a_safer_format_there_is_no_switch() -> None:
    for safer in (None, "fp32"):
        controller = PrecisionController("fp32", safer)
        assert observe_all(controller, [(1.0, math.nan)] * 20) == []
        assert controller.precision == "fp32"


def test_what_is_not_finite_does_not_enter_the_statistics() -> None:
    controller = PrecisionController("bf16", "fp32")
    for value in (math.nan, math.inf, -math.inf):
        observe_all(controller, [(value, 1.0), (0.5, value), *healthy(30)])
    assert all(math.isfinite(v) for v in [*controller.norms, *controller.smoothed, *controller.bends])


@given(
    series=st.lists(
        st.tuples(st.floats(0, 2), st.one_of(st.floats(0, 1e6), st.just(math.inf), st.just(math.nan))), max_size=300
    ),
    at=st.integers(0, 300),
)
def test_a_restored_controller_goes_on_the_same(series: list[tuple[float, float]], at: int) -> None:
    whole, first, second = (PrecisionController("bf16", "fp32") for _ in range(3))
    expected = observe_all(whole, series)
    before = observe_all(first, series[:at])
    second.restore(json.loads(json.dumps(first.state())))
    after = [(step + len(series[:at]), why) for step, why in observe_all(second, series[at:])]
    assert before + after == expected
    assert second.state() == whole.state()

"""A training step: AdamW on clipped gradients, nothing at all where they are not finite, and again after a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import NO_MEMORY, TrainingStep, place, predict_batch, split_batch
from lowmem_brats.networks import build_any, build_network
from lowmem_brats.networks.drop import set_rates

FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
CPU = torch.device("cpu")
RATE = 1e-2


def fresh(**settings: Any) -> TrainingStep:
    """Always the same weights."""
    torch.manual_seed(0)
    network = place(build_network(NetworkConfig(width=8, depth=1)), torch.device("cpu"))
    return TrainingStep(network.train(), find_loss("dice"), **settings)


def scaled(**settings: float) -> TrainingStep:
    """As on a card, where fp16's loss is scaled."""
    step = fresh(**settings)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return step


def batch(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    slices_NCHW = torch.randn(3, 4, 8, 8, generator=generator)
    return split_batch(slices_NCHW, (torch.rand(3, 1, 8, 8, generator=generator) < 0.5).float(), 2)


def broken_batch(value: float) -> list[tuple[Tensor, Tensor]]:
    """One value of the second micro-batch is not finite."""
    parts = batch()
    parts[1][0][0, 0, 0, 0] = value
    return parts


def copies(tensors: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def equal(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def gradients(step: TrainingStep) -> list[Tensor]:
    return copies(parameter.grad for parameter in step.network.parameters())


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("where", ["forward", "backward", "clip", "optimizer", "moments"])
def test_a_step_that_ran_out_of_memory_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, where: str, dtype: torch.dtype
) -> None:
    step, expected = scaled(), scaled()
    backward = torch.autograd.backward

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def fail_half_way(*arguments: Any) -> None:
        backward(*arguments)
        fail()

    def fail_at_the_second_moment(*_: object, **__: object) -> None:
        step.optimizer.state[next(step.network.parameters())] = {"step": torch.zeros(())}
        fail()

    with monkeypatch.context() as patch:
        target, name, failing = {
            "forward": (step.network, "forward", fail),
            "backward": (torch.autograd, "backward", fail_half_way),
            "clip": (torch.nn.utils, "clip_grad_norm_", fail),
            "optimizer": (step.optimizer, "step", fail),
            "moments": (step.optimizer, "step", fail_at_the_second_moment),
        }[where]
        patch.setattr(target, name, failing)
        with pytest.raises(torch.OutOfMemoryError):
            step.take(batch(), RATE, dtype)
    for seed in range(2):
        assert step.take(batch(seed), RATE, dtype) == expected.take(batch(seed), RATE, dtype)
    assert step.scaler.state_dict() == expected.scaler.state_dict()
    assert equal(step.network.parameters(), expected.network.parameters())
    assert equal(step.moments(), expected.moments())


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        *[(f"cuDNN error: {words}", torch.OutOfMemoryError) for words in NO_MEMORY],
        ("CUDNN_STATUS_BAD_PARAM", RuntimeError),
        ("expected scalar type Half but found Float", RuntimeError),
    ],
)
def test_what_the_libraries_of_a_card_say_for_want_of_memory_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, message: str, kind: type[RuntimeError]
) -> None:
    step = fresh()

    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(step.network, "forward", fail)
    for use in (lambda: step.take(batch(), RATE, FP32), lambda: predict_batch(step.network, batch()[0][0])):
        with pytest.raises(RuntimeError, match=message) as error:
            use()
        assert type(error.value) is kind


def test_without_weight_decay_it_is_adam_at_the_given_learning_rates() -> None:
    step, network = fresh(), fresh().network
    adam = torch.optim.Adam(network.parameters(), fused=True)
    for seed, rate in enumerate((1e-2, 1e-3, 0.0, 5e-3)):
        step.compute_gradients(batch(seed), FP32)
        for parameter, gradient in zip(network.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        adam.param_groups[0]["lr"] = rate
        adam.step()
        step.take(batch(seed), rate, FP32)
        assert equal(step.network.parameters(), network.parameters())


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1e-2])
def test_the_first_step_moves_every_weight_by_the_learning_rate(rate: float) -> None:
    """Adam's m/√v is the gradient's sign then, but for its ε of 1e-8."""
    step = fresh()
    before = copies(step.network.parameters())
    step.take(batch(), rate, FP32)
    for old, new, gradient in zip(before, step.network.parameters(), gradients(step), strict=True):
        torch.testing.assert_close(new.detach(), old - rate * gradient / (gradient.abs() + 1e-8), rtol=1e-5, atol=1e-7)


def test_weight_decay_shrinks_the_weights_by_its_share_of_the_learning_rate() -> None:
    plain, decayed = fresh(), fresh(weight_decay=0.5)
    before = copies(plain.network.parameters())
    plain.take(batch(), RATE, FP32)
    decayed.take(batch(), RATE, FP32)
    for old, without, weight in zip(before, plain.network.parameters(), decayed.network.parameters(), strict=True):
        torch.testing.assert_close(weight.detach(), without.detach() - RATE * 0.5 * old, rtol=1e-6, atol=1e-7)


def test_a_long_gradient_is_shortened_and_its_own_length_told() -> None:
    step, free = fresh(clip_norm=1e-3), fresh()
    _, norm = step.compute_gradients(batch(), FP32)
    _, free_norm = free.compute_gradients(batch(), FP32)
    assert float(norm) == float(free_norm) == pytest.approx(norm_of(gradients(free)), rel=1e-6)
    assert 0.01 < float(norm) < free.clip_norm  # else there would be nothing to shorten, or nothing left alone
    assert norm_of(gradients(step)) == pytest.approx(1e-3, rel=1e-4)
    for short, long in zip(gradients(step), gradients(free), strict=True):
        torch.testing.assert_close(short, long * (1e-3 / norm), rtol=1e-4, atol=0)


@pytest.mark.parametrize("recompute", [(), ("down.0", "up.0")])
def test_a_step_is_the_full_batchs_whatever_is_cut_or_recomputed(recompute: tuple[str, ...]) -> None:
    whole, step = fresh(), fresh()
    for each in (whole, step):
        each.network.double()
    slices_NCHW, target_NKHW = (torch.cat(parts) for parts in zip(*batch(), strict=True))
    expected_loss, expected_norm = whole.compute_gradients([(slices_NCHW, target_NKHW)], torch.float64)
    loss, norm = step.compute_gradients(batch(), torch.float64, recompute)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    assert float(norm) == pytest.approx(float(expected_norm), rel=1e-12)
    difference = [a - b for a, b in zip(gradients(step), gradients(whole), strict=True)]
    assert norm_of(difference) < 1e-12 * norm_of(gradients(whole))


@pytest.mark.parametrize("recompute", [(), ("down.0", "down.1", "up.0")])
def test_what_is_dropped_at_random_is_the_same_in_every_micro_batch_and_recomputation(
    recompute: tuple[str, ...],
) -> None:
    slices_NCHW, target_NKHW = (torch.cat(parts) for parts in zip(*batch(), strict=True))
    found: dict[tuple[int, int], list[Tensor]] = {}
    for size in (3, 2, 1):
        for seed in (0, 1):
            step = fresh()
            step.network.double()
            set_rates(step.network, 0.0, 0.5)
            parts = split_batch(slices_NCHW, target_NKHW, size)
            step.compute_gradients(parts, torch.float64, recompute if size < 3 else (), [seed, 7, 8])
            found[size, seed] = gradients(step)
    for seed in (0, 1):
        for size in (2, 1):
            difference = [a - b for a, b in zip(found[size, seed], found[3, seed], strict=True)]
            assert norm_of(difference) < 1e-12 * norm_of(found[3, seed])
    assert not equal(found[3, 0], found[3, 1]), "else nothing was dropped"


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype: torch.dtype, value: float) -> None:
    step, expected = scaled(weight_decay=0.1), scaled(weight_decay=0.1)
    for each in (step, expected):
        assert each.take(batch(), RATE, dtype).stepped
    outcome = step.take(broken_batch(value), RATE, dtype)
    assert not outcome.stepped
    assert equal(step.network.parameters(), expected.network.parameters())
    assert equal(step.moments(), expected.moments())
    assert step.scaler.get_scale() == (512 if dtype == FP16 else 1024)
    if dtype != FP16:  # whose loss is scaled less from here on
        assert step.take(batch(1), RATE, dtype) == expected.take(batch(1), RATE, dtype)
        assert equal(step.network.parameters(), expected.network.parameters())


def test_a_first_step_that_is_not_finite_leaves_the_optimizer_without_moments() -> None:
    step = fresh()
    assert not step.take(broken_batch(float("nan")), RATE, FP32).stepped
    assert step.moments() == []
    assert step.take(batch(), RATE, FP32).stepped
    assert len(step.moments()) == 3 * len(list(step.network.parameters()))  # both moments and the step's number


@pytest.mark.parametrize(("dtype", "counted"), [(FP32, 0), (BF16, 0), (FP16, 2)])
def test_only_fp16_is_scaled(dtype: torch.dtype, counted: int) -> None:
    step = scaled()
    for seed in range(2):
        step.take(batch(seed), RATE, dtype)
    assert step.scaler.state_dict()["_growth_tracker"] == counted


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_the_scale_is_gone_from_gradient_and_norm(dtype: torch.dtype) -> None:
    plain, step = fresh(clip_norm=0.01), scaled(clip_norm=0.01)
    (loss, norm), (expected_loss, expected_norm) = (each.compute_gradients(batch(), dtype) for each in (step, plain))
    assert loss == expected_loss
    assert float(norm) == pytest.approx(float(expected_norm), rel=1e-3)
    assert norm_of(gradients(step)) == pytest.approx(0.01, rel=1e-3)


def test_small_gradients_survive_fp16_on_the_cpu_too() -> None:
    """Cross-entropy where nothing is tumour: each pixel's gradient is below what fp16 can hold."""
    slices_NCHW = torch.randn(4, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    parts = split_batch(slices_NCHW, torch.zeros(4, 1, 128, 128), 2)
    norms = {}
    for dtype in (FP32, FP16):
        step = fresh()
        step.loss = find_loss("ce")
        with torch.no_grad():
            step.network.last_bias().fill_(-6.0)
        norms[dtype] = float(step.compute_gradients(parts, dtype)[1])
    assert norms[FP16] == pytest.approx(norms[FP32], rel=0.02)


def test_a_card_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode():
        network = nn.ParameterList([torch.empty(1, device="cuda")])
        assert TrainingStep(network, find_loss("dice")).scaler.is_enabled()  # type: ignore[arg-type]


def test_crops_give_the_gradient_of_the_batch_in_parts_and_recomputed() -> None:
    pytest.importorskip("monai")
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(3, 4, 16, 8, 8, generator=generator).double()
    target = (torch.rand(3, 3, 16, 8, 8, generator=generator) < 0.3).double()
    found: dict[tuple[int, bool], list[Tensor]] = {}
    for size, recomputing in ((3, False), (3, True), (2, True), (1, False)):
        torch.manual_seed(0)
        network = place(build_any(NetworkConfig(name="segresnet", width=8, outputs=3)).double().train(), CPU, FP64)
        step = TrainingStep(network, find_loss("squared-dice+ce"))
        stages = [*network.stages()][:-1] if recomputing else []
        step.compute_gradients(split_batch(crops, target, size), FP64, stages)
        found[size, recomputing] = gradients(step)
    whole = found[3, False]
    assert equal(found[3, True], whole)
    for parts in ((2, True), (1, False)):
        assert norm_of([a - b for a, b in zip(found[parts], whole, strict=True)]) < 1e-12 * norm_of(whole)
    assert norm_of(whole) > 0

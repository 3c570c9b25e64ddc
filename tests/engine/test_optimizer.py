"""Adam, AdamW and RAdam give the same weights wherever their state lies, and are torch's own to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.optimizer import OPTIMIZERS, Adam
from lowmem_brats.engine.step import TrainingStep, place, split_batch
from lowmem_brats.networks import build_network

FP32, FP16 = torch.float32, torch.float16
each_kind = pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adam", 0.1), ("radam", 0.0), ("radam", 0.1)])


def fresh(name: str = "adam", decay: float = 0.0, on_host: bool = False) -> TrainingStep:
    """Always the same weights, and fp16's loss is scaled, as on a card."""
    torch.manual_seed(0)
    network = place(build_network(NetworkConfig(width=8, depth=1)), torch.device("cpu"))
    step = TrainingStep(network.train(), find_loss("dice"), decay, optimizer=name)
    step.optimizer.keep_state(on_host)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return step


def batch(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    slices_NCHW = torch.randn(3, 4, 8, 8, generator=generator)
    return split_batch(slices_NCHW, (torch.rand(3, 1, 8, 8, generator=generator) < 0.5).float(), 2)


def same(step: TrainingStep, other: TrainingStep) -> bool:
    """Whether weights, gradients and moments are equal to the last bit."""
    pairs = list(zip(step.network.parameters(), other.network.parameters(), strict=True))
    tensors = [*pairs, *((a.grad, b.grad) for a, b in pairs), *zip(step.moments(), other.moments(), strict=True)]
    return all(torch.equal(a, b) for a, b in tensors)


@each_kind
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_weights_are_the_same_to_the_last_bit_with_the_state_in_host_memory(
    name: str, decay: float, dtype: torch.dtype
) -> None:
    """In micro-batches, over the steps in which RAdam changes its ways."""
    plain, hosted = fresh(name, decay), fresh(name, decay, on_host=True)
    for number in range(8):
        outcomes = [step.take(batch(number), 1e-2, dtype) for step in (plain, hosted)]
        assert outcomes[0] == outcomes[1]
        assert outcomes[0].stepped
    assert same(plain, hosted)
    assert plain.scaler.state_dict() == hosted.scaler.state_dict()
    assert [len(step.on_host()) for step in (plain, hosted)] == [0, len(hosted.moments())]
    assert len(hosted.resident()) == len(list(hosted.network.parameters()))


def test_the_state_can_move_between_two_steps() -> None:
    """As when training falls back to fp32, whose plan is another one."""
    plain, moving = fresh(), fresh()
    for number in range(6):
        moving.optimizer.keep_state(number in (1, 2, 5))
        for step in (plain, moving):
            step.take(batch(number), 1e-2, FP32)
    assert same(plain, moving)


def test_a_gradient_that_is_not_finite_changes_no_state_in_host_memory() -> None:
    plain, hosted = fresh(), fresh(on_host=True)
    broken = batch(0)
    broken[1][0][0, 0, 0, 0] = float("nan")
    for step in (plain, hosted):
        step.take(batch(1), 1e-2, FP16)
        assert not step.take(broken, 1e-2, FP16).stepped
        step.take(batch(2), 1e-2, FP16)
    assert same(plain, hosted)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("taken", [0, 1, 6])
def test_a_step_from_host_memory_that_finds_no_room_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: int
) -> None:
    plain, hosted = fresh(name), fresh(name, on_host=True)
    for number in range(taken):
        for step in (plain, hosted):
            step.take(batch(number), 1e-2, FP16)

    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    before = [p.detach().clone() for p in hosted.network.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            hosted.take(batch(9), 1e-2, FP16)
    assert all(torch.equal(a, b) for a, b in zip(before, hosted.network.parameters(), strict=True))
    for step in (plain, hosted):
        step.take(batch(9), 1e-2, FP16)
    assert same(plain, hosted)


def test_a_state_that_finds_no_room_on_the_device_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, hosted = fresh(), fresh(on_host=True)
    for step in (plain, hosted):
        step.take(batch(0), 1e-2, FP32)
    calls, room = [], Adam._room

    def fills_up(*arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("out of memory")
        return room(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Adam, "_room", staticmethod(fills_up))
        with pytest.raises(torch.OutOfMemoryError):
            hosted.optimizer.keep_state(False)
    assert hosted.optimizer.on_host
    for step in (plain, hosted):
        step.take(batch(1), 1e-2, FP32)
    assert same(plain, hosted)


def weights(kind: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[Tensor]:
    """Twelve steps along gradients of noise at changing rates."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size, generator=generator)) for size in ((5, 3), (7,), ())]
    optimizer = kind(parameters)
    for number in range(12):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (number % 3 - 1)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_are_torchs(name: str, decay: float) -> None:
    found = weights(lambda parameters: OPTIMIZERS[name](parameters, decay))
    kinds: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "adam": lambda parameters: torch.optim.AdamW(parameters, weight_decay=decay),
        "radam": lambda parameters: torch.optim.RAdam(parameters, weight_decay=decay, decoupled_weight_decay=True),
    }
    for ours, theirs in zip(found, weights(kinds[name]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    other = weights(kinds[next(each for each in kinds if each != name)])
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found, other, strict=True))

"""A step that fails can be taken again, and gives what it would have given."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.memory import step
from lowmem_brats.memory.step import build_optimizer, build_scaler, split_batch, training_step
from lowmem_brats.networks import SliceNetwork, build_network


def parts() -> tuple[SliceNetwork, torch.optim.Adam, torch.amp.GradScaler, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(width=8, depth=1)).train()
    slices_NCHW, target_N1HW = torch.randn(2, 4, 8, 8), (torch.rand(2, 1, 8, 8) < 0.5).float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return network, build_optimizer(network, 1e-2), scaler, split_batch(slices_NCHW, target_N1HW, 1)


@pytest.mark.parametrize("where", ["forward", "clip", "optimizer", "moments"])
def test_a_step_that_ran_out_of_memory_can_be_tried_again(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    network, optimizer, scaler, micro_batches = parts()
    expected_network, *expected = parts()

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def fail_at_the_second_moment(*_: object, **__: object) -> None:
        optimizer.state[optimizer.param_groups[0]["params"][0]] = {"step": torch.zeros(())}
        fail()

    with monkeypatch.context() as patch:
        if where == "forward":
            patch.setattr(network, "forward", fail)
        elif where == "clip":
            patch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
        else:
            patch.setattr(optimizer, "step", fail if where == "optimizer" else fail_at_the_second_moment)
        with pytest.raises(torch.OutOfMemoryError):
            training_step(network, optimizer, scaler, micro_batches, torch.float32)
    for _ in range(2):
        found = training_step(network, optimizer, scaler, micro_batches, torch.float32)
        assert found == training_step(expected_network, *expected, torch.float32)
    assert scaler.state_dict() == expected[1].state_dict()
    assert all(map(torch.equal, network.parameters(), expected_network.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_gets_no_scaler_and_no_warning(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not build_scaler(torch.device("cpu"), dtype).is_enabled()


def test_only_fp16_on_a_card_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    card = torch.device("cuda:0")
    assert build_scaler(card, torch.float16).is_enabled()
    assert not build_scaler(card, torch.bfloat16).is_enabled()
    assert not build_scaler(card, torch.float32).is_enabled()

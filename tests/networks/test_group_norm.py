"""Group norm of half maps: its own backward pass against torch's, in fp32 and in half, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import TrainingStep, place
from lowmem_brats.networks import build_network, group_norm
from lowmem_brats.networks.group_norm import GroupNorm

SHAPES = [(1, 8, 4, 4), (3, 24, 16, 20), (2, 48, 8, 6), (5, 16, 1, 7)]


def gradients(norm: nn.Module, maps_NCHW: Tensor, grad_NCHW: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of maps, weight and bias."""
    maps_NCHW = maps_NCHW.clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    result_NCHW = norm(maps_NCHW)
    result_NCHW.backward(grad_NCHW)
    return result_NCHW.detach(), maps_NCHW.grad, norm.weight.grad, norm.bias.grad


def drawn(shape_NCHW: tuple[int, ...], order: torch.memory_format) -> tuple[GroupNorm, Tensor, Tensor]:
    torch.manual_seed(0)
    norm = GroupNorm(8, shape_NCHW[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps_NCHW = torch.randn(shape_NCHW) * 2 + 1
    return norm, maps_NCHW.to(memory_format=order), torch.randn(shape_NCHW).to(memory_format=order)


@pytest.mark.parametrize("shape_NCHW", SHAPES)
@pytest.mark.parametrize("block", [50, 1000, 1 << 19])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_half_gradients_are_those_of_fp32(shape_NCHW, block, order, monkeypatch):
    """bf16 keeps 8 bits: a value may be off by 1/256 of itself, or of the largest where large ones cancel."""
    monkeypatch.setattr(group_norm, "BLOCK", block)
    norm, maps_NCHW, grad_NCHW = drawn(shape_NCHW, order)
    halves = maps_NCHW.bfloat16(), grad_NCHW.bfloat16()
    theirs = nn.GroupNorm(8, shape_NCHW[1])
    theirs.load_state_dict(norm.state_dict())
    exact = gradients(theirs, *(half.float() for half in halves))
    for found, wanted in zip(gradients(norm, *halves), exact, strict=True):
        assert float((found.float() - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("shape_NCHW", SHAPES)
def test_half_gradients_are_those_of_torch(shape_NCHW):
    norm, maps_NCHW, grad_NCHW = drawn(shape_NCHW, torch.channels_last)
    theirs = nn.GroupNorm(8, shape_NCHW[1]).bfloat16()
    theirs.load_state_dict(norm.state_dict())
    ours = gradients(norm, maps_NCHW.bfloat16(), grad_NCHW.bfloat16())
    for found, wanted in zip(ours, gradients(theirs, maps_NCHW.bfloat16(), grad_NCHW.bfloat16()), strict=True):
        assert float((found - wanted).abs().max()) <= 2**-7 * float(wanted.abs().max())


def test_blocks_change_only_rounding(monkeypatch):
    norm, maps_NCHW, grad_NCHW = drawn((3, 24, 16, 20), torch.channels_last)
    results = []
    for block in (24, 1000, 1 << 19):
        monkeypatch.setattr(group_norm, "BLOCK", block)
        results.append(gradients(norm, maps_NCHW.bfloat16(), grad_NCHW.bfloat16()))
    for cut in results[:2]:
        for found, wanted in zip(cut, results[2], strict=True):
            assert float((found - wanted).abs().max()) <= 2**-7 * float(wanted.abs().max())


def test_slices_do_not_touch_each_other():
    norm, maps_NCHW, grad_NCHW = drawn((3, 24, 16, 20), torch.channels_last)
    _, whole_NCHW, *_ = gradients(norm, maps_NCHW.bfloat16(), grad_NCHW.bfloat16())
    _, alone_1CHW, *_ = gradients(norm, maps_NCHW[1:2].bfloat16(), grad_NCHW[1:2].bfloat16())
    assert torch.equal(whole_NCHW[1:2], alone_1CHW)


def test_operation_keeps_its_contract():
    """Its fake form has the shapes and order of the real one, and it changes nothing but the workspace."""
    maps_NCHW, grad_NCHW = torch.randn(2, 2, 24, 6, 5).bfloat16()
    statistics = torch.rand(2, 2, 8).bfloat16()
    torch.library.opcheck(
        group_norm._half_backward, (grad_NCHW, maps_NCHW, torch.ones(24).bfloat16(), *statistics, torch.empty(2, 100))
    )


def test_half_maps_on_the_cpu_take_it_and_no_hidden_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of the U-Net and of EMCAD are channels last when they come: a copy inside would not be counted."""
    orders: list[bool] = []
    backward = group_norm._half_backward

    def watched(*tensors: Tensor) -> object:
        orders.extend(each.is_contiguous(memory_format=torch.channels_last) for each in tensors[:2])
        return backward(*tensors)

    monkeypatch.setattr(group_norm, "_half_backward", watched)
    for config in (NetworkConfig(width=8, outputs=3), NetworkConfig(name="emcad-b0", outputs=3)):
        orders.clear()
        step = TrainingStep(place(build_network(config), torch.device("cpu")).train(), find_loss("dice"))
        step.take([(torch.randn(2, 4, 64, 64), torch.ones(2, 3, 64, 64))], 1e-3, torch.bfloat16)
        norms = [module for module in step.network.modules() if isinstance(module, GroupNorm)]
        assert len(orders) == 2 * len(norms)
        assert all(orders)

"""How many bytes a step needs: the step itself, run on tensors without data, with every storage counted.

No device is needed and nothing here knows a network by name. Every network is counted on torch's fake CPU, because
torch cannot differentiate fake CUDA tensors where it finds no card; what differs on a card is in docs/memory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from lowmem_brats.config import NetworkConfig
from lowmem_brats.loss import find_loss
from lowmem_brats.memory.device import LiveBytes, storage_bytes
from lowmem_brats.memory.step import (
    TrainingStep,
    memory_format,
    predict_batch,
)
from lowmem_brats.networks import SliceNetwork, build_network


@dataclass(frozen=True)
class Footprint:
    """Live bytes at the moment when a step holds most of them, by what they are."""

    parameters: int = 0
    """Weights and buffers."""
    gradients: int = 0
    """Those complete by then: the peak can come before any is."""
    optimizer: int = 0
    """Adam's two moments."""
    activations: int = 0
    """Everything else: the micro-batch, the maps, what is kept for the backward pass."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def warm_up() -> None:
    """Import what torch imports for the first tensor without data: a second, which can pass while a case is read."""
    FakeTensorMode()


@cache
def inference_footprint(
    network: NetworkConfig, size_HW: tuple[int, int], batch: int, dtype: torch.dtype, device: torch.device
) -> Footprint:
    """Bytes of `step.predict_batch` on `batch` slices of H×W pixels by a network in `dtype`."""
    model = _without_data(network, dtype, device)
    with FakeTensorMode():
        _fill(model)
        slices_NCHW = torch.empty(batch, network.channels, *size_HW, dtype=torch.float16)
        counter = LiveBytes()
        counter.name("parameters", *model.parameters(), *model.buffers())
        with counter:
            predict_batch(model.eval(), slices_NCHW)
        return Footprint(**counter.at_peak)


@cache
def training_footprint(
    network: NetworkConfig,
    size_HW: tuple[int, int],
    batch: int,
    micro_batch: int,
    dtype: torch.dtype,
    device: torch.device,
    recompute: tuple[str, ...] = (),
    loss: str = "dice",
) -> Footprint:
    """Bytes of a training step, from the second on, when Adam's moments exist: its gradients, then Adam.

    Two micro-batches are counted however many there are, because every later one is like the second.
    """
    model = _without_data(network, torch.float32, device)
    with FakeTensorMode():
        _fill(model)
        micro_batches = [
            _fake_batch(network, size, size_HW, device)
            for size in (micro_batch, min(micro_batch, batch - micro_batch))
            if size
        ]
        step = TrainingStep(model.train(), find_loss(loss))
        counter = LiveBytes()
        counter.name("parameters", *model.parameters(), *model.buffers())
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: counter.name("gradients", p.grad))
        with counter:
            _begin(step.optimizer)
            counter.name("optimizer", *step.moments())
            step.compute_gradients(micro_batches, dtype, recompute)
            step.optimizer.step()
        return Footprint(**counter.at_peak)


@cache
def stage_bytes(
    network: NetworkConfig, size_HW: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Bytes per slice that recomputing each stage would spare: what it keeps for the backward pass, less its output."""
    model = _without_data(network, torch.float32, device)
    kept: dict[str, int] = {}
    with FakeTensorMode(), LiveBytes() as counter:
        _fill(model)
        for name, stage in model.stages().items():

            def before(module: nn.Module, inputs: Any, name: str = name) -> None:
                kept[name] = -counter.live

            def after(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                kept[name] += counter.live - storage_bytes(output)

            stage.register_forward_pre_hook(before)
            stage.register_forward_hook(after)
        slices_NCHW = torch.empty(1, network.channels, *size_HW, dtype=dtype).to(memory_format=memory_format(device))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            # The result is kept until the end: what it was computed from would go with it.
            logits_N1HW = model.train()(slices_NCHW)
        del logits_N1HW
    return kept


@cache
def treats_slices_apart(network: NetworkConfig) -> bool:
    """Whether a slice's result is the same in any batch, so that micro-batches are exact: not with batch norm."""
    model = _without_data(network, torch.float32, torch.device("cpu"))
    return not any(isinstance(module, _BatchNorm) for module in model.modules())


def _without_data(network: NetworkConfig, dtype: torch.dtype, device: torch.device) -> SliceNetwork:
    """The network as `step.place` would leave it, on torch's meta device: no bytes, no random numbers drawn."""
    with torch.device("meta"):
        model = build_network(network)
    return model.to(dtype, memory_format=memory_format(device))  # type: ignore[call-overload, no-any-return]


def _fill(model: SliceNetwork) -> None:
    """Replace meta tensors by fake ones that claim to be on the CPU; `Module.to` cannot."""

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(fake(parameter), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake(buffer))


def _fake_batch(
    network: NetworkConfig, size: int, size_HW: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Slices and target on the host; for another device the target's format differs, so that its copy is counted."""
    target_dtype = torch.float32 if device.type == "cpu" else torch.bool
    return (
        torch.empty(size, network.channels, *size_HW),
        torch.empty(size, network.outputs, *size_HW, dtype=target_dtype),
    )


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Take a step that leaves the optimizer with its state."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

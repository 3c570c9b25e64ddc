"""Count the bytes that a step needs: run the step itself on tensors without data and count every storage.

No device is needed, and nothing here depends on the kind of network. Every network is counted as on the CPU, because
what torch does on a card cannot be asked without one; docs/memory.md says what differs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lowmem_brats.config import DICE, NetworkConfig, Objective
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import (
    TrainingStep,
    layout_of,
    predict_batch,
    predict_patches,
)
from lowmem_brats.memory.device import LiveBytes, storage_bytes
from lowmem_brats.networks import Network, PatchNetwork, build_any
from lowmem_brats.networks.drop import set_rates


@dataclass(frozen=True)
class Concessions:
    """What a training step does to need less memory; its result stays the same."""

    micro_batch: int
    """Slices on the device at once."""
    recompute: tuple[str, ...] = ()
    """Names of stages that are recomputed in the backward pass."""
    state_on_host: bool = False
    """Whether the optimizer's state lies in host memory."""


@dataclass(frozen=True)
class Footprint:
    """Live bytes by kind, at the moment when a step holds most of them."""

    parameters: int = 0
    """Weights and buffers."""
    gradients: int = 0
    """Gradients that are complete at that moment; the peak can come before there are any."""
    optimizer: int = 0
    """Adam's two moments, unless they lie in host memory."""
    activations: int = 0
    """Everything else: the micro-batch, the maps, and what is kept for the backward pass."""

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return self.parameters + self.gradients + self.optimizer + self.activations


@cache
def inference_footprint(
    network: NetworkConfig, size: tuple[int, ...], batch: int, dtype: torch.dtype, device: torch.device
) -> Footprint:
    """Bytes of a pass of `batch` slices of H × W pixels, or patches of Z × H × W voxels, and a network in `dtype`.

    On a card they include cuDNN's copies: see `_copy_as_cudnn`.
    """
    model = _outline(network, dtype, device)
    if device.type == "cuda" and dtype.itemsize < 4 and layout_of(model, device) is torch.contiguous_format:
        _copy_as_cudnn(model)
    with _without_data()():
        _fill(model)
        counter = LiveBytes()
        counter.name("parameters", *model.parameters(), *model.buffers())
        if isinstance(model, PatchNetwork):
            n, *sides = _shape(model, batch, size)
            patches = torch.empty(n, network.channels, *sides)
            with counter:
                predict_patches(model.eval(), patches)
        else:
            slices_NCHW = torch.empty(batch, network.channels, *size, dtype=torch.float16)
            with counter:
                predict_batch(model.eval(), slices_NCHW)
        return Footprint(**counter.at_peak)


def _copy_as_cudnn(model: Network) -> None:
    """Have each convolution's maps copied when it has run, as cuDNN does, which computes half formats channels last.

    It copies what goes in and what comes out where that is faster: on an H100 both with 32 slices at once, less with 8.
    """

    def copy(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        copies = torch.empty_like(inputs[0]), torch.empty_like(output)
        del copies

    for module in model.modules():
        if isinstance(module, _ConvNd):
            module.register_forward_hook(copy)


@cache
def training_footprint(
    network: NetworkConfig,
    size: tuple[int, ...],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    concessions: Concessions,
    objective: Objective = DICE,
) -> Footprint:
    """Bytes of a training step from the second on, when Adam's moments exist: its gradients, then Adam.

    `size`, `batch`: as `inference_footprint`; `dtype`: what the network computes in. At most two micro-batches are
    counted: all later ones are like the second. RAdam needs what Adam needs.
    """
    model = _outline(network, torch.float32, device)
    set_rates(model, objective.stochastic_depth, objective.spatial_dropout)
    micro_batch = concessions.micro_batch
    with _without_data()():
        _fill(model)
        micro_batches = [
            _batch(network, _shape(model, count, size), device)
            for count in (micro_batch, min(micro_batch, batch - micro_batch))
            if count
        ]
        step = TrainingStep(model.train(), find_loss(objective.loss))
        step.optimizer.keep_state(concessions.state_on_host)
        _begin(step.optimizer)
        counter = LiveBytes()
        counter.name("parameters", *model.parameters(), *model.buffers())
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: counter.name("gradients", p.grad))
        counter.leave_out(*step.on_host())
        counter.name("optimizer", *([] if concessions.state_on_host else step.moments()))
        with counter:
            loss_and_norm = step.compute_gradients(micro_batches, dtype, concessions.recompute, range(batch))
            step.follow_gradients(dtype)
            del loss_and_norm
        return Footprint(**counter.at_peak)


@cache
def stage_bytes(
    network: NetworkConfig, size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Stage → bytes per slice or crop that recomputing it spares: what it keeps for the backward pass, less its output.

    `size`: as `inference_footprint`.
    """
    model = _outline(network, torch.float32, device)
    kept: dict[str, int] = {}
    with _without_data()(), LiveBytes() as counter:
        _fill(model)
        for name, stage in model.stages().items():

            def before(module: nn.Module, inputs: Any, name: str = name) -> None:
                kept[name] = -counter.live

            def after(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                kept[name] += counter.live - storage_bytes(output)

            stage.register_forward_pre_hook(before)
            stage.register_forward_hook(after)
        shape = _shape(model, 1, size)
        slices_NCHW = torch.empty(1, network.channels, *shape[1:], dtype=dtype)
        slices_NCHW = slices_NCHW.to(memory_format=layout_of(model, device))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            # The result is kept until the end: without it, everything kept for the backward pass would be freed.
            logits_N1HW = model.train()(slices_NCHW)
        del logits_N1HW
    return kept


@cache
def multiply_adds(network: NetworkConfig, size_HW: tuple[int, int]) -> int:
    """Multiplications with addition that one slice of `size_HW` pixels takes, attention included."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and few commands count
    from torch.utils.flop_counter import FlopCounterMode

    model = _outline(network, torch.float32, torch.device("cpu"))
    # In its plain form attention is two matrix products, which the counter knows.
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _fill(model)
        slices_NCHW = torch.empty(1, network.channels, *size_HW)
        with FlopCounterMode(display=False) as counter:
            model.eval()(slices_NCHW)
    return int(counter.get_total_flops()) // 2  # it counts a multiplication and an addition as two


@cache
def treats_slices_apart(network: NetworkConfig) -> bool:
    """Whether a slice gives the same result in any batch, which makes micro-batches exact; False with batch norm."""
    model = _outline(network, torch.float32, torch.device("cpu"))
    return not any(isinstance(module, _BatchNorm) for module in model.modules())


def _outline(network: NetworkConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """The network as `step.place` would leave it, on torch's meta device: it takes no bytes and no random numbers."""
    with torch.device("meta"):
        model = build_any(network)
    return model.to(dtype, memory_format=layout_of(model, device))  # type: ignore[call-overload]


@cache
def _without_data() -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context of tensors without data: `dataless.WithoutData`, or torch's own and slower FakeTensorMode.

    The latter serves where a version of torch lacks one of the private functions that the former is made of.
    """
    try:
        from lowmem_brats.memory.dataless import WithoutData

        with WithoutData():  # a view, and a convolution, which is taken apart, use all of these functions
            torch.nn.functional.conv2d(torch.empty(1, 1, 2, 2)[..., 1:], torch.empty(1, 1, 1, 1))
    except (AttributeError, TypeError, RuntimeError):
        from torch._subclasses.fake_tensor import FakeTensorMode

        return FakeTensorMode
    return WithoutData


def _fill(model: Network) -> None:
    """Replace meta tensors by tensors without data on the CPU; `Module.to_empty` cannot do this for fake ones."""

    def outline(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(outline(parameter), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, outline(buffer))


def _shape(model: Network, count: int, size: Sequence[int]) -> tuple[int, ...]:
    """Of a batch without its channels: so many slices of H × W, or patches of Z × H × W in the network's order."""
    order = [*map("ZHW".index, model.axes)] if isinstance(model, PatchNetwork) else range(2)
    return count, *(size[axis] for axis in order)


def _batch(network: NetworkConfig, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Slices and target on the host; for a card the target has another format, so that copying it is counted."""
    target_dtype = torch.float32 if device.type == "cpu" else torch.bool
    size, *sides = shape
    return (
        torch.empty(size, network.channels, *sides),
        torch.empty(size, network.outputs, *sides, dtype=target_dtype),
    )


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Take one step, after which the optimizer has its state."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

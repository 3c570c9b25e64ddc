"""The two steps whose bytes are counted: one batch of prediction, one batch of training.

What runs and what is counted are these same functions. Shape suffixes: N slices in a batch, C modalities, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lowmem_brats.loss import backward_batch_dice
from lowmem_brats.memory.checkpointing import recomputed
from lowmem_brats.networks import SliceNetwork

CLIP_NORM = 12.0


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last, except on CUDA, whose group norm would copy every channels-last map to the plain order."""
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def place(network: SliceNetwork, device: torch.device, dtype: torch.dtype = torch.float32) -> SliceNetwork:
    """Move a network (in place) to a device and format, in the order of values that suits the device."""
    return network.to(device, dtype, memory_format=memory_format(device))  # type: ignore[call-overload, no-any-return]


def predict_batch(network: SliceNetwork, slices_NCHW: Tensor) -> Tensor:
    """Segment slices on the host with a network that `place` has moved: `mask_NHW` on the host, False outside brain."""
    parameter = next(network.parameters())
    with torch.inference_mode():
        slices_NCHW = _to_device(slices_NCHW, parameter.device, parameter.dtype)
        brain_NHW = (slices_NCHW != 0).any(dim=1)  # there is no tumour outside it
        logits_N1HW: Tensor = network(slices_NCHW)
        return ((logits_N1HW[:, 0] > 0) & brain_NHW).cpu()


def build_optimizer(network: SliceNetwork, learning_rate: float) -> torch.optim.Adam:
    """Adam, fused: it works in place, where torch's other forms need up to the parameters' bytes once more."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer keeps between steps; nothing before the first."""
    return [tensor for state in optimizer.state.values() for tensor in state.values()]


def build_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """What keeps small gradients of fp16 from becoming 0 on a card; it does nothing for other formats and the CPU."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda")


def split_batch(slices_NCHW: Tensor, target_N1HW: Tensor, micro_batch: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into micro-batches of at most so many slices."""
    return list(zip(slices_NCHW.split(micro_batch), target_N1HW.split(micro_batch), strict=True))


def compute_gradients(
    network: SliceNetwork,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    recompute: Collection[str] = (),
) -> tuple[Tensor, Tensor]:
    """Set the gradients of one batch, clipped to CLIP_NORM; returns the loss and the norm before clipping, 0-dim each.

    `network`: fp32, placed, training; `micro_batches`: slices_NCHW and target_N1HW on the host, from `split_batch`;
    `dtype`: what it computes in, by autocast if half; `recompute`: names of stages to recompute in the backward pass.
    """
    device = next(network.parameters()).device
    network.zero_grad(set_to_none=True)

    def logits_of(slices_NCHW: Tensor) -> Tensor:
        # Without the cache: it would keep a half copy of every weight although each is used once.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return network(_to_device(slices_NCHW, device, dtype))  # type: ignore[no-any-return]

    with recomputed(network, recompute):
        loss = backward_batch_dice(logits_of, micro_batches, scaler.scale)
    with _retryable(optimizer, scaler):
        scaler.unscale_(optimizer)
        return loss, torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)


def training_step(
    network: SliceNetwork,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    recompute: Collection[str] = (),
) -> tuple[float, bool]:
    """One optimisation step, arguments as `compute_gradients`; returns the loss and whether a step was taken.

    No step is taken where the gradient is not finite. After an exception, such as torch.OutOfMemoryError, the step can
    be tried again.
    """
    loss, norm = compute_gradients(network, optimizer, scaler, micro_batches, dtype, recompute)
    with _retryable(optimizer, scaler):
        finite = bool(torch.isfinite(norm))
        if finite:
            scaler.step(optimizer)
        scaler.update()
    return float(loss), finite


@contextmanager
def _retryable(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Iterator[None]:
    """Leave optimizer and scaler as before a step if the block, which begins after `scaler.scale`, fails."""
    try:
        yield
    except BaseException:
        if scaler.is_enabled():
            # To set the scale to what it is also makes the scaler forget that it has unscaled this step's gradients.
            scaler.update(scaler.get_scale())
        for parameter in [p for p, state in optimizer.state.items() if "exp_avg_sq" not in state]:
            del optimizer.state[parameter]  # Adam had no room for the second moment
        raise


def _to_device(slices_NCHW: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return slices_NCHW.to(device, dtype, copy=True, memory_format=memory_format(device))

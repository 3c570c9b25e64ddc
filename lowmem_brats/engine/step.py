"""The two steps whose bytes are counted: one batch of prediction, and one batch of training.

The same functions are run and counted. What is said here of slices in a training step holds for crops of volumes too.
Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lowmem_brats.config import MODALITIES
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import Loss, backward_loss
from lowmem_brats.engine.optimizer import OPTIMIZERS
from lowmem_brats.engine.recompute import recomputed
from lowmem_brats.networks import AnyNetwork, Network, PatchNetwork, SliceNetwork
from lowmem_brats.networks.drop import dropping


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last, but contiguous on CUDA, where group norm would copy every channels-last map."""
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def layout_of(network: Network, device: torch.device) -> torch.memory_format:
    """The memory layout of a network's weights: as its maps; contiguous for patches, as their authors run them."""
    return torch.contiguous_format if isinstance(network, PatchNetwork) else memory_format(device)


def place(network: AnyNetwork, device: torch.device, dtype: torch.dtype = torch.float32) -> AnyNetwork:
    """Move a network, in place, to a device and format, with the memory layout that suits the device."""
    return network.to(device, dtype, memory_format=layout_of(network, device))  # type: ignore[call-overload, no-any-return]


NO_MEMORY = (
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)
"""What CUDA's libraries say when they find no room, for their work space too, and torch passes on as it is."""


@contextmanager
def want_of_memory_named() -> Iterator[None]:
    """Turn a RuntimeError inside the block that means a want of memory into torch.OutOfMemoryError."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in NO_MEMORY) and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error)) from None  # its traceback would hold on to tensors
        raise


@want_of_memory_named()
def predict_batch(network: SliceNetwork, slices_NCHW: Tensor) -> Tensor:
    """Logits of a batch, [N, K, H, W], fp32 on the host, 0 outside the brain.

    `network`: moved by `place`; `slices_NCHW`: on the host.
    """
    parameter = next(network.parameters())
    with torch.inference_mode():
        slices_NCHW = _to_device(slices_NCHW, network, parameter.dtype)
        brain_N1HW = (slices_NCHW[:, : len(MODALITIES)] != 0).any(dim=1, keepdim=True)  # there is no tumour outside it
        logits_NKHW: Tensor = network(slices_NCHW)
        return logits_NKHW.mul_(brain_N1HW).cpu().float()


@want_of_memory_named()
def predict_patches(network: PatchNetwork, patches: Tensor) -> Tensor:
    """Logits of a batch of patches, [N, K, …], fp32 on the host.

    `network`: moved by `place`; `patches`: fp32 [N, C, …] on the host, contiguous.
    """
    parameter = next(network.parameters())
    with torch.inference_mode():
        logits: Tensor = network(patches.to(parameter.device, parameter.dtype))
        return logits.cpu().float()


def split_batch(slices_NCHW: Tensor, target_NKHW: Tensor, micro_batch: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into micro-batches of at most `micro_batch` slices."""
    return list(zip(slices_NCHW.split(micro_batch), target_NKHW.split(micro_batch), strict=True))


@dataclass(frozen=True)
class Outcome:
    """The result of a training step."""

    loss: float
    norm: float
    """Length of the gradient before it was clipped."""

    @property
    def stepped(self) -> bool:
        """Whether the weights were changed; False if the gradient was not finite."""
        return math.isfinite(self.norm)


class TrainingStep:
    """Takes optimisation steps with one network: gradients, clipping, AdamW (Adam if the weight decay is 0) or RAdam.

    `network`: fp32, moved by `place`, in training mode; it is changed in place. `clip_norm`: longer gradients are
    shortened to this length. `optimizer`: a key of OPTIMIZERS.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        weight_decay: float = 0.0,
        clip_norm: float = 12.0,
        optimizer: str = "adam",
    ) -> None:
        self.network, self.loss, self.clip_norm = network, loss, clip_norm
        self._device = next(network.parameters()).device
        self.optimizer = OPTIMIZERS[optimizer](network.parameters(), weight_decay)
        # Keeps small fp16 gradients from becoming 0.
        self.scaler = torch.amp.GradScaler(self._device.type)
        self._no_scaler = torch.amp.GradScaler(self._device.type, enabled=False)

    def moments(self) -> list[Tensor]:
        """The tensors that the optimizer keeps between steps; none before the first step."""
        return [tensor for state in self.optimizer.state.values() for tensor in state.values()]

    def resident(self) -> list[Tensor]:
        """The tensors that stay on the device between steps."""
        state = [] if self.optimizer.on_host else self.moments()
        return [*self.network.parameters(), *self.network.buffers(), *state]

    def on_host(self) -> list[Tensor]:
        """The tensors that stay in host memory, also where the CPU is the device."""
        return self.moments() if self.optimizer.on_host else []

    def compute_gradients(
        self,
        micro_batches: Sequence[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        recompute: Collection[str] = (),
        seeds: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Compute the clipped gradients of one batch; returns the loss and the norm before clipping, 0-dim each.

        `micro_batches`: pairs of slices_NCHW and target_NKHW of this process, on the host, from `split_batch`; the
        gradients are those of the slices of all processes. `dtype`: what the network computes in, by autocast if half;
        `recompute`: names of stages to recompute in the backward pass; `seeds`: one per slice, for a network that drops
        at random.
        """
        self.network.zero_grad(set_to_none=True)
        scaler = self._scaler_of(dtype)

        def logits_of(part: tuple[Tensor, Sequence[int]]) -> Tensor:
            slices_NCHW, drawn = part
            draw(drawn)
            # Without autocast's cache, which would keep a half copy of every weight although each is used once.
            with torch.autocast(self._device.type, dtype, enabled=dtype.itemsize < 4, cache_enabled=False):
                return self.network(_to_device(slices_NCHW, self.network, dtype))  # type: ignore[no-any-return]

        starts = accumulate((len(target) for _, target in micro_batches), initial=0)
        parts = [
            ((slices_NCHW, seeds[start : start + len(slices_NCHW)]), target_NKHW)
            for start, (slices_NCHW, target_NKHW) in zip(starts, micro_batches, strict=False)
        ]
        with recomputed(self.network, recompute), dropping(self.network) as draw:
            loss = backward_loss(self.loss, logits_of, parts, scaler.scale, parallel.add_up)
        with self._retryable(scaler):
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parallel.add_up(parameter.grad)
            scaler.unscale_(self.optimizer)
            return loss, torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    @want_of_memory_named()
    def take(
        self,
        micro_batches: Sequence[tuple[Tensor, Tensor]],
        learning_rate: float,
        dtype: torch.dtype,
        recompute: Collection[str] = (),
        seeds: Sequence[int] = (),
    ) -> Outcome:
        """Take one optimisation step; arguments as `compute_gradients`.

        After an exception, such as torch.OutOfMemoryError, the step can be tried again.
        """
        loss, norm = self.compute_gradients(micro_batches, dtype, recompute, seeds)
        outcome, scaler = Outcome(float(loss), float(norm)), self._scaler_of(dtype)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        with self._retryable(scaler):
            if outcome.stepped:
                self.follow_gradients(dtype)
            scaler.update()
        return outcome

    def follow_gradients(self, dtype: torch.dtype) -> None:
        """Change the weights along the gradients that were computed in `dtype`."""
        self._scaler_of(dtype).step(self.optimizer)

    def _scaler_of(self, dtype: torch.dtype) -> torch.amp.GradScaler:
        return self.scaler if dtype == torch.float16 else self._no_scaler

    @contextmanager
    def _retryable(self, scaler: torch.amp.GradScaler) -> Iterator[None]:
        """If the block fails, restore optimizer and scaler; the block begins after `scaler.scale`."""
        try:
            yield
        except BaseException:
            if scaler.is_enabled():
                # Setting the scale to its own value makes the scaler forget that it has unscaled these gradients.
                scaler.update(scaler.get_scale())
            for parameter in [p for p, state in self.optimizer.state.items() if "exp_avg_sq" not in state]:
                del self.optimizer.state[parameter]  # Adam found no memory for the second moment
            raise


def _to_device(slices_NCHW: Tensor, network: Network, dtype: torch.dtype) -> Tensor:
    device = next(network.parameters()).device
    return slices_NCHW.to(device, dtype, copy=True, memory_format=layout_of(network, device))

"""The interface of every network, so that planning, weights and commands need no code per network.

Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lowmem_brats.errors import InputError

PRIOR = 0.05
"""Share of tumour pixels that a fresh network predicts (Lin et al. 2017, "Focal Loss", section 4.1). Without it the
network starts at one half, and Dice takes hundreds of steps to come down."""


class SliceNetwork(nn.Module, ABC):
    """A 2D network from `slices_NCHW` to `logits_NKHW`, one foreground logit per pixel and region, K = config.outputs.

    C = config.channels: the modalities of a slice, then those of its neighbours in the order of `slices.with_context`.
    """

    stride: int
    """H and W must be multiples of this."""
    outputs: int = 1
    """The number of regions K that it segments."""
    has_width: bool = True
    """Whether its size depends on `config.width`."""
    context: int = 0
    """The number of neighbours that it sees on either side of a slice."""

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The sub-modules that run one after another, name → module, in order."""

    @abstractmethod
    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """Logits of the foreground, [N, K, H, W]; probability = sigmoid. Three regions are WT, TC, ET, in this order.

        In training mode it may give M maps of each region, [N, M·K, H, W], for the loss to judge separately; in
        evaluation mode it gives their sum.
        """

    def convolutions(self) -> list[nn.Conv2d]:
        """Those that a ReLU follows without a norm between, from input to output; none if every one has a norm."""
        return []

    @abstractmethod
    def last_bias(self) -> nn.Parameter:
        """The bias that is added last to the logits of each region, [K]; lowering it makes masks smaller."""

    def take_masks_at(self, logits_K: Sequence[float]) -> None:
        """Shift the last bias so that 0 is from now on what these logits, one per region, were."""
        bias_K = self.last_bias()
        with torch.no_grad():
            bias_K.sub_(bias_K.new_tensor(logits_K))

    def load_encoder(self, path: Path) -> None:
        """Load the encoder's public checkpoint. Raises InputError for a network that has no such encoder."""
        found = f"{type(self).__name__}, which has no such encoder"
        raise InputError("--encoder-weights", found, "EMCAD or TransUNet", "Leave the option out.")


def mismatches(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Describe every tensor of `found` that is missing, unexpected, of another shape than `wanted`, or not finite."""
    problems = [f"{key} missing" for key in wanted.keys() - found.keys()]
    problems += [f"{key} unexpected" for key in found.keys() - wanted.keys()]
    problems += [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    return sorted(problems + [f"{key} holds NaN or infinity" for key in found if not found[key].isfinite().all()])

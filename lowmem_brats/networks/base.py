"""The contract that every network keeps, so that planning, weights and commands need no code per network.

Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lowmem_brats.errors import InputError

PRIOR = 0.05
"""Share of tumour pixels that a fresh network expects (Lin et al. 2017, "Focal Loss", section 4.1): from one half, as
without it, Dice takes hundreds of steps to come down."""


class SliceNetwork(nn.Module, ABC):
    """A 2D network: `slices_NCHW` in, a foreground logit per pixel and region `logits_NKHW` out, K = config.outputs.

    C = config.channels: the modalities of a slice, then those of its neighbours as `slices.with_context` orders them.
    """

    stride: int
    """H and W must be multiples of it."""
    outputs: int = 1
    """How many regions K it segments."""
    has_width: bool = True
    """Whether `config.width` decides how large it is."""
    context: int = 0
    """How many neighbours on either side of a slice it sees."""

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The sub-modules that run one after another, by name, in order."""

    @abstractmethod
    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """Logits [N, K, H, W] of the foreground; probability = sigmoid. Of three regions: WT, TC, ET.

        In training it may give several maps of each, [N, M·K, H, W], to be judged apart; evaluation gives their sum.
        """

    @abstractmethod
    def last_bias(self) -> nn.Parameter:
        """What is added to the logits of each region last, [K]: less of it, and masks are smaller."""

    def load_encoder(self, path: Path) -> None:
        """Start from the encoder's public checkpoint. Raises InputError where there is none to start."""
        name = type(self).__name__
        raise InputError("--encoder-weights", f"{name}, which has no such encoder", "EMCAD", "Leave the option out.")


def mismatches(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Every tensor that is missing, unexpected, of another shape or not finite, in words."""
    problems = [f"{key} missing" for key in wanted.keys() - found.keys()]
    problems += [f"{key} unexpected" for key in found.keys() - wanted.keys()]
    problems += [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    return sorted(problems + [f"{key} holds NaN or infinity" for key in found if not found[key].isfinite().all()])

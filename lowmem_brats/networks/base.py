"""The interface of every network, so that planning, weights and commands need no code per network.

A network sees slices or patches of a volume, and each kind says of which sizes; the rest is alike.
Shape suffixes: N slices or patches in a batch, C modalities, K regions, Z H W axial slices, rows and columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lowmem_brats.errors import InputError

PRIOR = 0.05
"""Share of tumour pixels that a fresh network predicts (Lin et al. 2017, "Focal Loss", section 4.1). Without it the
network starts at one half, and Dice takes hundreds of steps to come down."""


class Network(nn.Module, ABC):
    """What networks of slices and of patches share: one foreground logit per voxel and region, K = config.outputs."""

    outputs: int = 1
    """The number of regions K that it segments."""
    has_width: bool = True
    """Whether its size depends on `config.width`."""

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The sub-modules that run one after another, name → module, in order."""

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


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


class SliceNetwork(Network):
    """A 2D network from `slices_NCHW` to `logits_NKHW`.

    C = config.channels: the modalities of a slice, then those of its neighbours in the order of `slices.with_context`.
    """

    stride: int
    """H and W must be multiples of this."""
    context: int = 0
    """The number of neighbours that it sees on either side of a slice."""

    @abstractmethod
    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """Logits of the foreground, [N, K, H, W]; probability = sigmoid. Three regions are WT, TC, ET, in this order.

        In training mode it may give M maps of each region, [N, M·K, H, W], for the loss to judge separately; in
        evaluation mode it gives their sum.
        """


class PatchNetwork(Network):
    """A network from patches of a volume, [N, C, *axes], to logits [N, K, *axes]; `axes` says in which order.

    Where `config.tissues`, K is 4: the background and three tissues that exclude each other (`labels.of_tissues`).
    """

    stride_ZHW: tuple[int, int, int]
    """Each side of a patch must be a multiple of this."""
    window_ZHW: tuple[int, int, int]
    """The patch with which its authors run it; 1 slice, and no more, for a network of slices in disguise."""
    axes: str
    """The order of the three axes in a tensor: `ZHW`, or `WHZ` as BraTS stores its volumes."""
    whole: bool
    """Whether its authors show it the whole volume; otherwise the brain's bounding box."""
    crops_ZHW: tuple[tuple[int, int, int], ...] = ()
    """The crops that it can be trained with, from that of its authors down; empty: it is not trained here."""
    authors_keys: dict[str, str]
    """What its authors call a tensor → what it is called here; empty for a tensor that is not needed to predict."""

    @abstractmethod
    def forward(self, patches: Tensor) -> Tensor:
        """Logits [N, K, *axes] of patches [N, C, *axes]."""


def keys_of(theirs: Mapping[str, Tensor], network: nn.Module) -> dict[str, str]:
    """`PatchNetwork.authors_keys` of a network that is made of the layers of its authors' class.

    `theirs`: the state of that class, whose tensors are those of the layers, by identity.
    """
    ours = {id(tensor): key for key, tensor in network.state_dict(keep_vars=True).items()}
    return {key: ours.get(id(tensor), "") for key, tensor in theirs.items()}


def in_memory(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are there, one after another: not those of a sparse one, or one without data."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


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

"""The ways in which a network may segment, the fastest first: so many slices at once, or patches of a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lowmem_brats.memory.tiles import tilings
from lowmem_brats.networks import PatchNetwork

BATCHES = {"cpu": (4, 2, 1), "cuda": (32, 16, 8, 4, 2, 1)}
"""Slices per forward pass, fastest first. On the CPU more than four bring nothing; compared with four, one at a time
takes 1.25 times as long (U-Net of width 24; EMCAD-B0: 2.0)."""


@dataclass(frozen=True)
class InferencePlan:
    """How slices or patches are segmented by a network."""

    device: str
    """Device that computes, in torch's words: `cpu`, `cuda:0`."""
    precision: str
    """`fp32`, `fp16` or `bf16`."""
    batch: int
    """Slices or patches per forward pass."""
    patch_ZHW: tuple[int, ...] = ()
    """Voxels of a patch; empty: the network sees slices."""
    cropped: bool = False
    """Whether patches cover the brain's bounding box only."""
    relative_time: float = 1.0
    """Estimated time of patches, relative to that of their authors' way."""
    predicted_bytes: int = 0
    """Peak bytes of tensors, including the network; 0: not planned."""
    components: dict[str, int] = field(default_factory=dict)
    """Those bytes by kind: parameters, gradients, optimizer, activations."""
    reserve_bytes: int = 0
    """Bytes that are kept free for CUDA in addition."""


def plans_of_slices(device: str, precision: str) -> list[InferencePlan]:
    """Ever fewer slices at once."""
    return [InferencePlan(device, precision, batch) for batch in BATCHES[torch.device(device).type]]


def plans_of_patches(
    network: PatchNetwork, volume_ZHW: Sequence[int], brain_ZHW: Sequence[int], device: str, precision: str
) -> list[InferencePlan]:
    """The way of the network's authors, then others; several patches at once only where each is a slice.

    Arguments as `tilings`.
    """
    ways = tilings(network, volume_ZHW, brain_ZHW)
    batches = BATCHES[torch.device(device).type] if network.window_ZHW[0] == 1 else (1,)
    return [
        InferencePlan(device, precision, batch, way.patch_ZHW, way.cropped, round(way.voxels / ways[0].voxels, 2))
        for way in ways
        for batch in batches
    ]

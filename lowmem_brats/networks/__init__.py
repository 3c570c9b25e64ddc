"""The table of networks. To add one: a file here, and a row in NETWORKS, `config.NETWORKS`, NOTICE and the README."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from lowmem_brats.config import BRATS_SHAPE, NetworkConfig
from lowmem_brats.errors import InputError, did_you_mean
from lowmem_brats.networks.base import AnyNetwork, Network, PatchNetwork, SliceNetwork, mismatches
from lowmem_brats.networks.calibrate import calibrate
from lowmem_brats.networks.drop import set_rates
from lowmem_brats.networks.emcad import EMCAD
from lowmem_brats.networks.nnunet import NnUNet
from lowmem_brats.networks.resunet2d import ResUNet2d
from lowmem_brats.networks.segresnet import SegResNet, SegResNet2d
from lowmem_brats.networks.transbts2d import TransBTS2d
from lowmem_brats.networks.transunet import TransUNet
from lowmem_brats.networks.unet2d import UNet2d

NETWORKS: dict[str, Callable[[NetworkConfig], SliceNetwork | PatchNetwork]] = {
    "unet2d": UNet2d,
    "emcad-b0": EMCAD,
    "emcad-b2": EMCAD,
    "resunet2d": ResUNet2d,
    "transbts2d-light": TransBTS2d,
    "transbts2d": TransBTS2d,
    "transunet": TransUNet,
    "segresnet2d": SegResNet2d,
    "segresnet": SegResNet,
    "nnunet": NnUNet,
}


def build_any(config: NetworkConfig) -> SliceNetwork | PatchNetwork:
    """Build a network with fresh fp32 weights on torch's default device.

    Raises InputError for an unknown name, for a library that is not installed, and for an architecture from a file
    that cannot be built.
    """
    if config.name not in NETWORKS:
        advice = did_you_mean(config.name, NETWORKS, "Check the spelling.")
        raise InputError("network", repr(config.name), f"one of {', '.join(NETWORKS)}", advice)
    return NETWORKS[config.name](config)


def build_network(config: NetworkConfig) -> SliceNetwork:
    """Build a network of slices, as `build_any`; raises InputError too for one of patches."""
    network = build_any(config)
    if not isinstance(network, SliceNetwork):
        advice = "Segment with it, or choose another network."
        raise InputError("--network", f"{config.name}, which sees patches", "a network that sees slices", advice)
    return network


def build_patch_network(config: NetworkConfig) -> PatchNetwork:
    """Build a network of patches, as `build_any`; raises InputError too for one of slices."""
    network = build_any(config)
    if not isinstance(network, PatchNetwork):
        raise InputError("--network", f"{config.name}, which sees slices", "a network that sees patches", "Choose one.")
    return network


def patches_of(config: NetworkConfig) -> PatchNetwork | None:
    """The outline, without weights, of a network that sees patches; None for one that sees slices."""
    outline = _outline(config)
    return outline if isinstance(outline, PatchNetwork) else None


def stride_of(config: NetworkConfig) -> int:
    """The number of which H and W, of patches Z too, must be multiples; found without allocating any weights."""
    outline = _outline(config)
    if isinstance(outline, PatchNetwork):
        return max(outline.stride_ZHW)
    return outline.stride


def padded_size(config: NetworkConfig, size_HW: tuple[int, int]) -> tuple[int, int]:
    """The smallest H and W that are not below `size_HW` and that the network takes."""
    stride = stride_of(config)
    return -(-size_HW[0] // stride) * stride, -(-size_HW[1] // stride) * stride


def usual_size(config: NetworkConfig) -> tuple[int, ...]:
    """What a network sees of a case of BraTS: H and W of its slices, padded as needed, or Z, H and W of the volume."""
    return BRATS_SHAPE[::-1] if patches_of(config) else padded_size(config, BRATS_SHAPE[:2])


def has_width(config: NetworkConfig) -> bool:
    """Whether the width of the network can be chosen."""
    return _outline(config).has_width


def title_of(config: NetworkConfig) -> str:
    """The network in words: its name, and its width if this can be chosen."""
    return f"{config.name} of width {config.width}" if has_width(config) else config.name


def check_rates(config: NetworkConfig, stochastic_depth: float, spatial_dropout: float) -> None:
    """Raise InputError where the network cannot drop what it is to drop; arguments as `drop.set_rates`."""
    set_rates(_outline(config), stochastic_depth, spatial_dropout)


def adapted(state: Mapping[str, Tensor], config: NetworkConfig, output: int = 0) -> dict[str, Tensor]:
    """Adapt weights to the network of `config`, which may see more neighbours of a slice and have fewer outputs.

    The new input channels get weights of 0, so the result is the same until the network has learnt to use them. A
    network of one output gets number `output` of a network of three.
    """
    wanted = _outline(config).state_dict()
    adapted = dict[str, Tensor]()
    for key, value in state.items():
        if value.ndim and len(value) != len(wanted[key]):
            value = value[output : output + 1]
        if value.ndim == 4:
            value = functional.pad(value, (0, 0, 0, 0, 0, wanted[key].shape[1] - value.shape[1]))
        adapted[key] = value
    return adapted


def _outline(config: NetworkConfig) -> SliceNetwork | PatchNetwork:
    with torch.device("meta"):
        return build_any(config)


__all__ = [
    "NETWORKS",
    "AnyNetwork",
    "Network",
    "PatchNetwork",
    "SliceNetwork",
    "adapted",
    "build_any",
    "build_network",
    "build_patch_network",
    "calibrate",
    "check_rates",
    "has_width",
    "mismatches",
    "padded_size",
    "patches_of",
    "stride_of",
    "title_of",
    "usual_size",
]

"""The table of networks. Another one: a file here, a row in NETWORKS, a row in NOTICE, a row in the README."""

from __future__ import annotations

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.networks.base import SliceNetwork
from lowmem_brats.networks.unet2d import UNet2d

NETWORKS: dict[str, type[UNet2d]] = {"unet2d": UNet2d}


def build_network(config: NetworkConfig) -> SliceNetwork:
    """Build a network with fresh fp32 weights on torch's default device. Raises InputError for an unknown name."""
    if config.name not in NETWORKS:
        raise InputError("network", repr(config.name), f"one of {', '.join(NETWORKS)}", "Check the spelling.")
    return NETWORKS[config.name](config)


def stride_of(config: NetworkConfig) -> int:
    """What H and W must be multiples of, without allocating any weights."""
    with torch.device("meta"):
        return build_network(config).stride


__all__ = ["NETWORKS", "SliceNetwork", "build_network", "stride_of"]

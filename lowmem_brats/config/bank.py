"""Banks that `train --bank` knows: the members of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lowmem_brats.config.network import NetworkConfig

BANKS: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "med-danet": {
        "resunet2d-12": ("resunet2d", 12),
        "resunet2d-16": ("resunet2d", 16),
        "transbts2d-light": ("transbts2d-light", 16),
        "transbts2d": ("transbts2d", 16),
    },
    "widths": {"unet2d-8": ("unet2d", 8), "unet2d-16": ("unet2d", 16), "unet2d-24": ("unet2d", 24)},
}
"""Bank → member → network and width, the smallest first. The first bank is that of Wang et al. 2022."""

BANK_HELP = "; ".join(f"{bank}: {', '.join(members)}" for bank, members in BANKS.items())


def members_of(bank: str, network: NetworkConfig) -> dict[str, NetworkConfig]:
    """Member → its architecture, the smallest first; what is not its own is as in `network`, for all three regions."""
    return {
        member: replace(network, name=name, width=width, outputs=3) for member, (name, width) in BANKS[bank].items()
    }

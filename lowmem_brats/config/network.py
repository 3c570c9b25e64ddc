"""The architecture of a network."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_brats.config import names
from lowmem_brats.config.setting import Check, Setting, check_settings, words
from lowmem_brats.config.shared import MAIN, NETWORKS
from lowmem_brats.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything needed to build a network; stored in the header of its weights file."""

    name: str = Setting(
        "--network",
        "Architecture. " + "; ".join(f"{name}: {what}" for name, what in names.NETWORKS.items()) + ".",
        MAIN,
        metavar="|".join(names.NETWORKS),
    ).default("unet2d")
    width: int = Setting(
        "--width",
        "Channels of a U-Net's first level; each level below doubles them. Multiples of 8; of 4 for resunet2d.",
        MAIN,
        Check("a positive multiple of 4", lambda width: width >= 4 and width % 4 == 0),
    ).default(32)
    depth: int = Setting(check=Check("1 to 5 poolings", lambda depth: 1 <= depth <= 5)).default(4)
    """Number of 2×2 poolings; H and W must be multiples of 2^depth."""
    norm: str = Setting(
        "--norm",
        "Norms of the U-Net: group, of 8 groups; none, calibrated once at the start; batch, as in the paper.",
        NETWORKS,
        choices=words("group", "none", "batch"),
    ).default("group")
    outputs: int = Setting(
        "--mode",
        "A binary network for each region (the paper's U-Net 2C), or one network for all three (its U-Net 3C).",
        NETWORKS,
        choices={"three-networks": 1, "one-network": 3},
    ).default(1)
    """Number of logit maps."""
    views: int = Setting(
        "--views",
        "From how many sides a network sees a volume, averaged: 1 axial; 2 coronal too; 3 sagittal too.",
        NETWORKS,
        Check("1 to 3", lambda views: 1 <= views <= 3),
    ).default(1)
    context: int = Setting(
        "--context",
        "How many slices before each slice and as many after it are further channels of the input: 0 to 3.",
        NETWORKS,
        Check("0 to 3 slices", lambda context: 0 <= context <= 3),
    ).default(0)

    def __post_init__(self) -> None:
        check_settings(self, "network")
        if self.name == "unet2d" and self.width % 8:
            raise InputError("network width", str(self.width), "a positive multiple of 8", "Group norm has 8 groups.")
        if self.name == "transunet" and self.context:
            # Its first kernels are standardised over all input channels: new ones would change what it has learnt.
            raise InputError("--context", f"{self.context} for transunet", "0", "Leave the option out.")
        if self.norm == "none" and self.name != "unet2d":
            raise InputError("--norm", f"none for {self.name}", "group, or a U-Net", "Leave the option out.")

    @property
    def channels(self) -> int:
        """Of the network's input: those of a slice, then those of its neighbours."""
        return len(names.MODALITIES) * (1 + 2 * self.context)

"""The architecture of a network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowmem_brats.config import names
from lowmem_brats.config.setting import Check, Setting, check_settings, words
from lowmem_brats.config.shared import MAIN, NETWORKS
from lowmem_brats.errors import InputError

LARGEST_PATCH = 512
"""Voxels along a side; no network was ever shown more at once."""


def sides_of(text: str) -> tuple[int, ...]:
    """The sides of a patch that is written as `160x240x240`; none if it is not written so, or too large."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})x(\d{1,3})", text)
    sides = tuple(map(int, match.groups())) if match else ()
    return sides if all(1 <= side <= LARGEST_PATCH for side in sides) else ()


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
        "Norms: group, of 8 groups; none, for the U-Net alone, calibrated once at the start; batch, as in the paper.",
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

    patch: str = Setting(
        check=Check("Z×H×W, such as 160x240x240", lambda text: not text or bool(sides_of(text)))
    ).default("")
    """Of a network of patches: the patch with which its authors run it, `160x240x240`; empty: the usual one."""
    cropped: bool = False
    """Of SegResNet: whether it learnt from crops of the brain's bounding box, as here, in place of whole volumes."""
    tissues: bool = False
    """Whether the outputs are the background and three tissues that exclude each other, in place of regions."""
    architecture: str = ""
    """Of an nnU-Net: the class of its network and the settings of it, JSON, as its plans name them."""

    def __post_init__(self) -> None:
        check_settings(self, "network")
        if self.name.startswith("segresnet") and self.width % 8:
            raise InputError("network width", str(self.width), "a positive multiple of 8", "Group norm has 8 groups.")
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

"""What a user or a weights file can set: frozen dataclasses, defaults written once and read by the command line."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_brats.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The channels C of every array and network, in this order."""

PREPROCESSING = "zscore-brain"
"""Name of the intensity scheme: z-score per modality over its non-zero voxels, background 0 (stored with weights)."""

BRATS_SHAPE = (240, 240, 155)
"""Voxels X, Y, Z of a BraTS volume, 1 mm each."""

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything needed to build a network; stored in the header of its weights file."""

    name: str = "unet2d"
    """A row of `networks.NETWORKS`."""
    width: int = 32
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Number of 2×2 poolings; H and W must be multiples of 2^depth."""
    norm: str = "group"
    """`group` (8 groups) or `batch` (to reproduce the paper)."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise InputError("network width", str(self.width), "a positive multiple of 8", "Use 16, 24 or 32.")
        if not 1 <= self.depth <= 5:
            raise InputError("network depth", str(self.depth), "1 to 5 poolings", "Use 4, as the paper does.")
        if self.norm not in ("group", "batch"):
            raise InputError("network norm", repr(self.norm), "'group' or 'batch'", "Use 'group'.")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How to segment a case."""

    weights: str | None = None
    """A shipped set's name or a folder with an index.json; None: the shipped default."""
    device: str = "auto"
    """`auto` (CUDA when usable, else CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: str = "auto"
    """One of PRECISIONS."""
    vram: str = "max"
    """Memory budget such as 2G, 512M, 75% or max: for everything on a card, for live tensors on the CPU."""
    labels: str = "brats2020"
    """Label convention of the result, a key of `labels.CONVENTIONS`."""
    min_component: float = 0.0
    """Drop connected tumour components smaller than this many mm³; 0: keep all."""
    skip_slices: bool = True
    """Run TC on slices with WT only and ET on slices with TC only; exact under nested fusion."""

    def __post_init__(self) -> None:
        if self.min_component < 0:
            raise InputError("--min-component", f"{self.min_component} mm³", "0 or more", "Use 0 to keep everything.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train the networks of a set."""

    network: NetworkConfig = NetworkConfig()
    """The architecture of each region's network."""
    epochs: int = 80
    """Passes over the training slices per region (80 in the paper)."""
    max_minutes: float | None = None
    """Time limit for all regions together; the learning rate still decays to zero. None: no limit."""
    batch: int = 10
    """Slices per optimisation step (10 in the paper)."""
    learning_rate: float = 1e-3
    """Adam's initial step size; decays to zero along a half cosine."""
    validation: float = 0.1
    """Fraction of patients held out to choose the best epoch."""
    augment: bool = True
    """Warp and re-scale the training slices at random."""
    precision: str = "auto"
    """One of PRECISIONS; parameters stay fp32."""
    device: str = "auto"
    """As in SegmentConfig."""
    vram: str = "max"
    """As in SegmentConfig; any plan gives the gradient of the whole batch."""
    labels: str = "brats2020"
    """Label convention of the training cases."""
    seed: int = 0
    """Split, initial weights, order and augmentation follow from it."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise InputError(
                "training", f"{self.epochs} epochs of batch {self.batch}", "at least 1 of each", "Raise it."
            )
        if not 0 < self.validation < 1:
            raise InputError("--validation", str(self.validation), "between 0 and 1", "Use 0.1.")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError("--max-minutes", str(self.max_minutes), "more than 0", "Leave it out for no limit.")

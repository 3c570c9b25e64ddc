"""How to segment a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_brats.config.setting import Setting, check_settings
from lowmem_brats.config.shared import DEVICE, LABEL_CONVENTION, MAIN, PRECISION, RESULT, SHARE, VRAM


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How to segment a case."""

    weights: str | Sequence[str] = Setting(
        "--weights",
        "A shipped set, unet2d or emcad-b0, or a folder written by `train` or `import`; given again, the sets share "
        "the views. Default: unet2d.",
        MAIN,
        metavar="SET",
    ).default(())
    member: str | None = Setting(
        "--member",
        "Let this member of a bank segment the case alone, without the decision network.",
        MAIN,
        metavar="NAME",
    ).default(None)
    device: str = DEVICE.default("auto")
    precision: str = PRECISION.default("auto")
    vram: str = VRAM.default("max")
    labels: str = LABEL_CONVENTION.default("brats2020")
    min_confidence: float | None = Setting(
        "--min-confidence",
        "Drop islands, and count enhancing tumour as core, of less than this share of the main tumour's mean logit; "
        "0: keep all. Default: as the weights say, 0.35 for the shipped ones.",
        RESULT,
        SHARE,
        metavar="SHARE",
    ).default(None)
    tta: bool = Setting(
        "--tta", "Segment mirrored slices too and average: five passes in place of three.", MAIN
    ).default(False)
    fast: bool = Setting(
        "--fast",
        "See axial slices only, with the first of several sets: faster, but less accurate.",
        MAIN,
    ).default(False)
    narrow: bool = Setting(
        "--narrow/--every-slice",
        "Look coarsely first, then only around what was found; or at every slice from every side.",
        MAIN,
    ).default(True)

    def __post_init__(self) -> None:
        check_settings(self)

"""How to prepare a case."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_brats.config.setting import Setting, check_settings
from lowmem_brats.config.shared import MAIN


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How to prepare a case."""

    brain_mask: str | None = Setting(
        "--brain-mask",
        "A NIfTI file on T1ce's own grid, not 0 where brain is; used as it is. Default: found with deepbet, and grown "
        "by a voxel.",
        MAIN,
        metavar="FILE",
    ).default(None)
    force: bool = Setting(
        "--force", "Go on where a check fails; every output is then marked as doubtful.", MAIN
    ).default(False)

    def __post_init__(self) -> None:
        check_settings(self)

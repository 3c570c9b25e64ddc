"""How many cases are shared among processes and machines."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_brats.config.setting import FOLD, Check, Setting, check_settings
from lowmem_brats.config.shared import FROM_1, MANY
from lowmem_brats.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """Who segments which of several cases."""

    part: tuple[int, int] | None = Setting(
        "--part",
        "Segment only part K, from 1, of N equal shares of the cases, as one job of an array does.",
        MANY,
        Check("N at least 1 and K from 1 to N", lambda part: 1 <= part[0] <= part[1]),
        metavar="K/N",
        form=FOLD,
    ).default(None)
    workers: int = Setting(
        "--workers",
        "Segment with N processes on this machine, each with its share of the cores and with --vram for itself "
        "(pip install 'lowmem-brats[cluster]').",
        MANY,
        FROM_1,
        metavar="N",
    ).default(1)
    scheduler: str | None = Setting(
        "--scheduler",
        "Segment with the workers of a running Dask scheduler, which see the files by the same paths.",
        MANY,
        metavar="tcp://HOST:8786",
    ).default(None)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.workers > 1 and self.scheduler:
            found = "also --workers, which starts workers on this machine"
            raise InputError("--scheduler", found, "one of the two", "Leave one out.")

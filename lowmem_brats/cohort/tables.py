"""`cohort.csv` and `index.html` of a folder of results, made of the records of all its cases."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

from lowmem_brats.cohort.records import Record, Records
from lowmem_brats.data.labels import Region
from lowmem_brats.files import write_text
from lowmem_brats.memory.budget import MIB
from lowmem_brats.pictures.cohort import VOLUMES, draw_cohort

CSV, PAGE = "cohort.csv", "index.html"
SHARE = 0.02
"""Of the time that a command runs, what it may spend on tables while there is more to come."""
COLUMNS = (
    "case_id",
    "status",
    "case",
    "output",
    *(f"{key.replace(' ', '_')}_ml" for key in VOLUMES),
    "doubtful_ml",
    *(f"{region.value}_expected_dice" for region in Region),
    "warnings",
    "seconds",
    "peak_mib",
    "host",
    "finished",
    "error",
)


class Tables:
    """Both files of a folder, kept as new as is worth the time."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._next = 0.0
        """When the tables may be written again before the end."""

    @property
    def paths(self) -> list[Path]:
        """Where they lie."""
        return [self._records.out / CSV, self._records.out / PAGE]

    def refresh(self, last: bool) -> None:
        """Write both files, where enough time has passed since or nothing is to come.

        Other commands may do the same: they are written once more where a record has come meanwhile, so whoever writes
        last has seen all. Raises InputError.
        """
        began = time.monotonic()
        if not last and began < self._next:
            return
        state = None
        while state != (state := self._records.state()):
            records = self._records.all()
            write_text(self.paths[0], csv_of(records))
            write_text(self.paths[1], draw_cohort(self._records.out.resolve().name, records))
            if not last:
                break
        now = time.monotonic()
        self._next = now + (now - began) / SHARE


def csv_of(records: Sequence[Record]) -> str:
    """The records as CSV with a header row; several warnings are separated by ` | `."""
    written = io.StringIO()
    rows = csv.DictWriter(written, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    for record in records:
        peak = record.get("peak_bytes")
        volumes = {f"{key.replace(' ', '_')}_ml": ml for key, ml in record.get("volumes_ml", {}).items()}
        expected = {f"{key}_expected_dice": dice for key, dice in record.get("expected_dice", {}).items()}
        own = {"warnings": " | ".join(record.get("warnings", [])), "peak_mib": round(peak / MIB, 1) if peak else None}
        rows.writerow({**record, **volumes, **expected, **own})
    return written.getvalue()

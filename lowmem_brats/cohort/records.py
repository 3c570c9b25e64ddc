"""A record of each case beside the results: a small JSON file, written last, and by the process that had the case.

The records are the truth; `cohort.csv` and `index.html` are made of all of them. So no two processes write one file, on
however many machines they run, and whatever ends a process costs no other case its row.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lowmem_brats.files import write_text
from lowmem_brats.segment.result_path import Outputs

FOLDER = "records"
"""In the folder of the results."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of the cases whose results lie in a folder."""

    out: Path

    def path(self, case: Path, ending: str = ".json") -> Path:
        """Where a case's record lies, or another file of the same name.

        The name holds a checksum of the case's absolute path, so that no two cases share one.
        """
        checksum = hashlib.blake2b(os.fsencode(os.path.abspath(case)), digest_size=4).hexdigest()
        return self.out / FOLDER / f"{case.name[:40]}-{checksum}{ending}"

    def read(self, case: Path) -> Record:
        """The record of a case; empty where there is none."""
        return _read(self.path(case))

    def is_done(self, case: Path, origin: str) -> bool:
        """Whether the record says that the case's result was made from all that `origin` is the checksum of."""
        record = self.read(case)
        return record.get("status") == "done" and record.get("origin") == origin

    def all(self) -> list[Record]:
        """All records, by case_id."""
        found = [_read(path) for path in self._files()]
        return sorted((each for each in found if each), key=lambda each: (str(each["case_id"]), str(each["case"])))

    def state(self) -> dict[str, int]:
        """Name → time of each record's file: another where a record was written since."""
        found = {}
        for path in self._files():
            with suppress(OSError):
                found[path.name] = path.stat().st_mtime_ns
        return found

    def write_done(self, case: Path, outputs: Outputs, origin: str, facts: Mapping[str, Any]) -> None:
        """Record a case whose results are written. Raises InputError.

        `facts`: its `SegmentReport` and `Measurements` as plain values; what is not there, as for a label map that was
        only measured, stays empty.
        """
        names = {"output": outputs.label_map, "preview": outputs.preview, "page": outputs.page}
        kept = {name: path.name for name, path in names.items() if path and path.exists()}
        seconds = facts.get("seconds")
        doubtful = facts.get("doubtful_millilitres")
        own = {
            "origin": origin,
            "volumes_ml": {key: round(ml, 6) for key, ml in facts["measurements"]["volumes_ml"].items()},
            "expected_dice": {key: round(each["dice"], 3) for key, each in facts.get("expected_dice", {}).items()},
            "doubtful_ml": None if doubtful is None else round(sum(doubtful.values()), 6),
            "warnings": list(facts["warnings"]),
            "seconds": None if seconds is None else round(sum(seconds.values()), 2),
            "peak_bytes": facts.get("peak_bytes"),
        }
        self._write(case, facts["case_id"], "done", kept | own)

    def write_failed(self, case: Path, case_id: str, error: str, traceback: str) -> None:
        """Record the error of a case, unless the result that an earlier record tells of is still there.

        Raises InputError.
        """
        before = self.read(case)
        if before.get("status") == "done" and (name := before.get("output")) and (self.out / name).exists():
            return
        self._write(case, case_id, "failed", {"error": error} | ({"traceback": traceback} if traceback else {}))

    def _files(self) -> list[Path]:
        return [path for path in (self.out / FOLDER).glob("*.json") if not path.name.startswith(".")]

    def _write(self, case: Path, case_id: str, status: str, facts: Mapping[str, Any]) -> None:
        when = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        record = {"case": str(case), "case_id": case_id, "status": status, **facts}
        record |= {"host": platform.node(), "finished": when}
        write_text(self.path(case), json.dumps(record, indent=1) + "\n")


def _read(path: Path) -> Record:
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_bytes())
        if isinstance(record, dict) and {"case", "case_id", "status"} <= record.keys():
            return record
    return {}

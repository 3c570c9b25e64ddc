"""Keep account of the cases of one `segment` command: count them, show them, write its report and its tables."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowmem_brats.cli import console
from lowmem_brats.cli.failures import explain
from lowmem_brats.cli.work import Outcome
from lowmem_brats.data.case_files import stem
from lowmem_brats.errors import InputError, LowmemError
from lowmem_brats.files import check_output, replace_when_complete

if TYPE_CHECKING:
    from lowmem_brats.cohort.tables import Tables

SOME_FAILED = 3
"""Exit code of a command if some of its cases failed, but not all; if all did it is 2, as for any error."""


@dataclass(frozen=True)
class Showing:
    """Where a command tells what it did."""

    report: Path | None
    overwrite: bool
    """Whether files, the report among them, may be replaced."""
    quiet: bool


class Cohort:
    """The cases of one command and what became of each.

    The report, and at intervals the tables, are written after each case, so a crash loses none.
    """

    def __init__(self, total: int, several: bool, showing: Showing, tables: Tables | None) -> None:
        """`total`: number of cases; `several`: whether the command is meant for several.

        Then a case that fails does not end the command, and a report that is there already is continued. Raises
        InputError where the report cannot be written, or is another file.
        """
        self._total, self._several, self._tables = total, several, tables
        self._report, self._overwrite, self.quiet = showing.report, showing.overwrite, showing.quiet
        self._status: dict[Path, str] = {}
        self._began = time.monotonic()
        self._entries: dict[str, dict[str, Any]] = {}
        self._content: bytes | None = None
        """Content of the report as this command last wrote or read it; None if it has not done either."""
        self._unwritten: LowmemError | None = None
        if report := showing.report:
            if stem(report) != report.name:
                raise InputError(report, "is the name of an image", "a .json file", "Choose another --report.")
            if several and not showing.overwrite:
                self._continue(report)
            check_output(report, showing.overwrite or self._content is not None)

    def _continue(self, report: Path) -> None:
        """Take over the entries of a report that an earlier `segment` wrote, if there is one."""
        try:
            content = report.read_bytes()
            self._entries = {entry["case"]: entry for entry in json.loads(content)["cases"] if entry["status"]}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return
        self._content = content

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Show how many cases are done, skipped and failed when the block ends, also when it is interrupted.

        The block is the work on all cases. Raises click's Exit if any case failed, and InputError if the report or the
        tables could not be written.
        """
        try:
            yield
        except BaseException:
            if self._several:
                how = "" if self._overwrite else "; the same command goes on with the rest"
                console.err.print(f"stopped: {self._counts()}{how}")
                self._save(last=True)
            raise
        self._save(last=True)
        failed = [str(path) for path, status in self._status.items() if status == "failed"]
        if self._several and (failed or not self.quiet):
            console.err.print(self._counts() + (f": {', '.join(failed)}" if failed else ""))
        if self._unwritten:
            raise self._unwritten
        if failed:
            raise click.exceptions.Exit(SOME_FAILED if len(failed) < len(self._status) else 2)

    def _counts(self) -> str:
        counts = Counter(self._status.values())
        elsewhere = f", {counts['elsewhere']} left to another command" if counts["elsewhere"] else ""
        return ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed")) + elsewhere

    def announce(self, path: Path) -> None:
        """Show that a case is begun, and how fast they come."""
        if self._several and not self.quiet:
            console.err.print(f"case {len(self._status) + 1} of {self._total}{self._pace()}: {path}")

    def announce_done(self, path: Path, seconds: float) -> None:
        """Show that a worker has segmented a case, and how fast they come."""
        if not self.quiet:
            console.err.print(f"{len(self._status)} of {self._total}{self._pace()}: {path} in {seconds:.1f} s")

    def _pace(self) -> str:
        """How fast cases come, and when all will be there, in brackets; nothing before the first is there."""
        worked = sum(status in ("done", "failed") for status in self._status.values())
        if not worked:
            return ""
        hours = (time.monotonic() - self._began) / 3600
        left = hours / worked * (self._total - len(self._status))
        return f" ({worked / hours:.0f} per hour, {f'{left:.1f} h' if left > 1 else f'{60 * left:.0f} min'} left)"

    def add(self, path: Path, outcome: Outcome) -> None:
        """Count a case and show what became of it, where that is an error or nothing.

        Raises the outcome's error if the command is for one case only.
        """
        facts = dict(outcome.facts)
        if outcome.status == "skipped":  # its entry in an earlier report is kept
            before = self._entries.get(str(path), {})
            facts |= {k: v for k, v in before.items() if k not in ("case", "status", "error", "traceback")}
        self._status[path] = outcome.status
        self._entries[str(path)] = {"case": str(path), "status": outcome.status} | facts
        self._save(last=False)
        if outcome.error:
            if not self._several:
                raise outcome.error
            named = "" if str(path) in str(outcome.error) else f"{path}: "
            console.err.print(f"Error: {named}{outcome.error}", style="red")
        elif outcome.status == "skipped" and not self.quiet:
            console.err.print(f"{path}: skipped: {facts['output']} exists (--overwrite segments it anew)")
        elif outcome.status == "elsewhere":
            console.err.print(f"{path}: left to another command: {facts['by']}")

    def _save(self, last: bool) -> None:
        """Write the report, and the tables where it is time to; what cannot be written is tried after the next case."""
        before, self._unwritten = self._unwritten, None
        try:
            if self._report and (before or not last):
                self._write(self._report)
            if self._tables:
                self._tables.refresh(last)
        except (LowmemError, OSError) as error:
            self._unwritten = explain(error, self._report or "tables")
            if str(before) != str(self._unwritten):
                console.warn(f"not written: {self._unwritten}")

    def _write(self, report: Path) -> None:
        if self._content is not None and report.exists() and report.read_bytes() != self._content:
            found = "was changed by another program while this command ran"
            raise InputError(report, found, "a report of this command alone", "Choose another --report.")
        content = (json.dumps({"cases": list(self._entries.values())}, indent=2) + "\n").encode()
        with replace_when_complete(report, self._overwrite or self._content is not None) as partial:
            partial.write_bytes(content)
        self._content = content

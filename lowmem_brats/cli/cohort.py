"""Keep account of the cases of one `segment` command: count them, show them and write them to its report."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lowmem_brats.cli import console
from lowmem_brats.cli.failures import UnforeseenError, explain, full_text
from lowmem_brats.data.case_files import stem
from lowmem_brats.errors import InputError, LowmemError
from lowmem_brats.files import check_output, replace_when_complete

SOME_FAILED = 3
"""Exit code of a command if some of its cases failed, but not all; if all did it is 2, as for any error."""


class Cohort:
    """The cases of one command and what became of each. The report is written after each, so a crash loses none."""

    def __init__(self, several: bool, report: Path | None, overwrite: bool, quiet: bool) -> None:
        """`several`: a case that fails does not end the command, and a report that is there already is continued.

        Raises InputError where `report` cannot be written, or is another file.
        """
        self._several, self._report, self._overwrite, self._quiet = several, report, overwrite, quiet
        self._status: dict[Path, str] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._content: bytes | None = None
        """Content of the report as this command last wrote or read it; None if it has not done either."""
        self._unwritten: LowmemError | None = None
        if report:
            if stem(report) != report.name:
                raise InputError(report, "is the name of an image", "a .json file", "Choose another --report.")
            if several and not overwrite:
                self._continue(report)
            check_output(report, overwrite or self._content is not None)

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

        The block is the work on all cases. Raises click's Exit if any case failed, and InputError if the report could
        not be written.
        """
        try:
            yield
        except BaseException:
            if self._several:
                how = "" if self._overwrite else "; the same command goes on with the rest"
                console.err.print(f"stopped: {self._counts()}{how}")
            raise
        failed = [str(path) for path, status in self._status.items() if status == "failed"]
        if self._several and (failed or not self._quiet):
            console.err.print(self._counts() + (f": {', '.join(failed)}" if failed else ""))
        if self._unwritten:
            raise self._unwritten
        if failed:
            raise click.exceptions.Exit(SOME_FAILED if len(failed) < len(self._status) else 2)

    def _counts(self) -> str:
        counts = Counter(self._status.values())
        return ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))

    @contextmanager
    def case(self, path: Path) -> Iterator[None]:
        """Show an error that ends the block, which is the work on one case, and count the case as failed.

        The command then goes on with the next case. If it is for one case only, the error is raised as a LowmemError.
        Interrupts are not caught.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # nobody reads the output any more
                raise
            told = explain(error, path)
            facts: dict[str, Any] = {"error": dict(vars(told))}
            if isinstance(told, UnforeseenError):
                facts["traceback"] = full_text(error)
            self._add(path, "failed", facts)
            if not self._several:
                raise told from (None if told is error else error)
            named = "" if str(path) in str(told) else f"{path}: "
            console.err.print(f"Error: {named}{told}", style="red")

    def done(self, path: Path, facts: dict[str, Any]) -> None:
        """Count a case as segmented; `facts` go into the report."""
        self._add(path, "done", facts)

    def skip(self, path: Path, output: Path) -> None:
        """Count a case as skipped because its result exists; its entry in an earlier report is kept."""
        if not self._quiet:
            console.err.print(f"{path}: skipped: {output} exists (--overwrite segments it anew)")
        before = self._entries.get(str(path), {})
        kept = {key: value for key, value in before.items() if key not in ("case", "status", "error", "traceback")}
        self._add(path, "skipped", {"output": str(output)} | kept)

    def _add(self, path: Path, status: str, facts: dict[str, Any]) -> None:
        self._status[path] = status
        self._entries[str(path)] = {"case": str(path), "status": status} | facts
        if not self._report:
            return
        try:
            self._write(self._report)
            self._unwritten = None
        except (LowmemError, OSError) as error:  # tried again after the next case
            before, self._unwritten = self._unwritten, explain(error, self._report)
            if str(before) != str(self._unwritten):
                console.warn(f"the report is not written: {self._unwritten}")

    def _write(self, report: Path) -> None:
        if self._content is not None and report.exists() and report.read_bytes() != self._content:
            found = "was changed by another program while this command ran"
            raise InputError(report, found, "a report of this command alone", "Choose another --report.")
        content = (json.dumps({"cases": list(self._entries.values())}, indent=2) + "\n").encode()
        with replace_when_complete(report, self._overwrite or self._content is not None) as partial:
            partial.write_bytes(content)
        self._content = content

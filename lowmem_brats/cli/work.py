"""What is done with each of several cases, by the process of the command or by a worker."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowmem_brats import __version__
from lowmem_brats.cli.failures import UnforeseenError, explain, full_text
from lowmem_brats.cli.jobs import Job, Preparation, Source
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case_files import stem
from lowmem_brats.errors import InputError, LowmemError
from lowmem_brats.files import replace_when_complete

if TYPE_CHECKING:
    from lowmem_brats.memory.planner import InferencePlan
    from lowmem_brats.segment.result import Segmentation

Status = Literal["done", "skipped", "failed", "elsewhere"]
"""Of a case in a command; `elsewhere`: another command has it."""
Make = Callable[[Job, bool], "Segmentation"]
"""Segments a case and writes all that is wanted of it; the second argument: whether files may be replaced."""
_ONE_AT_A_TIME = threading.Lock()
"""A worker with several threads still segments one case at a time: its memory is for one."""
CORRECTED = "corrected by a person, and segmented before there was a record of it: only its volumes are known"


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the report, as plain values."""
    error: LowmemError | None = None


@dataclass(frozen=True)
class Work:
    """What all cases of a command share; a worker process gets it with each case."""

    preparation: Preparation
    config: SegmentConfig
    run: str
    """A random text that names the command."""
    threads: int | None = None
    """Of a worker; None: as many as it has."""
    version: str = __version__

    def outcome(self, job: Job, make: Make) -> Outcome:
        """Segment a case, unless it is done or in other hands, and write its record.

        An error becomes the outcome; interrupts are raised.
        """
        try:
            with self._claim(job.path) as holder:
                if holder:
                    return Outcome("elsewhere", {"by": holder})
                state, records = self.preparation.check(job), self.preparation.records
                if state in ("done", "unrecorded"):
                    if state == "unrecorded":
                        self._record_corrected(job)
                    return Outcome("skipped", {"output": str(job.outputs.label_map)})
                result = make(job, self.preparation.overwrite or state == "interrupted")
                facts = facts_of(result)
                if records:
                    records.write_done(job.path, job.outputs, result.origin, facts)
                return Outcome("done", facts)
        except Exception as error:
            return self.failure(job.path, job.files.case_id, error)

    def failure(self, path: Path, case_id: str, error: Exception) -> Outcome:
        """What an error makes of a case, which is recorded too where that is possible."""
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # nobody reads the output any more
            raise error
        explained = explain(error, path)
        facts: dict[str, Any] = {"error": dict(vars(explained))}
        if isinstance(explained, UnforeseenError):
            facts["traceback"] = full_text(error)
        if self.preparation.records:
            with suppress(LowmemError, OSError):  # on a full disk; then the command's own output tells
                self.preparation.records.write_failed(path, case_id, str(explained), facts.get("traceback", ""))
        return Outcome("failed", facts, explained)

    def job(self, source: Source, taken: set[Path]) -> Job | Outcome:
        """As `Preparation.job`; an error becomes the outcome."""
        try:
            return self.preparation.job(source, taken)
        except Exception as error:
            return self.failure(source.path, stem(source.path), error)

    @contextmanager
    def _claim(self, path: Path) -> Iterator[str]:
        from lowmem_brats.cohort.claim import claim

        if self.preparation.records is None:
            yield ""
            return
        with claim(self.preparation.records.path(path, ".claim"), self.run) as holder:
            yield holder

    def _record_corrected(self, job: Job) -> None:
        """Record a label map that a person has corrected, if there is no record yet: with its volumes as they are."""
        from lowmem_brats.data.labels import convention_of
        from lowmem_brats.measure.label_map import measure_file

        records = self.preparation.records
        if records and not records.read(job.path):
            convention = convention_of(self.config.labels)
            measured = asdict(measure_file(job.files.case_id, job.outputs.label_map, convention))
            facts = {"case_id": job.files.case_id, "measurements": measured}
            warnings = [*measured["warnings"], CORRECTED]
            origin = self.preparation.origin(job.files)
            records.write_done(job.path, job.outputs, origin, facts | {"warnings": warnings})


def work_apart(work_and_job: tuple[Work, Job]) -> Outcome:
    """Do a piece of work in a worker process: silently, with the worker's threads."""
    import torch

    work, job = work_and_job
    if work.version != __version__:
        found = f"lowmem-brats {__version__} on a worker"
        error = InputError("--scheduler", found, f"{work.version}, as here", "Install one version everywhere.")
        return Outcome("failed", {"error": dict(vars(error))}, error)
    with _ONE_AT_A_TIME:
        if work.threads:
            torch.set_num_threads(work.threads)
        return work.outcome(job, lambda job, overwrite: write_results(job, work.config, overwrite))


def facts_of(result: Segmentation) -> dict[str, Any]:
    """A result's report and measurements as plain values."""
    return {**asdict(result.report), "measurements": asdict(result.measurements)}


def write_results(
    job: Job,
    config: SegmentConfig,
    overwrite: bool,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
) -> Segmentation:
    """Segment a case and write its label map and the pictures that have a path; shows nothing."""
    from lowmem_brats.cli.page import write_result_page
    from lowmem_brats.segment.case import segment_case
    from lowmem_brats.segment.regions import timed

    files, outputs = job.files, job.outputs
    result = segment_case(files, outputs.label_map, config, on_progress, on_plan, overwrite)
    with timed(result.report.seconds, "measure"):
        _ = result.measurements
    if outputs.preview:
        title = f"{stem(outputs.label_map)} (lowmem-brats, {result.report.weights})"
        _write_preview(result, outputs.preview, title, overwrite)
    if outputs.page:
        write_result_page(result, files, outputs.page, overwrite)
    return result


def _write_preview(result: Segmentation, path: Path, title: str, overwrite: bool) -> None:
    """Draw the result's picture and write it whole or not at all. Raises InputError as `replace_when_complete`."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.pictures.preview import draw_preview

    case, convention = result.case, CONVENTIONS[result.report.labels]
    image = draw_preview(case.images_CXYZ, result.label_XYZ, convention, case.spacing_mm, title)
    with replace_when_complete(path, overwrite) as partial:
        image.save(partial, format="PNG")

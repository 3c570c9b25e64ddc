"""What is done with each of several cases, by the process of the command or by a worker."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
    from lowmem_brats.segment.result_path import Outputs

Status = Literal["done", "skipped", "failed", "elsewhere"]
"""Of a case in a command; `elsewhere`: another command has it."""
Make = Callable[[Job, bool], "Written"]
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
class Written:
    """A segmented case whose files are written."""

    result: Segmentation
    outputs: Outputs
    """Those that were written."""
    native_millilitres: Mapping[str, float] | None
    """Tissue → mL on the grid of the raw T1ce; None for a case that was not prepared here."""

    @property
    def facts(self) -> dict[str, Any]:
        """Its report and measurements, as plain values."""
        report = {**asdict(self.result.report), "measurements": asdict(self.result.measurements)}
        if self.native_millilitres is not None:
            report["native_millilitres"] = dict(self.native_millilitres)
        return report


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
    folder: str = field(default_factory=os.getcwd)
    """The command's, to which its paths are relative."""

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
                written = make(job, self.preparation.overwrite or state == "interrupted")
                if records:
                    records.write_done(job.path, written.outputs, written.result.origin, written.facts)
                return Outcome("done", written.facts)
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
        with suppress(OSError):  # where that machine has no such folder, paths must be absolute
            os.chdir(work.folder)
        if work.threads:
            torch.set_num_threads(work.threads)
        study = work.preparation.beside.dicom_seg
        return work.outcome(job, lambda job, overwrite: write_results(job, work.config, overwrite, study))


def write_results(
    job: Job,
    config: SegmentConfig,
    overwrite: bool,
    study: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
) -> Written:
    """Segment a case and write its label map and what else has a path; shows nothing.

    `study`: folder with the DICOM files of its T1ce, for the DICOM segmentation.
    """
    from lowmem_brats.cli.page import write_result_page
    from lowmem_brats.prepare.dicom_seg import find_t1ce
    from lowmem_brats.segment.case import segment_case
    from lowmem_brats.segment.native import FORCED, prepared_folder
    from lowmem_brats.segment.regions import timed

    files, outputs = job.files, job.outputs
    prepared = prepared_folder(files.folder)
    headers = find_t1ce(study, prepared.t1ce_checksum) if prepared and study else []
    result = segment_case(files, outputs.label_map, config, on_progress, on_plan, overwrite)
    if prepared and prepared.problems:
        result.report.warnings.append(f"{FORCED}: {'; '.join(prepared.problems)}")
    with timed(result.report.seconds, "measure"):
        _ = result.measurements
    native_millilitres: dict[str, float] | None = None
    if outputs.native and prepared:
        native_millilitres = _write_native(result, prepared.native, outputs.native, overwrite)
    if outputs.preview:
        title = f"{stem(outputs.label_map)} (lowmem-brats, {result.report.weights})"
        _write_preview(result, outputs.preview, title, overwrite)
    if outputs.page:
        write_result_page(result, files, outputs.page, overwrite)
    if outputs.native and outputs.dicom_seg:
        if any((native_millilitres or {}).values()):
            _write_dicom_seg(result, outputs.native, headers, outputs.dicom_seg, overwrite)
        else:
            result.report.warnings.append("no tumour was found, so no DICOM segmentation is written")
            outputs = replace(outputs, dicom_seg=None)
    return Written(result, outputs, native_millilitres)


def _write_native(result: Segmentation, native: Path, path: Path, overwrite: bool) -> dict[str, float]:
    """Write the label map on the raw T1ce's grid; returns tissue → mL, measured there."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.segment import native as back

    affine, convention = result.case.reference.affine, CONVENTIONS[result.report.labels]
    return back.write_native(result.label_XYZ, affine, back.Target(native, path, overwrite), convention, result.origin)


def _write_dicom_seg(result: Segmentation, native: Path, headers: list[Any], path: Path, overwrite: bool) -> None:
    """Write the label map that lies at `native` as a DICOM segmentation."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.data.nifti import read_label
    from lowmem_brats.prepare.dicom_seg import write_dicom_seg

    write_dicom_seg(read_label(native), headers, CONVENTIONS[result.report.labels], path, overwrite)


def _write_preview(result: Segmentation, path: Path, title: str, overwrite: bool) -> None:
    """Draw the result's picture and write it whole or not at all. Raises InputError as `replace_when_complete`."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.pictures.preview import draw_preview

    case, convention = result.case, CONVENTIONS[result.report.labels]
    image = draw_preview(case.images_CXYZ, result.label_XYZ, convention, case.spacing_mm, title)
    with replace_when_complete(path, overwrite) as partial:
        image.save(partial, format="PNG")

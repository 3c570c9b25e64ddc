"""Segment the cases of a command, one after another or with worker processes, and show how it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowmem_brats.cli import console
from lowmem_brats.cli.cohort import Cohort
from lowmem_brats.cli.jobs import Job, Source
from lowmem_brats.cli.work import Outcome, Work, Written, work_apart, write_results
from lowmem_brats.config import CohortConfig, SegmentConfig


def found_jobs(work: Work, sources: Iterable[Source], taken: set[Path], cohort: Cohort) -> Iterator[Job]:
    """Find the cases one by one, and count those that are not to be found as failed."""
    for source in sources:
        found = work.job(source, taken)
        if isinstance(found, Outcome):
            cohort.add(source.path, found)
        else:
            yield found


def segment_all(work: Work, jobs: Iterable[Job], sharing: CohortConfig, cohort: Cohort) -> None:
    """Segment all cases, in this process or by workers."""
    if sharing.workers > 1 or sharing.scheduler:
        _segment_apart(work, jobs, sharing, cohort)
        return

    def make(job: Job, overwrite: bool) -> Written:
        cohort.announce(job.path)
        return segment_one(job, work.config, cohort.quiet, overwrite, work.preparation.beside.dicom_seg)

    for job in jobs:
        cohort.add(job.path, work.outcome(job, make))


def _segment_apart(work: Work, jobs: Iterable[Job], sharing: CohortConfig, cohort: Cohort) -> None:
    """Segment cases with worker processes and tell of each as it comes."""
    from lowmem_brats.cohort.engine import local_workers, results, workers_of
    from lowmem_brats.cohort.share import threads_of_worker

    if not sharing.scheduler:
        work = replace(work, threads=threads_of_worker(sharing.workers))
    with workers_of(sharing.scheduler) if sharing.scheduler else local_workers(sharing.workers) as client:
        _show_workers(client, work, cohort.quiet)
        for (_, job), result in results(client, work_apart, ((work, job) for job in jobs)):
            outcome = result if isinstance(result, Outcome) else work.failure(job.path, job.files.case_id, result)
            cohort.add(job.path, outcome)
            if outcome.status == "done":
                for text in outcome.facts["warnings"]:
                    console.warn(f"{job.files.case_id}: {text}")
                cohort.announce_done(job.path, sum(outcome.facts["seconds"].values()))


def _show_workers(client: Any, work: Work, quiet: bool) -> None:
    """One line: how many workers there are, and what each may use; a warning where they are not used as meant."""
    from lowmem_brats.memory.budget import format_bytes

    threads = client.nthreads()
    if not quiet:
        memory = next(iter(client.scheduler_info()["workers"].values()))["memory_limit"]
        host = f", at most {format_bytes(memory)} of host memory" if memory else ""
        each = f"{work.threads} thread{'s' if work.threads > 1 else ''}" if work.threads else "its own threads"
        console.err.print(f"{len(threads)} workers, each with {each}{host} and --vram {work.config.vram}")
    if most := max(threads.values(), default=1) - 1:
        console.warn(f"workers take {most + 1} cases at a time, but segment one: start them with --nthreads 1")


def segment_one(job: Job, config: SegmentConfig, quiet: bool, overwrite: bool, study: Path | None = None) -> Written:
    """Segment a case as `write_results` does, and show its progress, warnings and tables."""
    with console.progress(quiet) as on_progress:
        show_plan = (lambda plan: None) if quiet else console.show_plan
        written = write_results(job, config, overwrite, study, on_progress, show_plan)
    for text in written.result.report.warnings:
        console.warn(f"{job.files.case_id}: {text}")
    if not quiet:
        console.show_segmentation(written.result.report)
        console.show_native(written.native_millilitres or {})
        console.show_target_lesions(written.result.measurements)
        console.out.print("wrote        " + "\n             ".join(map(str, written.outputs.paths)))
    return written

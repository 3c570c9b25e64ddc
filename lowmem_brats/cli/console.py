"""What the commands show: progress bars, tables, warnings. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from lowmem_brats.evaluate import PatientScores, Summary
    from lowmem_brats.segment import SegmentReport

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

OnProgress = Callable[[str, int, int], None]


@contextmanager
def progress(quiet: bool = False) -> Iterator[OnProgress]:
    """Yield `on_progress(stage, done, total)`, one bar per stage; nothing when quiet or when stderr is no terminal."""
    if quiet or not err.is_terminal:
        yield lambda stage, done, total: None
        return
    columns = TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bars:
        tasks = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield on_progress


def warn(text: str) -> None:
    """Show a warning; also when quiet, because nothing is silent."""
    err.print(f"warning: {text}", style="yellow", markup=False)


def mebibytes(count: int) -> str:
    """Bytes as MiB (1024²)."""
    return f"{count / 2**20:.1f} MiB"


def show_segmentation(report: SegmentReport) -> None:
    """Table of voxels and millilitres per tissue, then peak memory and seconds."""
    table = Table(title=report.case_id, title_justify="left")
    for heading in ("tissue", "voxels", "mL"):
        table.add_column(heading, justify="left" if heading == "tissue" else "right")
    for tissue, voxels in report.voxels.items():
        table.add_row(tissue, f"{voxels}", f"{report.millilitres[tissue]:.1f}")
    out.print(table)
    plan = report.plan
    where = "live tensors" if plan.device == "cpu" else "allocated"
    out.print(
        f"peak memory  {mebibytes(report.peak_bytes)} {where} ({plan.device}, {plan.precision}, batch {plan.batch})"
    )
    stages = " · ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
    out.print(f"seconds      {sum(report.seconds.values()):.2f} = {stages}", soft_wrap=True)
    slices = " · ".join(f"{r.upper()} {n['run']} run, {n['skipped']} skipped" for r, n in report.slices.items())
    out.print(f"slices       {slices}", soft_wrap=True)


def show_scores(scores: list[PatientScores], summary: Summary) -> None:
    """Table of Dice, HD95, sensitivity and specificity per patient and region, mean and standard deviation below."""
    table = Table()
    for heading in ("case", "region", "Dice", "HD95 mm", "sensitivity", "specificity"):
        table.add_column(heading, justify="left" if heading in ("case", "region") else "right")

    def add(name: str, regions: Mapping[object, object]) -> None:
        for region, score in regions.items():
            row = (f"{score.dice:.3f}", f"{score.hd95_mm:.1f}", f"{score.sensitivity:.3f}", f"{score.specificity:.4f}")  # type: ignore[attr-defined]
            table.add_row(name, region.name, *row)  # type: ignore[attr-defined]
        table.add_section()

    for patient in scores:
        add(patient.case_id, patient.regions)  # type: ignore[arg-type]
    if summary.patients > 1:
        add(f"mean of {summary.patients}", summary.mean)  # type: ignore[arg-type]
        add("standard deviation", summary.std)  # type: ignore[arg-type]
    out.print(table)

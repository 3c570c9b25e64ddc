"""Show progress bars, tables and warnings. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowmem_brats.data.labels import format_millilitres

if TYPE_CHECKING:
    from lowmem_brats.data.labels import Region
    from lowmem_brats.evaluate.metrics import RegionScore
    from lowmem_brats.evaluate.pairs import PatientScores, Summary
    from lowmem_brats.measure.label_map import Measurements
    from lowmem_brats.memory.planner import InferencePlan, TrainPlan
    from lowmem_brats.segment.result import SegmentReport

# Paths hold brackets, and whoever reads from a pipe wants whole lines.
_WIDTH = None if sys.stdout and sys.stdout.isatty() else 160
out = Console(highlight=False, markup=False, soft_wrap=True, width=_WIDTH)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

OnProgress = Callable[[str, int, int], None]

_LOOK_ALIKES = {"·": "|", "×": "x", "÷": "/", "²": "2", "³": "3", "…": "...", "–": "-", "−": "-", "─": "-", "→": "->"}


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks by similar ones, or by their number as in `\\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    shown = (_LOOK_ALIKES.get(each, each.encode("ascii", "backslashreplace").decode()) for each in missing)
    return "".join(shown), error.end


codecs.register_error("lowmem-brats", _look_alike)


def show_any_text() -> None:
    """Let stdout and stderr take every text, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="lowmem-brats")


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
    err.print(f"warning: {text}", style="yellow")


def mebibytes(count: int) -> str:
    """Bytes as MiB (1024²)."""
    return f"{count / 2**20:.1f} MiB"


def place_of_state(plan: InferencePlan | TrainPlan) -> str:
    """Where a plan keeps the optimizer's state, in a word."""
    return {None: "–", False: "device", True: "host"}[getattr(plan, "state_on_host", None)]


def show_plan(plan: InferencePlan | TrainPlan) -> None:
    """One line: how the network will run, and what that is predicted to need."""
    conceded = getattr(plan, "conceded", "")
    how = f"{plan.device}, {plan.precision}, batch {plan.batch}{patch_of(plan)}{', ' * bool(conceded)}{conceded}"
    parts = " + ".join(f"{name} {mebibytes(count)}" for name, count in plan.components.items() if count)
    reserve = f", and {mebibytes(plan.reserve_bytes)} kept for CUDA" if plan.reserve_bytes else ""
    err.print(f"plan: {how}; {mebibytes(plan.predicted_bytes)} predicted = {parts}{reserve}")


def patch_of(plan: InferencePlan | TrainPlan) -> str:
    """The patch or crop of a plan, in words; empty for slices, and for a crop that is among what is conceded."""
    patch_ZHW, crop_ZHW = getattr(plan, "patch_ZHW", ()), getattr(plan, "crop_ZHW", ())
    if crop_ZHW and not getattr(plan, "smaller_crop", ""):
        return f", crops of {' × '.join(map(str, crop_ZHW))} voxels"
    return f", patches of {' × '.join(map(str, patch_ZHW))}" if patch_ZHW else ""


def show_peak(measured: int, plan: InferencePlan | TrainPlan | None, cuda_peak: dict[str, int] | None) -> None:
    """One line: the measured peak against the planned one, and on a card its three views."""
    text = f"peak memory  {mebibytes(measured)} of tensors" if measured else "peak memory  not measured: too few steps"
    if plan and measured:
        text += f", {measured / plan.predicted_bytes:.1%} of the {mebibytes(plan.predicted_bytes)} predicted"
    if cuda_peak:
        text += " · " + " · ".join(f"{name} {mebibytes(count)}" for name, count in cuda_peak.items())
    out.print(text)


def expected_words(report: SegmentReport) -> str:
    """The Dice that is expected of each region, with the interval that holds four cases of five."""
    rows = report.expected_dice.items()
    return "Dice " + " · ".join(f"{of.upper()} {e['dice']:.2f} ({e['low']:.2f}–{e['high']:.2f})" for of, e in rows)


def show_segmentation(report: SegmentReport) -> None:
    """Table of voxels and millilitres per tissue, then peak memory and seconds."""
    shown = table(report.case_id, "voxels", "mL")
    for tissue, voxels in report.voxels.items():
        shown.add_row(tissue, f"{voxels}", format_millilitres(report.millilitres[tissue]))
    out.print(shown)
    out.print()
    if report.expected_dice:
        out.print(f"expected     {expected_words(report)}")
    show_peak(report.peak_bytes, report.plan, report.cuda_peak)
    stages = " · ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
    out.print(f"seconds      {sum(report.seconds.values()):.2f} = {stages}")
    slices = [f"{name.upper()} {n['run']} run, {n['skipped']} skipped" for name, n in report.slices.items()]
    out.print(f"slices       {' · '.join(slices)}")
    if members := [f"{name} {row['slices']:.0f} ({row['gmac']:.1f} GMAC)" for name, row in report.members.items()]:
        out.print(f"by member    {' · '.join(members)}")
    if patches := [f"{name.upper()} {run} run" for name, run in report.patches.items()]:
        out.print(f"patches      {' · '.join(patches)}")
    if boxes := [f"{name.upper()} {len(inside)}" for name, inside in report.boxes.items()]:
        out.print(f"boxes        {' · '.join(boxes)}")
    if islands := report.doubtful_millilitres.get("wt"):
        out.print(f"left out     {1000 * islands:.0f} mm³ of doubtful islands")


def show_native(millilitres: Mapping[str, float]) -> None:
    """One line: the volumes measured on the grid of the raw T1ce; nothing for a case that was not prepared here."""
    if millilitres:
        volumes = " · ".join(f"{tissue} {format_millilitres(ml)} mL" for tissue, ml in millilitres.items())
        out.print(f"raw T1ce     {volumes}")


def show_target_lesions(measured: Measurements) -> None:
    """One line where an enhancing lesion is measurable: the diameters of the largest, and the sum of products."""
    if not measured.measurable:
        return
    largest = measured.lesions[0]
    diameters = f"{largest.longest_mm:.0f} × {largest.perpendicular_mm:.0f} mm in slice {largest.slice}"
    others = f", the largest of {measured.measurable} measurable" if measured.measurable > 1 else ""
    out.print(f"enhancing    {diameters}{others}; sum of products {measured.sum_of_products_mm2:.0f} mm²")


def table(*headings: str, left: int = 1) -> Table:
    """A table whose first `left` columns are words and whose others are numbers."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, heading in enumerate(headings):
        result.add_column(heading, justify="left" if number < left else "right")
    return result


def show_scores(scores: list[PatientScores], summary: Summary) -> None:
    """Table of Dice, HD95, sensitivity and specificity per patient and region, mean and standard deviation below."""
    from lowmem_brats.evaluate.metrics import HEADINGS

    shown = table("case", "region", *HEADINGS, left=2)

    def add(name: str, regions: Mapping[Region, RegionScore]) -> None:
        for region, score in regions.items():
            shown.add_row(name, region.name, *score.shown())
        shown.add_section()

    for patient in scores:
        add(patient.case_id, patient.regions)
    if summary.patients > 1:
        add(f"mean of {summary.patients}", summary.mean)
        add("standard deviation", summary.std)
    out.print(shown)


def show_lesion_scores(scores: list[PatientScores], summary: Summary) -> None:
    """Table of the lesions per patient and region: how many were found, and the mean scores of those; mean below."""
    counts = "matched", "missed", "added", "F1"
    shown = table("case", "region", *counts, "lesion Dice", "lesion HD95 mm", "lesion NSD", left=2)
    groups = [(patient.case_id, patient.lesions) for patient in scores]
    for name, regions in [
        *groups,
        *([(f"mean of {summary.patients}", summary.lesions)] if summary.patients > 1 else []),
    ]:
        for region, score in regions.items():
            counted = (f"{count:g}" for count in (score.matched, score.missed, score.added))
            measures = ((score.f1, 3), (score.dice, 3), (score.hd95_mm, 1), (score.nsd, 3))
            measured = ("" if value is None else f"{value:.{decimals}f}" for value, decimals in measures)
            shown.add_row(name, region.name, *counted, *measured)
        shown.add_section()
    out.print()
    out.print(shown)

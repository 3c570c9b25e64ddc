"""What a report says, as the tables at the foot of a case page."""

from __future__ import annotations

from pathlib import Path

from lowmem_brats.data.labels import format_millilitres
from lowmem_brats.data.slices import VIEWS
from lowmem_brats.memory.budget import format_bytes
from lowmem_brats.pictures.page_html import Strip, Table
from lowmem_brats.segment.result import SegmentReport


def report_tables(report: SegmentReport, shape_XYZ: tuple[int, int, int]) -> list[Table]:
    """How a label map was made: the plan and what it took, the slices that were looked at, weights and versions.

    `shape_XYZ`: of the volume, in LPS order.
    """
    plan = report.plan
    reserve = f", and {format_bytes(plan.reserve_bytes)} kept for CUDA" if plan.reserve_bytes else ""
    patch = f", patches of {' × '.join(map(str, plan.patch_ZHW))}" if plan.patch_ZHW else ""
    share = f", {report.peak_bytes / plan.predicted_bytes:.1%} of the prediction" if plan.predicted_bytes else ""
    seconds = " · ".join(f"{stage} {time:.2f}" for stage, time in report.seconds.items())
    run = [
        ("plan", f"{plan.device}, {plan.precision}, batch {plan.batch}{patch}; budget {report.vram}"),
        ("predicted", f"{format_bytes(plan.predicted_bytes)} of tensors{reserve}"),
        ("peak", f"{format_bytes(report.peak_bytes)} of tensors{share}"),
        *[(f"on the card, {name}", format_bytes(count)) for name, count in (report.cuda_peak or {}).items()],
        ("seconds", f"{sum(report.seconds.values()):.2f} = {seconds}"),
        *[(f"slices, {of.upper()}", f"{n['run']} run, {n['skipped']} skipped") for of, n in report.slices.items()],
        *[
            (f"slices, {of}", f"{row['slices']:.0f}, {row['gmac']:.1f} GMAC, {row['seconds']:.2f} s")
            for of, row in report.members.items()
        ],
    ]
    run += [(f"patches, {of.upper()}", f"{count} run") for of, count in report.patches.items()]
    doubtful = {of.upper(): format_millilitres(volume) for of, volume in report.doubtful_millilitres.items() if volume}
    left_out = " · ".join(f"{of} {volume} mL" for of, volume in doubtful.items()) or "nothing"
    expected = [
        (
            f"expected Dice of {of.upper()}",
            f"{each['dice']:.2f}; four cases of five {each['low']:.2f} to {each['high']:.2f}",
        )
        for of, each in report.expected_dice.items()
    ]
    made = [
        ("weights", report.weights),
        *[(f"sha256 of {name.upper()}", checksum) for name, checksum in report.checksums],
        ("left out as doubtful", f"{left_out} (share {report.min_confidence:g} of {report.min_confidence_of})"),
        *expected,
        *report.versions.items(),
    ]
    counts = {view.name: shape_XYZ[2 - view.axis] for view in VIEWS}
    looked = [
        (f"{of.upper()}, {name}", Strip(counts[name], runs))
        for of, views in report.looked_at.items()
        for name, runs in views.items()
    ]
    return [
        Table("How it was run", run),
        Table("Slices that were looked at, in whole or in part", looked),
        Table("What it was made with", made),
    ]


def files_table(path: Path, labels: str, reference: Path | None) -> Table:
    """Which files a page was made of."""
    compared = [("reference", reference.name)] if reference else []
    return Table("Files", [("label map", path.name), ("labels", labels), *compared])

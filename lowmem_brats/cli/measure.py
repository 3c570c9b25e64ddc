"""`lowmem-brats measure` and `lowmem-brats compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import SegmentConfig
from lowmem_brats.config.names import REGIONS
from lowmem_brats.data.labels import CONVENTIONS, format_millilitres
from lowmem_brats.errors import InputError
from lowmem_brats.files import check_apart, check_output, write_text

if TYPE_CHECKING:
    from lowmem_brats.measure.change import Change
    from lowmem_brats.measure.label_map import Measurements

MOST_SHOWN = 5
"""Lesions of a label map in the table; the rest are counted."""


@click.command()
@click.argument("label_maps", nargs=-1, required=True, type=options.FILE, metavar="SEG...")
@options.of(SegmentConfig, "labels")
@click.option("--case", type=options.FILE, help="The images of the one SEG, as for `segment`: they tell the side.")
@click.option("--csv", type=options.FILE, help="Write a row per label map to this CSV file.")
@click.option("--json", type=options.FILE, help="Write all measurements to this JSON file.")
@options.overwrite
@options.quiet
def measure(
    label_maps: tuple[Path, ...],
    labels: str,
    case: Path | None,
    csv: Path | None,
    json: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Measure label maps: volumes, and the diameters of each enhancing lesion as RANO defines them.

    SEG is a label map, or a folder of label maps as for `evaluate`. A lesion is a connected piece of enhancing tumour.
    In each axial slice its longest diameter and the longest perpendicular to it are measured, both inside the lesion
    with all that it encloses; the slice with the largest product counts. It is measurable if both are at least 10 mm.
    """
    from lowmem_brats.data.case import read_case
    from lowmem_brats.data.case_files import find_case
    from lowmem_brats.evaluate.pairs import find_label_maps
    from lowmem_brats.measure.label_map import measure_file, to_csv, to_json

    for path in filter(None, (csv, json)):
        check_output(path, overwrite)
    paths = [row for path in label_maps for row in find_label_maps(path)]
    check_apart(filter(None, (csv, json)), (path for _, path in paths))
    if case and len(paths) > 1:
        raise InputError("--case", f"{len(paths)} label maps", "one label map", "Measure them one by one.")
    images = read_case(find_case(case)) if case else None
    measured = []
    with console.progress(quiet) as on_progress:
        for case_id, path in paths:
            measured.append(measure_file(case_id, path, CONVENTIONS[labels], images))
            on_progress("measuring", len(measured), len(paths))
    _warn(measured)
    for target, render in ((csv, to_csv), (json, to_json)):
        if target:
            write_text(target, render(measured), overwrite)
    if not quiet:
        show_measurements(measured)


@click.command()
@click.argument("before", type=options.FILE, metavar="BEFORE")
@click.argument("after", type=options.FILE, metavar="AFTER")
@options.of(SegmentConfig, "labels")
@click.option("--json", type=options.FILE, help="Write both measurements and the changes to this JSON file.")
@options.overwrite
@options.quiet
def compare(before: Path, after: Path, labels: str, json: Path | None, overwrite: bool, quiet: bool) -> None:
    """Compare two label maps of one patient: the change of each volume and of the sum of products, in percent.

    The products are those of `measure`, added up over the measurable lesions, at most over the five largest. RANO's
    thresholds, -50 % and +25 %, are named as arithmetic: a diagnosis takes more than two label maps. The two need not
    have the same grid.
    """
    from lowmem_brats.evaluate.pairs import case_id_of
    from lowmem_brats.measure.change import changes, to_json
    from lowmem_brats.measure.label_map import measure_file

    if json:
        check_output(json, overwrite)
        check_apart([json], (before, after))
    measured = [measure_file(case_id_of(path), path, CONVENTIONS[labels]) for path in (before, after)]
    _warn(measured)
    if json:
        write_text(json, to_json(*measured), overwrite)
    if not quiet:
        show_changes(changes(*measured))


def show_measurements(measured: list[Measurements]) -> None:
    """A table of the volumes, then one of the lesions."""
    volumes = console.table(
        "case",
        "WT mL",
        "TC mL",
        "ET mL",
        "necrotic core mL",
        "oedema mL",
        "lesions",
        "measurable",
        "sum of products mm²",
    )
    lesions = console.table("case", "lesion", "longest mm", "perpendicular mm", "product mm²", "slice", "3-D mm", "mL")
    for heading in ("centroid mm (right, front, up)", "side"):
        lesions.add_column(heading, justify="right")
    for each in measured:
        shown_ml = [format_millilitres(ml) for ml in each.volumes_ml.values()]
        counts = str(len(each.lesions)), str(each.measurable)
        volumes.add_row(each.case_id, *shown_ml, *counts, f"{each.sum_of_products_mm2:.0f}")
        for number, lesion in enumerate(each.lesions[:MOST_SHOWN], 1):
            diameters = f"{lesion.longest_mm:.1f}", f"{lesion.perpendicular_mm:.1f}", f"{lesion.product_mm2:.0f}"
            where = f"{lesion.slice}", f"{lesion.longest_in_space_mm:.1f}", format_millilitres(lesion.millilitres)
            centroid = ", ".join(f"{mm:.0f}" for mm in lesion.centroid_ras_mm)
            named = f"{number}" if lesion.measurable else f"{number}, not measurable"
            lesions.add_row(each.case_id, named, *diameters, *where, centroid, lesion.side)
        if len(each.lesions) > MOST_SHOWN:
            lesions.add_row(each.case_id, f"{len(each.lesions) - MOST_SHOWN} more")
        lesions.add_section()
    console.out.print(volumes)
    if any(each.lesions for each in measured):
        console.out.print()
        console.out.print(lesions)


def show_changes(found: dict[str, Change]) -> None:
    """A table of each quantity before and after, and in words which threshold the sum of products reaches."""
    from lowmem_brats.measure.change import SUM_OF_PRODUCTS, threshold_reached

    shown = console.table("", "before", "after", "change", "%")
    for name, change in found.items():
        form, unit = ("{:.0f}".format, "mm²") if name == SUM_OF_PRODUCTS else (format_millilitres, "mL")
        percent = "" if change.percent is None else f"{change.percent:+.1f}"
        difference = f"{'+' if change.after >= change.before else '-'}{form(abs(change.after - change.before))}"
        named = name.upper() if name in REGIONS else name
        shown.add_row(f"{named}, {unit}", form(change.before), form(change.after), difference, percent)
    console.out.print(shown)
    console.out.print()
    console.out.print(f"sum of products: {threshold_reached(found[SUM_OF_PRODUCTS])}")
    console.out.print("This is arithmetic on two label maps, not a diagnosis.")


def _warn(measured: list[Measurements]) -> None:
    for each in measured:
        for text in each.warnings:
            console.warn(f"{each.file}: {text}")

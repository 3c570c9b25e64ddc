"""`lowmem-brats page`, and the page that `segment` writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats import __version__
from lowmem_brats.cli import console, options
from lowmem_brats.cli.search import Search, gathered, image_options
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.config import LABELS, SegmentConfig
from lowmem_brats.config.shared import MAIN, RESULT
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.labels import CONVENTIONS, LabelConvention, split_regions, warnings_of
from lowmem_brats.errors import InputError
from lowmem_brats.files import check_apart, check_output, write_text

if TYPE_CHECKING:
    from lowmem_brats.data.case import Case
    from lowmem_brats.evaluate.pairs import LabelledVolume
    from lowmem_brats.segment.result import Segmentation


@click.command(cls=SectionedCommand)
@click.argument("case", type=options.FILE)
@click.argument("seg", type=options.FILE)
@options.option("-o", "--output", type=options.FILE, help="The page. Default: <case_id>.html beside SEG.", section=MAIN)
@options.option(
    "--reference", type=options.FILE, help="Compare SEG with it. Default: the label map in CASE, if any.", section=MAIN
)
@image_options
@options.of(SegmentConfig, "labels")
@options.option(
    "--reference-labels",
    type=click.Choice(LABELS),
    help="Label convention of the reference. Default: that of --labels.",
    section=RESULT,
)
@options.overwrite
@options.quiet
@gathered
@options.conventions
def page(
    case: Path,
    seg: Path,
    search: Search,
    output: Path | None,
    reference: Path | None,
    conventions: tuple[LabelConvention, LabelConvention],
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write a page to look through a case with a label map, in a browser and offline.

    CASE is the case's folder, or a 4-D file; SEG is any label map in its grid. The page is one HTML file with the
    images, the label map and their volumes. Where there is a reference it shows both contours, where they differ and
    the scores.
    """
    from lowmem_brats.data.case import read_case
    from lowmem_brats.pictures.page import draw_page
    from lowmem_brats.pictures.page_tables import files_table

    files = search.case(case)
    target = output or seg.with_name(f"{files.case_id}.html")
    given = [*files.images.values(), *filter(None, [files.stacked, reference])]
    check_apart([target], [*given, seg, *files.labels])
    own, other = conventions
    found = _labelled(seg, own)
    compared = _labelled(reference, other) if reference else None
    check_output(target, overwrite)
    loaded = read_case(files)
    warnings = [*loaded.warnings, *_told(found)]
    if compared:
        warnings += _told(compared)
    else:
        compared = _reference_in(files, seg, other, loaded, warnings)
    for text in warnings:
        console.warn(text)
    table = files_table(seg, own.name, compared.path if compared else None)
    subtitle = f"label map {seg.name}, drawn by lowmem-brats {__version__}"
    write_text(target, draw_page(loaded, found, subtitle, [table], warnings, compared), overwrite)
    if not quiet:
        console.out.print(f"wrote        {target}")


def write_result_page(result: Segmentation, files: CaseFiles, path: Path, overwrite: bool) -> None:
    """Write the page of a result that is saved; a reference in the case's folder is shown too.

    Adds a warning to the report where that reference cannot be compared. Raises InputError as `replace_when_complete`.
    """
    from lowmem_brats.evaluate.pairs import LabelledVolume
    from lowmem_brats.pictures.page import draw_page
    from lowmem_brats.pictures.page_tables import files_table, report_tables

    report = result.report
    convention, output = CONVENTIONS[report.labels], Path(report.output)
    found = LabelledVolume(result.volume, convention, output)
    reference = _reference_in(files, output, convention, result.case, report.warnings)
    tables = [
        *report_tables(report, result.label_XYZ.shape),
        files_table(output, report.labels, reference.path if reference else None),
    ]
    subtitle = f"segmented by lowmem-brats {__version__} with {report.weights}"
    write_text(path, draw_page(result.case, found, subtitle, tables, report.warnings, reference), overwrite)


def _labelled(path: Path, convention: LabelConvention) -> LabelledVolume:
    from lowmem_brats.data.nifti import read_label
    from lowmem_brats.evaluate.pairs import LabelledVolume

    return LabelledVolume(read_label(path), convention, path)


def _reference_in(
    files: CaseFiles, label_map: Path, convention: LabelConvention, case: Case, warnings: list[str]
) -> LabelledVolume | None:
    """The case's own reference. Where it cannot be compared with its label map there is a warning in its place."""
    from lowmem_brats.data.geometry import check_same_grid
    from lowmem_brats.segment.result_path import reference_of

    path = reference_of(files, label_map)
    if path is None:
        return None
    try:
        reference = _labelled(path, convention)
        check_same_grid(reference.volume, path, case.reference, label_map)
        split_regions(reference.volume.data, convention, path)
    except InputError as error:
        warnings.append(f"the page does not show the reference: {error}")
        return None
    warnings += _told(reference)
    return reference


def _told(labelled: LabelledVolume) -> list[str]:
    """What may be wrong with a label map from a file."""
    found = [*labelled.volume.warnings, *warnings_of(labelled.volume.data, labelled.convention)]
    return [f"{labelled.path.name}: {text}" for text in found]

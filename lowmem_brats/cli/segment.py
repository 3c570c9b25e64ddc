"""`lowmem-brats segment`."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.cohort import Cohort
from lowmem_brats.cli.jobs import Beside, Preparation, case_folders, make_folder
from lowmem_brats.cli.search import Search, gathered, image_options
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.config import SegmentConfig
from lowmem_brats.config.shared import MAIN, RESULT
from lowmem_brats.data.case_files import CaseFiles, stem
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete

if TYPE_CHECKING:
    from lowmem_brats.segment.result import Segmentation
    from lowmem_brats.segment.result_path import Outputs


@click.command(cls=SectionedCommand)
@click.argument("cases", nargs=-1, required=True, type=options.FILE, metavar="CASE...")
@options.option(
    "-o",
    "--output",
    type=click.Path(),
    help="A .nii or .nii.gz file for the label map, or a folder. Default: CASE/<case_id>_seg.nii.gz.",
    section=MAIN,
)
@image_options
@options.option(
    "--preview/--no-preview",
    default=True,
    show_default=True,
    help="Write <case_id>_preview.png beside the label map.",
    section=RESULT,
)
@options.option(
    "--page/--no-page",
    default=True,
    show_default=True,
    help="Write <case_id>.html beside the label map: a page to look through the case, offline.",
    section=RESULT,
)
@options.option(
    "--dicom-seg",
    type=options.FILE,
    metavar="STUDY",
    help="Of a prepared case write a DICOM segmentation too; STUDY: the folder with the DICOM files of its T1ce.",
    section=RESULT,
)
@options.option("--report", type=options.FILE, help="Write everything that happened to this JSON file.", section=RESULT)
@options.of(SegmentConfig)
@options.overwrite
@options.quiet
@gathered
@options.gather("beside", ("preview", "page", "dicom_seg"), Beside)
@options.gather("config", options.fields_of(SegmentConfig), SegmentConfig)
def segment(
    cases: tuple[Path, ...],
    search: Search,
    output: str | None,
    config: SegmentConfig,
    beside: Beside,
    report: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Segment one or more cases.

    CASE is a folder with T1, T1ce, T2 and FLAIR as .nii or .nii.gz (any BraTS naming), one 4-D file in the order of
    the Medical Segmentation Decathlon, or a folder of such case folders. The result has the grid of the input.

    Of several cases one that fails does not stop the others, and one whose result is there already is skipped, so that
    the same command goes on where it was stopped; a picture or page that is missing then is not made.

    \b
    Exit code:
      0    every case is segmented, or was before
      1    stopped by Ctrl-C, or by a mistake in the program
      2    a mistake in the command or its case, or every case failed
      3    some cases failed, the others are segmented
      143  ended by SIGTERM
    """
    from lowmem_brats.memory.device import choose_device, open_budget
    from lowmem_brats.segment.case import origin
    from lowmem_brats.segment.result_path import names_label_map
    from lowmem_brats.weights.store import open_set

    explicit = bool(search.explicit)
    folder = Path(output) if output is not None and not names_label_map(output) else None
    paths = list(cases) if explicit else case_folders(cases, folder)
    if len(paths) > 1 and (explicit or (output and not folder)):
        raise InputError("segment", f"{len(paths)} cases", "one case for --t1 … or -o FILE", "Give -o a folder.")
    open_budget(config.vram, choose_device(config.device)[0])  # what is wrong here is wrong for every case
    weights = open_set(config.weights, alone=config.fast)
    if folder:
        make_folder(folder)
    several = len(paths) > 1 or paths != list(cases)
    cohort = Cohort(several, report, overwrite, quiet)
    made_of = partial(origin, config=config, weights=weights)
    taken = {report.resolve()} if report else set[Path]()
    prepare = Preparation(search.case, explicit, output, beside, overwrite, made_of, several, taken)
    with cohort.counted():
        for number, path in enumerate(paths, 1):
            with cohort.case(path):
                job = prepare.job(path)
                if job.done:
                    cohort.skip(path, job.outputs.label_map)
                    continue
                if several and not quiet:
                    console.err.print(f"case {number} of {len(paths)}: {path}")
                cohort.done(path, segment_one(job.files, job.outputs, config, quiet, overwrite, beside.dicom_seg))


def segment_one(
    files: CaseFiles,
    outputs: Outputs,
    config: SegmentConfig,
    quiet: bool,
    overwrite: bool,
    study: Path | None = None,
) -> dict[str, object]:
    """Segment a case, write its label map and what else has a path, and show the tables.

    `study`: folder with the DICOM files of its T1ce, for the DICOM segmentation. Returns the report as plain values.
    """
    from lowmem_brats.cli.page import write_result_page
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.data.nifti import read_label
    from lowmem_brats.prepare.dicom_seg import find_t1ce, write_dicom_seg
    from lowmem_brats.segment.case import segment_case
    from lowmem_brats.segment.native import FORCED, prepared_folder
    from lowmem_brats.segment.regions import timed

    prepared = prepared_folder(files.folder)
    headers = find_t1ce(study, prepared.t1ce_checksum) if prepared and study else []
    with console.progress(quiet) as on_progress:
        show_plan = (lambda plan: None) if quiet else console.show_plan
        result = segment_case(files, outputs.label_map, config, on_progress, show_plan, overwrite)
    if prepared and prepared.problems:
        result.report.warnings.append(f"{FORCED}: {'; '.join(prepared.problems)}")
    with timed(result.report.seconds, "measure"):
        measured = result.measurements
    for text in result.report.warnings:
        console.warn(f"{files.case_id}: {text}")
    native_millilitres = {}
    if outputs.native and prepared:
        native_millilitres = write_native(result, prepared.native, outputs.native, overwrite)
    if outputs.preview:
        title = f"{stem(outputs.label_map)} (lowmem-brats, {result.report.weights})"
        write_preview(result, outputs.preview, title, overwrite)
    if outputs.page:
        write_result_page(result, files, outputs.page, overwrite)
    if outputs.native and outputs.dicom_seg:
        if any(native_millilitres.values()):
            convention = CONVENTIONS[result.report.labels]
            write_dicom_seg(read_label(outputs.native), headers, convention, outputs.dicom_seg, overwrite)
        else:
            console.warn(f"{files.case_id}: no tumour was found, so no DICOM segmentation is written")
            outputs = replace(outputs, dicom_seg=None)
    if not quiet:
        console.show_segmentation(result.report)
        console.show_native(native_millilitres)
        console.show_target_lesions(measured)
        console.out.print("wrote        " + "\n             ".join(map(str, outputs.paths)))
    report = {**asdict(result.report), "measurements": asdict(measured)}
    return {**report, "native_millilitres": native_millilitres} if outputs.native else report


def write_native(result: Segmentation, native: Path, path: Path, overwrite: bool) -> dict[str, float]:
    """Write the label map on the raw T1ce's grid; returns tissue → mL, measured there."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.segment import native as back

    affine, convention = result.case.reference.affine, CONVENTIONS[result.report.labels]
    return back.write_native(result.label_XYZ, affine, back.Target(native, path, overwrite), convention, result.origin)


def write_preview(result: Segmentation, path: Path, title: str, overwrite: bool) -> None:
    """Draw the result's picture and write it whole or not at all. Raises InputError as `replace_when_complete`."""
    from lowmem_brats.data.labels import CONVENTIONS
    from lowmem_brats.pictures.preview import draw_preview

    case, convention = result.case, CONVENTIONS[result.report.labels]
    image = draw_preview(case.images_CXYZ, result.label_XYZ, convention, case.spacing_mm, title)
    with replace_when_complete(path, overwrite) as partial:
        image.save(partial, format="PNG")

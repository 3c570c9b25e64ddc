"""`lowmem-brats segment`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.cohort import Cohort
from lowmem_brats.cli.jobs import Preparation, case_folders, make_folder
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.config import MODALITIES, SegmentConfig, TrainConfig
from lowmem_brats.config.shared import INPUT, MAIN, RESULT
from lowmem_brats.data.case_files import CaseFiles, find_case, stem
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete

if TYPE_CHECKING:
    from lowmem_brats.segment.result import Segmentation


@dataclass(frozen=True)
class Search:
    """How the images of a case are found."""

    explicit: dict[str, Path]
    """Modality → file, for those that the user named."""
    allow_missing: tuple[str, ...]

    @classmethod
    def by(cls, allow_missing: tuple[str, ...], **images: Path | None) -> Search:
        """As the options say."""
        return cls({modality: path for modality, path in images.items() if path}, allow_missing)

    def case(self, path: Path) -> CaseFiles:
        """As `find_case`."""
        return find_case(path, self.explicit, self.allow_missing)


@click.command(cls=SectionedCommand)
@click.argument("cases", nargs=-1, required=True, type=options.FILE, metavar="CASE...")
@options.option(
    "-o",
    "--output",
    type=click.Path(),
    help="A .nii or .nii.gz file for the label map, or a folder. Default: CASE/<case_id>_seg.nii.gz.",
    section=MAIN,
)
@options.option("--t1", type=options.FILE, help="T1 image, if its name is not understood; likewise:", section=INPUT)
@options.option("--t1ce", type=options.FILE, help="T1 with contrast agent.", section=INPUT)
@options.option("--t2", type=options.FILE, help="T2 image.", section=INPUT)
@options.option("--flair", type=options.FILE, help="FLAIR image.", section=INPUT)
@options.of(TrainConfig, "allow_missing", section=INPUT)
@options.option(
    "--preview/--no-preview",
    default=True,
    show_default=True,
    help="Write <case_id>_preview.png beside the label map.",
    section=RESULT,
)
@options.option("--report", type=options.FILE, help="Write everything that happened to this JSON file.", section=RESULT)
@options.of(SegmentConfig)
@options.overwrite
@options.quiet
@options.gather("search", (*MODALITIES, "allow_missing"), Search.by)
@options.gather("config", options.fields_of(SegmentConfig), SegmentConfig)
def segment(
    cases: tuple[Path, ...],
    search: Search,
    output: str | None,
    config: SegmentConfig,
    preview: bool,
    report: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Segment one or more cases.

    CASE is a folder with T1, T1ce, T2 and FLAIR as .nii or .nii.gz (any BraTS naming), one 4-D file in the order of
    the Medical Segmentation Decathlon, or a folder of such case folders. The result has the grid of the input.

    Of several cases one that fails does not stop the others, and one whose result is there already is skipped, so that
    the same command goes on where it was stopped; a picture that is missing then is not drawn.

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
    prepare = Preparation(search.case, explicit, output, preview, overwrite, made_of, several, taken)
    with cohort.counted():
        for number, path in enumerate(paths, 1):
            with cohort.case(path):
                job = prepare.job(path)
                if job.done:
                    cohort.skip(path, job.outputs[0])
                    continue
                if several and not quiet:
                    console.err.print(f"case {number} of {len(paths)}: {path}")
                cohort.done(path, segment_one(job.files, job.outputs, config, quiet, overwrite))


def segment_one(
    files: CaseFiles,
    outputs: list[Path],
    config: SegmentConfig,
    quiet: bool,
    overwrite: bool,
) -> dict[str, object]:
    """Segment a case, write its label map and, where a second path is given, its picture; show the tables.

    Returns the report as plain values.
    """
    from lowmem_brats.segment.case import segment_case
    from lowmem_brats.segment.native import FORCED, prepared_folder

    target, *others = outputs
    prepared = prepared_folder(files.folder)
    with console.progress(quiet) as on_progress:
        show_plan = (lambda plan: None) if quiet else console.show_plan
        result = segment_case(files, target, config, on_progress, show_plan, overwrite)
    if prepared and prepared.problems:
        result.report.warnings.append(f"{FORCED}: {'; '.join(prepared.problems)}")
    for text in result.report.warnings:
        console.warn(f"{files.case_id}: {text}")
    report = asdict(result.report)
    for path in others:
        if path.suffix == ".png":
            write_preview(result, path, f"{stem(target)} (lowmem-brats, {result.report.weights})", overwrite)
        elif prepared:
            report["native_millilitres"] = write_native(result, prepared.native, path, overwrite)
    if not quiet:
        console.show_segmentation(result.report)
        console.show_native(report.get("native_millilitres", {}))
        console.out.print("wrote        " + "\n             ".join(map(str, outputs)))
    return report


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

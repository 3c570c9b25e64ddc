"""`lowmem-brats segment`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.case_files import CaseFiles, find_case, stem
from lowmem_brats.cli import console, options
from lowmem_brats.config import MODALITIES, SegmentConfig
from lowmem_brats.errors import InputError, LowmemError
from lowmem_brats.files import check_apart, check_output, replace_when_complete
from lowmem_brats.read_ahead import read_ahead

if TYPE_CHECKING:
    from lowmem_brats.segment import LoadedCase, Segmentation


@click.command()
@click.argument("cases", nargs=-1, required=True, type=options.FILE, metavar="CASE...")
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    help="A .nii or .nii.gz file for the label map, or a folder. Default: CASE/<case_id>_seg.nii.gz.",
)
@click.option("--t1", type=options.FILE, help="T1 image, where its name is of no known convention; also:")
@click.option("--t1ce", type=options.FILE, help="T1 with contrast agent.")
@click.option("--t2", type=options.FILE, help="T2 image.")
@click.option("--flair", type=options.FILE, help="FLAIR image.")
@options.allow_missing
@click.option(
    "--weights",
    multiple=True,
    help="A shipped set's name, or a folder written by `train`; given again, the sets share the views. Default: the "
    "shipped set.",
)
@options.device
@options.precision
@options.vram
@options.labels
@options.setting(
    "--min-confidence",
    "min_confidence",
    "Drop islands, and count enhancing tumour as core, of less than this share of the main tumour's mean logit.",
    of=SegmentConfig,
    metavar="SHARE",
)
@options.setting(
    "--min-component",
    "min_component",
    "Drop connected tumour components smaller than this.",
    of=SegmentConfig,
    metavar="MM3",
)
@click.option("--fast", is_flag=True, help="Axial slices, by the first set: two to three times as fast, less accurate.")
@click.option("--tta", is_flag=True, help="Segment mirrored slices too and average: nearly twice the time.")
@click.option(
    "--narrow/--every-slice",
    default=SegmentConfig.narrow,
    help="Look coarsely first, then only around what was found (default), or at every slice from every side.",
)
@click.option("--preview/--no-preview", default=True, help="Write <case_id>_preview.png beside the label map.")
@click.option("--report", type=options.FILE, help="Write everything that happened to this JSON file.")
@options.overwrite
@options.quiet
def segment(
    cases: tuple[Path, ...],
    output: Path | None,
    preview: bool,
    report: Path | None,
    overwrite: bool,
    quiet: bool,
    allow_missing: tuple[str, ...],
    **settings: object,
) -> None:
    """Segment one or more cases.

    CASE is a folder with T1, T1ce, T2 and FLAIR as .nii or .nii.gz (any BraTS naming), or one 4-D file in the order
    of the Medical Segmentation Decathlon. The result has the grid of the input.
    """
    explicit = {m: path for m in MODALITIES if isinstance(path := settings.pop(m), Path)}
    config = SegmentConfig(**settings)  # type: ignore[arg-type]
    if len(cases) > 1 and (explicit or (output and output.name.endswith((".nii", ".nii.gz")))):
        raise InputError("segment", f"{len(cases)} cases", "one case for --t1 … or -o FILE", "Give -o a folder.")
    if report:
        check_output(report, overwrite)
    reports, failures, taken = [], [], [report] if report else []
    find = partial(find_case, explicit=explicit, allow_missing=allow_missing)
    for path, loading in zip(cases, load_ahead(cases, find, config), strict=True):
        try:
            files = find(path)
            outputs = _outputs(files, output, preview, overwrite, taken)
            taken += outputs
            reports.append(segment_one(files, outputs, config, quiet, loading))
        except LowmemError as error:
            if len(cases) == 1:
                raise
            failures.append(error)
            console.err.print(f"Error: {error}", style="red")
    if report:
        with replace_when_complete(report) as beside:
            beside.write_text(json.dumps({"cases": reports}, indent=2) + "\n", encoding="utf-8")
    if failures:
        names = ", ".join(str(f.where) for f in failures)
        raise InputError("segment", f"{len(failures)} of {len(cases)} cases failed ({names})", "none", "See above.")


def load_ahead(
    cases: Sequence[Path], find: Callable[[Path], CaseFiles], config: SegmentConfig
) -> Iterable[Future[LoadedCase] | None]:
    """Of each case what `segment_case` takes as `loading`: on a card the next case is read while networks run.

    On the CPU, where reading would take cores from them (1.15 times the time on two), None.
    """
    from lowmem_brats.memory.device import choose_device
    from lowmem_brats.networks import stride_of
    from lowmem_brats.segment import load_case
    from lowmem_brats.weights import open_set

    def load(path: Path) -> LoadedCase:
        return load_case(find(path), stride_of(open_set(config.weights).network))

    if choose_device(config.device)[0].type == "cpu":
        return [None] * len(cases)
    return read_ahead(partial(load, path) for path in cases)


def _outputs(files: CaseFiles, output: Path | None, preview: bool, overwrite: bool, taken: list[Path]) -> list[Path]:
    """Paths of label map and, if wanted, picture, checked against each other, the inputs and what was `taken`."""
    from lowmem_brats.segment import check_not_reference, output_path

    target = output_path(files, output)
    outputs = [target, target.with_name(f"{files.case_id}_preview.png")] if preview else [target]
    check_apart([*taken, *outputs], [*files.images.values(), *filter(None, [files.stacked])])
    if output and target.parent == output:
        output.mkdir(parents=True, exist_ok=True)
    for path in outputs:
        check_output(path, overwrite)
    check_not_reference(files, target)
    return outputs


def segment_one(
    files: CaseFiles,
    outputs: list[Path],
    config: SegmentConfig,
    quiet: bool,
    loading: Future[LoadedCase] | None = None,
) -> dict[str, object]:
    """Segment a case, write its label map and, where a second path is given, its picture; show the tables.

    `loading`: as `segment_case`. Returns the report as plain values.
    """
    from lowmem_brats.segment import segment_case

    target, *pictures = outputs
    with console.progress(quiet) as on_progress:
        show_plan = (lambda plan: None) if quiet else console.show_plan
        result = segment_case(files, target, config, on_progress, show_plan, loading)
    for text in result.report.warnings:
        console.warn(f"{files.case_id}: {text}")
    for picture in pictures:
        write_preview(result, picture, f"{stem(target)} (lowmem-brats, {result.report.weights})")
    if not quiet:
        console.show_segmentation(result.report)
        console.out.print("wrote        " + "\n             ".join(map(str, outputs)))
    return asdict(result.report)


def write_preview(result: Segmentation, path: Path, title: str) -> None:
    """Draw the result's picture and write it whole or not at all."""
    from lowmem_brats.labels import CONVENTIONS
    from lowmem_brats.preview import draw_preview

    case, convention = result.case, CONVENTIONS[result.report.labels]
    image = draw_preview(case.images_CXYZ, result.label_XYZ, convention, case.spacing_mm, title)
    with replace_when_complete(path) as partial:
        image.save(partial, format="PNG")

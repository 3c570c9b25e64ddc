"""`lowmem-brats prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.search import Search
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.config import MODALITIES, PrepareConfig, TrainConfig
from lowmem_brats.config.shared import INPUT, MAIN

if TYPE_CHECKING:
    from lowmem_brats.prepare.run import Prepared
    from lowmem_brats.prepare.source import Study


@click.command(cls=SectionedCommand)
@click.argument("study", type=options.FILE)
@options.option(
    "-o",
    "--output",
    type=options.FILE,
    required=True,
    help="Folder for the case; its name becomes the case's.",
    section=MAIN,
)
@options.option(
    "--t1",
    type=options.FILE,
    metavar="FILE|FOLDER|NUMBER",
    help="T1: a NIfTI file, the folder of a DICOM series, or the series' number; likewise:",
    section=INPUT,
)
@options.option("--t1ce", type=options.FILE, metavar="…", help="T1 with contrast agent.", section=INPUT)
@options.option("--t2", type=options.FILE, metavar="…", help="T2.", section=INPUT)
@options.option("--flair", type=options.FILE, metavar="…", help="FLAIR.", section=INPUT)
@options.of(TrainConfig, "allow_missing", section=INPUT)
@options.of(PrepareConfig)
@options.overwrite
@options.quiet
@options.gather("search", (*MODALITIES, "allow_missing"), Search.by)
@options.gather("config", options.fields_of(PrepareConfig), PrepareConfig)
def prepare(study: Path, search: Search, output: Path, config: PrepareConfig, overwrite: bool, quiet: bool) -> None:
    """Make a case for `segment` out of a raw study.

    STUDY is a folder with the DICOM files of an examination, at any depth, or with T1, T1ce, T2 and FLAIR as NIfTI
    files, as they came from the scanner. T1, T2 and FLAIR are aligned with T1ce, the skull is removed, and each image
    is resampled once, to 1 mm along T1ce's axes; slices of T1ce that are 2 mm apart or more are kept. What does not
    pass the checks is refused.

    Needs: pip install 'lowmem-brats[prepare]'
    """
    make_case(study, output.absolute(), search, config, overwrite, quiet)
    if not quiet:
        console.out.print(f"next         lowmem-brats segment {output}")


def make_case(study: Path, output: Path, search: Search, config: PrepareConfig, overwrite: bool, quiet: bool) -> None:
    """Prepare a study, write its case to the folder `output` and show what was done.

    Raises InputError where the extra is not installed, the study cannot be used, or a check fails.
    """
    from lowmem_brats.pictures.check import draw_check
    from lowmem_brats.prepare.case_folder import check_case_folder, write_case
    from lowmem_brats.prepare.extra import check_installed
    from lowmem_brats.prepare.run import prepare_study

    check_installed()
    check_case_folder(output, overwrite)
    with console.progress(quiet) as on_progress:
        stages: list[str] = []

        def on_stage(stage: str) -> None:
            stages.append(stage)
            on_progress("preparing", len(stages), 2 + 1 + len(MODALITIES))

        show = (lambda found: None) if quiet else show_study
        prepared = prepare_study(study, search.explicit, search.allow_missing, config, show, on_stage)
    for text in prepared.warnings:
        console.warn(f"{output.name}: {text}")
    for text in prepared.problems:
        console.warn(f"{output.name}: prepared all the same, as --force says: {text}")
    title = f"{output.name} (prepared{': FORCED, FAILS CHECKS' if prepared.problems else ''})"
    spacing_mm = prepared.grid.spacing_mm
    picture = draw_check(
        prepared.images_CXYZ, prepared.head_XYZ, prepared.mask_XYZ, prepared.missing, spacing_mm, title
    )
    written = write_case(prepared, output, picture)
    if not quiet:
        show_prepared(prepared)
        console.out.print("wrote        " + "\n             ".join(map(str, written)))


def show_study(study: Study) -> None:
    """What each modality was taken from, and why, and what was left out."""
    for modality, source in study.sources.items():
        console.out.print(f"{modality:<12} {source.named}: {source.reason}")
    for note in study.notes:
        console.out.print(note)


def show_prepared(prepared: Prepared) -> None:
    """Table of the registrations; then the brain, the grid and the seconds."""
    shown = console.table("laid on T1ce", "rotation °", "shift mm", "fit", "brain shown")
    for modality, found in prepared.registrations.items():
        measures = prepared.measures[modality]
        turned = f"{found.rotation_degrees:.1f}", f"{found.shift_mm:.1f}"
        shown.add_row(modality, *turned, f"{measures.over_probes:.2f}", f"{measures.covered:.0%}")
    console.out.print(shown)
    console.out.print()
    brain = prepared.brain
    console.out.print(f"brain        {brain.millilitres(prepared.t1ce):.0f} mL, {brain.made_by}")
    sizes = " x ".join(f"{size:.2f}" for size in prepared.grid.spacing_mm)
    console.out.print(f"grid         {' x '.join(map(str, prepared.grid.shape))} voxels of {sizes} mm")
    stages = " · ".join(f"{stage} {seconds:.1f}" for stage, seconds in prepared.seconds.items())
    console.out.print(f"seconds      {sum(prepared.seconds.values()):.1f} = {stages}")

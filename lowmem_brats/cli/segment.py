"""`lowmem-brats segment`."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import options
from lowmem_brats.cli.cohort import Cohort, Showing
from lowmem_brats.cli.jobs import RECORDS, Beside, Preparation, Source, make_folder, sources_of
from lowmem_brats.cli.search import Search, gathered, image_options
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.cli.segment_cases import found_jobs, segment_all
from lowmem_brats.cli.work import Work
from lowmem_brats.config import CohortConfig, PrepareConfig, SegmentConfig
from lowmem_brats.config.shared import INPUT, MAIN, RESULT
from lowmem_brats.errors import InputError

if TYPE_CHECKING:
    from lowmem_brats.weights.store import WeightsSet


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
    help="Also write the result of a prepared case as a DICOM segmentation; STUDY: the folder with its T1ce as DICOM.",
    section=RESULT,
)
@options.option(
    "--prepare",
    "case_folder",
    type=options.FILE,
    metavar="FOLDER",
    help="CASE is a raw study: make a case of it in this folder first, as `prepare` does, and segment that.",
    section=INPUT,
)
@options.option("--report", type=options.FILE, help="Write everything that happened to this JSON file.", section=RESULT)
@options.of(SegmentConfig)
@options.of(CohortConfig)
@options.overwrite
@options.quiet
@gathered
@options.gather("beside", ("preview", "page", "dicom_seg"), Beside)
@options.gather("config", options.fields_of(SegmentConfig), SegmentConfig)
@options.gather("sharing", options.fields_of(CohortConfig), CohortConfig)
@options.gather("showing", ("report", "overwrite", "quiet"), Showing)
def segment(
    cases: tuple[Path, ...],
    search: Search,
    case_folder: Path | None,
    output: str | None,
    config: SegmentConfig,
    sharing: CohortConfig,
    beside: Beside,
    showing: Showing,
) -> None:
    """Segment one or more cases.

    CASE is a folder with T1, T1ce, T2 and FLAIR as .nii or .nii.gz (any BraTS naming), one 4-D file in the order of
    the Medical Segmentation Decathlon, a folder of such case folders, or a .csv or .json list of cases as `train` reads
    it. The result has the grid of the input.

    Of several cases one that fails does not stop the others, and one whose result is there already is skipped, so that
    the same command goes on where it was stopped; a picture or page that is missing then is not made. With -o FOLDER
    there is also a table of all of them, cohort.csv, and a page, index.html; several commands may share one folder.

    \b
    Exit code:
      0    every case is segmented, or was before, or another command is at it
      1    stopped by Ctrl-C, or by a mistake in the program
      2    a mistake in the command or its case, every case failed, or the tables could not be written
      3    some cases failed, the others are segmented
      143  ended by SIGTERM
    """
    from lowmem_brats.cohort.records import Records
    from lowmem_brats.cohort.tables import Tables
    from lowmem_brats.segment.case import origin
    from lowmem_brats.segment.result_path import names_label_map

    config, weights = check_machine(config, sharing)
    if case_folder:
        cases, search = (prepared(cases, case_folder, search, showing),), Search({}, search.allow_missing)
    explicit = bool(search.explicit)
    folder = Path(output) if output is not None and not names_label_map(output) else None
    sources = [Source(path) for path in cases] if explicit else sources_of(cases, folder)
    several = len(sources) > 1 or [source.path for source in sources] != list(cases)
    if several and (explicit or (output and not folder)):
        raise InputError("segment", f"{len(sources)} cases", "one case for --t1 … or -o FILE", "Give -o a folder.")
    records = Records(folder) if folder and several else None
    if folder:
        make_folder(folder / RECORDS if records else folder)
    part, parts = sharing.part or (1, 1)
    sources = sources[part - 1 :: parts]
    tables = Tables(records) if records else None
    cohort = Cohort(len(sources), several, showing, tables)
    # The workers of a scheduler may have the weights at another place.
    made_of = partial(origin, config=config, weights=None if sharing.scheduler else weights)
    preparation = Preparation(search, output, beside, showing.overwrite, made_of, several, records)
    work = Work(preparation, config, secrets.token_hex(8))
    taken = {path.resolve() for path in (showing.report, *(tables.paths if tables else ())) if path}
    with cohort.counted():
        segment_all(work, found_jobs(work, sources, taken, cohort), sharing, cohort)


def prepared(studies: tuple[Path, ...], case: Path, search: Search, showing: Showing) -> Path:
    """Make a case of a raw study in the folder `case`, as `prepare` does; returns the folder. Raises InputError."""
    from lowmem_brats.cli.prepare import make_case

    if len(studies) > 1:
        advice = "Prepare each with `lowmem-brats prepare`, then segment all."
        raise InputError("--prepare", f"{len(studies)} studies", "one", advice)
    make_case(studies[0], case.absolute(), search, PrepareConfig(), showing.overwrite, showing.quiet)
    return case


def check_machine(config: SegmentConfig, sharing: CohortConfig) -> tuple[SegmentConfig, WeightsSet]:
    """Find what is wrong for every case: Dask, device, budget, weights.

    Returns the settings, with the budget that each worker has, and the weights, opened. Raises LowmemError.
    """
    from lowmem_brats.cohort.engine import dask_for
    from lowmem_brats.cohort.share import vram_of_worker
    from lowmem_brats.engine.precision import choose_precision
    from lowmem_brats.memory.device import choose_device, open_budget
    from lowmem_brats.segment.case import open_weights

    weights = open_weights(config)
    if sharing.scheduler:  # its workers' machines are others
        dask_for(f"--scheduler {sharing.scheduler}")
        return config, weights
    device, _ = choose_device(config.device)
    if sharing.workers > 1:
        dask_for(f"--workers {sharing.workers}")
        precision = choose_precision(config.precision, device)
        vram = vram_of_worker(config.vram, sharing.workers, device, weights.networks, precision)
        config = replace(config, vram=vram)
    open_budget(config.vram, device)
    return config, weights

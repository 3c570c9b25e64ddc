"""`lowmem-brats evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import LABELS, SegmentConfig
from lowmem_brats.data.labels import LabelConvention
from lowmem_brats.files import check_apart, check_output, write_text


@click.command()
@click.argument("predicted", type=options.FILE, metavar="PRED")
@click.argument("reference", type=options.FILE, metavar="REF")
@options.of(SegmentConfig, "labels")
@click.option(
    "--reference-labels",
    type=click.Choice(LABELS),
    help="Label convention of REF. Default: that of --labels.",
)
@click.option(
    "--lesion-wise",
    is_flag=True,
    help="Score each lesion too, as the BraTS challenges do: lesions found, their Dice, HD95 and surface distance. "
    "Needs pip install 'lowmem-brats[evaluate]'.",
)
@click.option("--csv", type=options.FILE, help="Write the scores to this CSV file.")
@click.option("--json", type=options.FILE, help="Write the scores to this JSON file.")
@options.overwrite
@options.quiet
@options.conventions
def evaluate(
    predicted: Path,
    reference: Path,
    lesion_wise: bool,
    csv: Path | None,
    json: Path | None,
    overwrite: bool,
    quiet: bool,
    conventions: tuple[LabelConvention, LabelConvention],
) -> None:
    """Score label maps against references: Dice, HD95, sensitivity and specificity per region and patient.

    PRED and REF are two files, or two folders whose label maps are matched by case id. As in BraTS, a region that is
    empty in both gets Dice 1 and HD95 0, and a region that is empty in one of them gets Dice 0 and HD95 373.13 mm.
    """
    from lowmem_brats.data.nifti import is_own_result
    from lowmem_brats.evaluate.lesion_wise import check_installed
    from lowmem_brats.evaluate.pairs import evaluate_pairs, pair_files, summarise, to_csv, to_json

    if lesion_wise:
        check_installed()
    for path in filter(None, (csv, json)):
        check_output(path, overwrite)
    pairs = pair_files(predicted, reference)
    check_apart(filter(None, (csv, json)), (path for _, *paths in pairs for path in paths))
    if own := [case_id for case_id, _, path in pairs if is_own_result(path)]:
        console.warn(f"references that this program wrote and nobody has corrected: {', '.join(own)}")
    with console.progress(quiet) as on_progress:
        on_patient = partial(on_progress, "scoring")
        scores = evaluate_pairs(pairs, *conventions, on_patient, lesion_wise)
    for text in (text for patient in scores for text in patient.warnings):
        console.warn(text)
    summary = summarise(scores)
    for target, render in ((csv, to_csv), (json, to_json)):
        if target:
            write_text(target, render(scores, summary), overwrite)
    if not quiet:
        console.show_scores(scores, summary)
        if lesion_wise:
            console.show_lesion_scores(scores, summary)

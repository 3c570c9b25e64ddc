"""Score a trained set on the patients that were held out for the test: once, at the end, nothing is chosen by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lowmem_brats.config import SegmentConfig, TrainConfig
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.errors import describe
from lowmem_brats.evaluate.pairs import PatientScores, evaluate_pairs, summarise, to_csv
from lowmem_brats.files import write_text
from lowmem_brats.segment.case import segment_case
from lowmem_brats.train.networks import Run, TrainListener
from lowmem_brats.train.report import TrainReport


def score_test_part(run: Run, cases: Sequence[CaseFiles]) -> None:
    """Score the installed set on the cases that were held out for the test, if any; report and tell the scores."""
    report_held_out(run.folder.path, cases, run.report, run.report.plans[0].precision, run.tell, run.note)


def report_held_out(
    folder: Path,
    cases: Sequence[CaseFiles],
    report: TrainReport,
    precision: str,
    tell: TrainListener,
    note: Callable[[str], None],
) -> None:
    """Score the set in `folder` as `score_held_out`; report and tell the scores, if there are any, and the notes."""
    scores, notes = score_held_out(folder, cases, report.config, precision, tell.on_progress)
    for text in notes:
        note(text)
    if scores:
        report.test = {region.value: asdict(mean) for region, mean in summarise(scores).mean.items()}
        tell.on_test(scores)


def score_held_out(
    folder: Path,
    cases: Sequence[CaseFiles],
    config: TrainConfig,
    precision: str,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[list[PatientScores], list[str]]:
    """Segment the cases with the set in `folder`, from NIfTI to NIfTI as a user would, and score the label maps.

    They are written to `folder/test`, with scores.csv. Returns the scores, and a note on each case that could not be
    scored, for whatever reason (the others are), or whose label map may be wrong.
    """
    results, scores, notes = folder / "test", list[PatientScores](), list[str]()
    results.mkdir(exist_ok=True)
    settings = SegmentConfig(
        weights=str(folder), device=config.device, precision=precision, vram=config.vram, labels=config.labels
    )
    convention = CONVENTIONS[config.labels]
    for number, case in enumerate(cases, 1):
        path = results / f"{case.case_id}_seg.nii.gz"
        try:
            result = segment_case(case, path, settings)
            notes += [f"{case.case_id}: {text}" for text in result.report.warnings]
            scores += evaluate_pairs([(case.case_id, path, case.labels[0])], convention, convention)
        except Exception as error:
            notes.append(f"{case.case_id}: not scored: {describe(error)}")
        on_progress("test cases", number, len(cases))
    notes += [f"{patient.case_id}: {text}" for patient in scores for text in patient.warnings]
    if scores:
        write_text(results / "scores.csv", to_csv(scores, summarise(scores)))
    return scores, notes

"""Score a trained set on the patients that were held out for the test: once, at the end, nothing is chosen by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lowmem_brats.case_files import CaseFiles
from lowmem_brats.config import SegmentConfig, TrainConfig
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate import PatientScores, evaluate_pairs, summarise, to_csv
from lowmem_brats.files import replace_when_complete
from lowmem_brats.labels import CONVENTIONS
from lowmem_brats.segment import segment_case


def score_held_out(
    folder: Path,
    cases: Sequence[CaseFiles],
    config: TrainConfig,
    precision: str,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[list[PatientScores], list[str]]:
    """Segment the cases with the set in `folder`, from NIfTI to NIfTI as a user would, and score the label maps.

    They are written to `folder/test`, with scores.csv. Returns the scores and a note per case that could not be read;
    where `config.strict`, such a case raises its InputError.
    """
    results, pairs, notes = folder / "test", [], []
    results.mkdir(exist_ok=True)
    settings = SegmentConfig(
        weights=str(folder), device=config.device, precision=precision, vram=config.vram, labels=config.labels
    )
    for number, case in enumerate(cases, 1):
        path = results / f"{case.case_id}_seg.nii.gz"
        try:
            segment_case(case, path, settings)
            pairs.append((case.case_id, path, case.labels[0]))
        except InputError as error:
            if config.strict:
                raise
            notes.append(f"{case.case_id}: not scored: {error}")
        on_progress("test cases", number, len(cases))
    convention = CONVENTIONS[config.labels]
    scores = evaluate_pairs(pairs, convention, convention)
    if scores:
        with replace_when_complete(results / "scores.csv") as partial:
            partial.write_text(
                to_csv(scores, summarise(scores)), encoding="utf-8", errors="backslashreplace", newline=""
            )
    return scores, notes

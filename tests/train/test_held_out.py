"""A set is scored on whole patients, from NIfTI to NIfTI; one that cannot be read is told."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
from easy_cases import EASY, write_easy_case
from tiny_weights import write_tiny_set

from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.evaluate.pairs import evaluate_pairs
from lowmem_brats.train import held_out
from lowmem_brats.train.held_out import score_held_out

BRATS = CONVENTIONS["brats2020"]


def test_scores_are_those_of_the_written_label_maps(tmp_path: Path) -> None:
    folder = write_tiny_set(tmp_path / "run")
    cases = [find_case(write_easy_case(tmp_path / name, seed)) for seed, name in enumerate(("a", "b"))]
    seen: list[tuple[str, int, int]] = []
    scores, notes = score_held_out(folder, cases, EASY, "fp32", lambda *step: seen.append(step))
    assert notes == []
    assert seen == [("test cases", 1, 2), ("test cases", 2, 2)]
    pairs = [(case.case_id, folder / "test" / f"{case.case_id}_seg.nii.gz", case.labels[0]) for case in cases]
    assert scores == evaluate_pairs(pairs, BRATS, BRATS)
    assert (folder / "test" / "scores.csv").read_text().count("\n") == 1 + 2 * 3 + 2 * 3


def test_a_label_map_that_may_be_a_mask_is_told(tmp_path: Path) -> None:
    folder = write_tiny_set(tmp_path / "run")
    case = find_case(write_easy_case(tmp_path / "a"))
    image = nibabel.load(case.labels[0])
    mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), case.labels[0])
    _, notes = score_held_out(folder, [case], EASY, "fp32")
    assert any(note.startswith(f"a: {case.labels[0]}: its only label is 1") for note in notes)


def test_what_segmenting_warns_of_is_told(tmp_path: Path) -> None:
    """Such as a fallback that changes the result; here, that the slices lie apart."""
    folder = write_tiny_set(tmp_path / "run")
    case = find_case(write_easy_case(tmp_path / "a"))
    for path in (*case.images.values(), *case.labels):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, 1, 4, 1])), path)
    _, notes = score_held_out(folder, [case], EASY, "fp32")
    (note,) = notes
    assert note.startswith("a: spacing is 1.00 × 1.00 × 4.00 mm")


@pytest.mark.parametrize("damage", ["image", "label", "convention", "grid"])
def test_a_case_that_cannot_be_scored_is_told_and_the_others_are(tmp_path: Path, damage: str) -> None:
    """Not even an error of this program's own keeps the others from being scored."""
    folder = write_tiny_set(tmp_path / "run")
    bad, good = (find_case(write_easy_case(tmp_path / name)) for name in ("a", "b"))
    path = bad.images["t1"] if damage == "image" else bad.labels[0]
    if damage in ("image", "label"):
        path.write_bytes(path.read_bytes()[:50])
    else:
        image = nibabel.load(path)
        data = np.asanyarray(image.dataobj)
        data = np.where(data == 4, 3, data) if damage == "convention" else data[:-1]
        nibabel.save(nibabel.Nifti1Image(data, image.affine), path)
    scores, (note,) = score_held_out(folder, [bad, good], EASY, "fp32")
    assert [score.case_id for score in scores] == ["b"]
    assert note.startswith("a: not scored: ")
    assert path.name in note
    assert (folder / "test" / "scores.csv").read_text().count("\n") == 1 + 3 + 2 * 3


def test_an_error_that_nobody_foresaw_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_set(tmp_path / "run")
    monkeypatch.setattr(held_out, "segment_case", Mock(side_effect=ZeroDivisionError("division by zero")))
    cases = [find_case(write_easy_case(tmp_path / "a"))]
    assert score_held_out(folder, cases, EASY, "fp32") == ([], ["a: not scored: ZeroDivisionError: division by zero"])


def test_nobody_to_score(tmp_path: Path) -> None:
    folder = write_tiny_set(tmp_path / "run")
    assert score_held_out(folder, [], EASY, "fp32") == ([], [])
    assert not (folder / "test" / "scores.csv").exists()

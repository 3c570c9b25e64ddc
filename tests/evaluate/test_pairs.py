"""Pairing of files in every layout, scores of a hand-made case, averages, and what is written out."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.data.labels import CONVENTIONS, LabelConvention, Region
from lowmem_brats.data.nifti import write_volume
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate.metrics import RegionScore
from lowmem_brats.evaluate.pairs import (
    PatientScores,
    evaluate_pairs,
    pair_files,
    summarise,
    to_csv,
    to_json,
)

BRATS2020, BRATS2023 = CONVENTIONS["brats2020"], CONVENTIONS["brats2023"]


def touch(folder: Path, *names: str) -> Path:
    """Make empty files; pairing never opens them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return folder


def row(*labels: int) -> npt.NDArray[np.uint8]:
    return np.array(labels, np.uint8).reshape(-1, 1, 1)


def two_patients() -> list[PatientScores]:
    first, second = RegionScore(0.5, 2.0, 0.25, 1.0), RegionScore(1.0, 0.0, 0.75, 1.0)
    return [PatientScores(name, dict.fromkeys(Region, score)) for name, score in (("A", first), ("B", second))]


# --- pairing ---


def test_two_files_are_one_pair_named_by_the_reference(tmp_path: Path) -> None:
    touch(tmp_path, "result.nii.gz", "BraTS20_Training_001_seg.nii")
    pairs = pair_files(tmp_path / "result.nii.gz", tmp_path / "BraTS20_Training_001_seg.nii")
    assert pairs == [
        ("BraTS20_Training_001", tmp_path / "result.nii.gz", tmp_path / "BraTS20_Training_001_seg.nii"),
    ]


LAYOUTS = {
    "flat": ("B.nii.gz", "A.nii"),
    "flat, named seg": ("B_seg.nii.gz", "A-SEG.NII.GZ"),
    "flat, named segm": ("B_Segm.nii.gz", "A.segm.nii"),
    "flat, beside modality files": ("B_seg.nii.gz", "A_seg.nii.gz", "A_t1.nii.gz", "A_flair.nii.gz", "B_t1ce.nii.gz"),
    "case folders": ("A/A_seg.nii.gz", "B/B-seg.nii"),
    "case folders with modality files": ("A/A_seg.nii.gz", "A/A_t1.nii.gz", "B/B_seg.nii.gz", "B/B_t2.nii.gz"),
    "case folder with another name inside": ("A/W39_1998.09.19_Segm.nii", "A/A_t1.nii", "B/seg.nii.gz"),
    "flat and case folders": ("A.nii.gz", "B/B_seg.nii.gz"),
    "with files that do not count": ("A.nii", "B.nii", "._A.nii", "scores.csv", ".cache/x_seg.nii", "plots/p.png"),
}


@pytest.mark.parametrize(("predicted", "reference"), [*pairwise([*LAYOUTS, next(iter(LAYOUTS))])])
def test_folders_are_paired_by_case_id(tmp_path: Path, predicted: str, reference: str) -> None:
    predictions = touch(tmp_path / "predictions", *LAYOUTS[predicted])
    references = touch(tmp_path / "references", *LAYOUTS[reference])
    pairs = pair_files(predictions, references)
    assert [case_id for case_id, _, _ in pairs] == ["A", "B"]
    for case_id, predicted_path, reference_path in pairs:
        for path, root in ((predicted_path, predictions), (reference_path, references)):
            parts = path.relative_to(root).parts
            assert parts[0].startswith(case_id)
            assert "_t" not in path.name


def test_misnamed_label_of_brats2020(tmp_path: Path) -> None:
    case = "BraTS20_Training_355"
    predictions = touch(tmp_path / "predictions", f"{case}.nii.gz")
    references = touch(tmp_path / "data", f"{case}/W39_1998.09.19_Segm.nii", f"{case}/{case}_t1.nii")
    assert pair_files(predictions, references) == [
        (case, predictions / f"{case}.nii.gz", references / case / "W39_1998.09.19_Segm.nii")
    ]


def test_missing_path(tmp_path: Path) -> None:
    touch(tmp_path, "A.nii")
    with pytest.raises(InputError, match=r"B\.nii: no such file or folder"):
        pair_files(tmp_path / "A.nii", tmp_path / "B.nii")


@pytest.mark.parametrize("swap", [False, True])
def test_file_against_folder(tmp_path: Path, swap: bool) -> None:
    file, folder = touch(tmp_path, "A.nii") / "A.nii", touch(tmp_path / "references", "A.nii")
    with pytest.raises(InputError, match=r"A\.nii: a file, against the folder .*references"):
        pair_files(*((folder, file) if swap else (file, folder)))


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("A/A_t1.nii.gz",)])
def test_folder_without_label_maps(tmp_path: Path, names: tuple[str, ...]) -> None:
    empty, full = touch(tmp_path / "empty", *names), touch(tmp_path / "full", "A.nii")
    with pytest.raises(InputError, match="empty: no label map"):
        pair_files(empty, full)
    with pytest.raises(InputError, match="empty: no label map"):
        pair_files(full, empty)


def test_every_case_without_partner_is_named_at_once(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "predictions", "A.nii", "B.nii", "D.nii")
    references = touch(tmp_path / "references", "B.nii", "E.nii", "C.nii")
    with pytest.raises(InputError) as caught:
        pair_files(predictions, references)
    assert caught.value.found == "no reference for A, D; no prediction for C, E"


def test_references_without_prediction_are_not_left_out(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "predictions", "A.nii")
    references = touch(tmp_path / "references", "A.nii", "B.nii")
    with pytest.raises(InputError) as caught:
        pair_files(predictions, references)
    assert caught.value.found == "no prediction for B"


@pytest.mark.parametrize(
    "names",
    [("A.nii", "A.nii.gz"), ("A_seg.nii", "A-seg.nii"), ("A.nii", "A/A_seg.nii"), ("A/A_seg.nii", "A/A-new-seg.nii")],
)
def test_two_label_maps_of_one_case(tmp_path: Path, names: tuple[str, str]) -> None:
    predictions, references = touch(tmp_path / "predictions", *names), touch(tmp_path / "references", "A.nii")
    with pytest.raises(InputError, match="two label maps of A: ") as caught:
        pair_files(predictions, references)
    assert all(str(predictions / name) in caught.value.found for name in names)


# --- scoring ---


def write(path: Path, *labels: int, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """Write a row of voxels along X as a label map."""
    write_volume(row(*labels), np.diag([*spacing_mm, 1.0]), path)
    return path


def score(predicted: Path, reference: Path, convention: LabelConvention = BRATS2020) -> PatientScores:
    return evaluate_pairs([("A", predicted, reference)], convention, BRATS2020)[0]


def test_scores_by_hand(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.nii", 4, 4, 1, 2, 2, 0, 0, 0)  # WT 5, TC 3, ET 2 voxels
    predicted = write(tmp_path / "predicted.nii", 3, 1, 1, 2, 0, 2, 0, 0)  # the same tissues, convention of 2023
    scores = score(predicted, reference, BRATS2023)
    assert scores.case_id == "A"
    assert {region: score.dice for region, score in scores.regions.items()} == {
        Region.WT: 8 / 10,
        Region.TC: 6 / 6,
        Region.ET: 2 / 3,
    }
    assert scores.regions[Region.ET].sensitivity == 1 / 2
    assert scores.regions[Region.WT].specificity == 2 / 3


def test_shapes_must_agree(tmp_path: Path) -> None:
    predicted, reference = write(tmp_path / "p.nii", 0, 1), write(tmp_path / "r.nii", 0, 1, 2)
    with pytest.raises(InputError, match=r"p\.nii: shape \(2, 1, 1\); expected the grid of r\.nii, \(3, 1, 1\)"):
        score(predicted, reference)


@pytest.mark.parametrize(("predicted", "reference", "where"), [(3, 1, "p.nii"), (1, 3, "r.nii")])
def test_unknown_labels_say_in_which_file(tmp_path: Path, predicted: int, reference: int, where: str) -> None:
    paths = write(tmp_path / "p.nii", predicted), write(tmp_path / "r.nii", reference)
    with pytest.raises(InputError, match=r"unknown label 3") as caught:
        score(*paths)
    assert Path(caught.value.where).name == where


def test_pairs_are_scored_in_mm_and_progress_is_reported(tmp_path: Path) -> None:
    stored = {"a": (4, 0), "a_ref": (4, 0), "b": (2, 0, 0, 0), "b_ref": (0, 0, 0, 2)}
    paths = {name: write(tmp_path / f"{name}.nii", *v, spacing_mm=(2.0, 1.0, 1.0)) for name, v in stored.items()}
    pairs = [("A", paths["a"], paths["a_ref"]), ("B", paths["b"], paths["b_ref"])]
    progress: list[tuple[int, int]] = []
    scores = evaluate_pairs(pairs, BRATS2020, BRATS2020, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 2), (2, 2)]
    assert [patient.case_id for patient in scores] == ["A", "B"]
    assert scores[0].regions[Region.ET].dice == 1.0
    assert scores[1].regions[Region.WT] == RegionScore(0.0, 6.0, 0.0, 2 / 3)
    assert scores[1].regions[Region.TC] == RegionScore(1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("units", "per_mm"), [("meter", 0.001), ("micron", 1000.0)])
def test_hd95_is_in_mm_whatever_the_files_unit(tmp_path: Path, units: str, per_mm: float) -> None:
    paths = []
    for name, labels, scale, unit in (("p.nii", (2, 0, 0, 0), per_mm, units), ("r.nii", (0, 0, 0, 2), 1.0, "mm")):
        image = nibabel.Nifti1Image(row(*labels), np.diag([2 * scale, scale, scale, 1]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / name)
        paths.append(tmp_path / name)
    assert score(paths[0], paths[1]).regions[Region.WT].hd95_mm == pytest.approx(6)
    assert score(paths[1], paths[0]).regions[Region.WT].hd95_mm == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize("at_fault", ["p.nii", "r.nii"])
def test_contradictory_voxel_sizes_are_refused(tmp_path: Path, at_fault: str) -> None:
    for name in ("p.nii", "r.nii"):
        image = nibabel.Nifti1Image(row(0, 2), np.diag([1.0, 1, 1, 1]))
        image.header["pixdim"][3] = 5 if name == at_fault else 1
        nibabel.save(image, tmp_path / name)
    with pytest.raises(InputError, match=r"1 × 1 × 1 mm by the sform, but 1 × 1 × 5 mm by pixdim") as caught:
        score(tmp_path / "p.nii", tmp_path / "r.nii")
    assert Path(caught.value.where).name == at_fault


def test_what_may_be_wrong_with_a_label_map_is_told(tmp_path: Path) -> None:
    mask, reference = write(tmp_path / "p.nii", 0, 1, 1), write(tmp_path / "r.nii", 0, 1, 2)
    scores = score(mask, reference)
    text = f"{mask}: its only label is 1, necrotic core: a mask of another region would be taken for that"
    assert scores.warnings == (text,)
    (patient,) = json.loads(to_json([scores], summarise([scores])))["patients"]
    assert patient["warnings"] == [text]
    assert score(reference, reference).warnings == ()


def test_grids_must_agree_but_for_rounding(tmp_path: Path) -> None:
    reference = write(tmp_path / "r.nii", 0, 1, 2)
    assert score(write(tmp_path / "p.nii", 0, 1, 2, spacing_mm=(1.01, 1.0, 1.0)), reference)
    with pytest.raises(InputError, match=r"places a corner 1 mm away"):
        score(write(tmp_path / "q.nii", 0, 1, 2, spacing_mm=(1.5, 1.0, 1.0)), reference)


# --- averages and output ---


def test_summary_by_hand() -> None:
    summary = summarise(two_patients())
    assert summary.patients == 2
    for region in Region:
        assert summary.mean[region] == RegionScore(0.75, 1.0, 0.5, 1.0)
        std = summary.std[region]
        assert std.dice == pytest.approx(0.5**0.5 / 2)
        assert std.hd95_mm == pytest.approx(2**0.5)
        assert std.specificity == 0.0


def test_summary_of_one_patient_has_no_spread() -> None:
    scores = two_patients()[:1]
    summary = summarise(scores)
    assert summary.mean == scores[0].regions
    assert summary.std == dict.fromkeys(Region, RegionScore(0.0, 0.0, 0.0, 0.0))


def test_csv_round_trip() -> None:
    scores = two_patients()
    summary = summarise(scores)
    rows = list(csv.DictReader(io.StringIO(to_csv(scores, summary))))
    assert [(r["case"], r["region"]) for r in rows] == [
        (case, region) for case in ("A", "B", "mean", "std") for region in ("wt", "tc", "et")
    ]
    groups = {"A": scores[0].regions, "B": scores[1].regions, "mean": summary.mean, "std": summary.std}
    for read in rows:
        measures = {name: float(value) for name, value in read.items() if name not in ("case", "region")}
        assert RegionScore(**measures) == groups[read["case"]][Region(read["region"])]


def test_json_round_trip() -> None:
    scores = two_patients()
    summary = summarise(scores)
    content = json.loads(to_json(scores, summary))
    assert [patient["case"] for patient in content["patients"]] == ["A", "B"]
    first = content["patients"][0]["regions"]
    assert {Region(name): RegionScore(**score) for name, score in first.items()} == scores[0].regions
    assert content["summary"]["patients"] == 2
    for name, expected in (("mean", summary.mean), ("std", summary.std)):
        read = content["summary"][name]
        assert {Region(region): RegionScore(**score) for region, score in read.items()} == expected

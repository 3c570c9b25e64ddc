"""What a training would find out after hours it finds out before its first step."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from easy_cases import EASY, TINY, easy_depth, store_slices, write_easy_data

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.data.nifti import read_label, write_label_map
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.errors import InputError
from lowmem_brats.train.data import PARTS, TrainingData, check_regions, copies, prepare_data
from lowmem_brats.train.report import TrainReport


def load(
    data: Path, work: Path, config: TrainConfig = EASY, stored: TrainReport | None = None
) -> tuple[TrainingData, list[str]]:
    """The data of a training, and its notes."""
    notes: list[str] = []
    cases, _ = read_cases(data)
    return prepare_data(cases, stored, config, work / "cache", False, lambda done, total: None, notes.append), notes


def parts_of(found: TrainingData) -> dict[str, str]:
    """Case → the part that it is in."""
    return {case.case_id: name for name in PARTS for case in getattr(found, name)}


def report_of(found: TrainingData, config: TrainConfig = EASY) -> TrainReport:
    """The report of a training that began with these data."""
    lists = ([case.case_id for case in getattr(found, name)] for name in PARTS)
    return TrainReport(config, {}, "cpu", *lists, patients=found.patients, checksums=found.checksums)  # type: ignore[arg-type]


# Patients


def test_every_case_is_prepared_and_told_apart(tmp_path: Path) -> None:
    found, notes = load(write_easy_data(tmp_path / "data"), tmp_path)
    assert notes == []
    assert sorted(parts_of(found).values()) == ["test", "training", "training", "training", "validation"]
    assert found.patients == {f"easy_{n}": f"easy_{n}" for n in range(5)}
    assert len(set(found.checksums.values())) == 5


@pytest.mark.parametrize("how", ["copied", "packed anew", "labelled anew", "one image kept"])
def test_a_case_that_was_copied_is_the_same_patient(tmp_path: Path, how: str) -> None:
    data = write_easy_data(tmp_path / "data", 9)
    shutil.rmtree(data / "easy_8")
    (data / "easy_8").mkdir()
    for path in (data / "easy_0").iterdir():
        other = data / "easy_8" / path.name.replace("easy_0", "easy_8")
        content = path.read_bytes()
        if how == "packed anew" or (how == "labelled anew" and "seg" in path.name):
            voxels = bytearray(gzip.decompress(content))
            content = gzip.compress(voxels if "seg" not in path.name else voxels[:-1600] + bytes(1600), 1)
        if how == "one image kept" and "flair" not in path.name and "seg" not in path.name:
            content = (data / "easy_1" / path.name.replace("easy_0", "easy_1")).read_bytes()
        other.write_bytes(content)
    found, notes = load(data, tmp_path)
    pairs = [("easy_0", "easy_8")] + ([("easy_1", "easy_8")] if how == "one image kept" else [])
    assert notes == [f"{a}, {b} show the same images: they are taken for one patient" for a, b in pairs]
    assert len({found.patients[name] for pair in pairs for name in pair}) == 1
    for seed in range(5):
        parts = parts_of(load(data, tmp_path, replace(EASY, seed=seed))[0])
        assert len({parts[name] for pair in pairs for name in pair}) == 1


def test_all_scans_of_a_copied_patient_stay_together(tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "data", 6)
    for number, name in enumerate(("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-2_ses-2")):
        (data / f"easy_{number}").rename(data / name)
        for path in (data / name).iterdir():
            path.rename(path.with_name(path.name.replace(f"easy_{number}", name)))
    for path in (data / "sub-1_ses-1").iterdir():
        shutil.copy(path, data / "sub-2_ses-2" / path.name.replace("sub-1_ses-1", "sub-2_ses-2"))
    found, (note,) = load(data, tmp_path)
    assert note.startswith("sub-1_ses-1, sub-2_ses-2 show the same images")
    assert {patient for case, patient in found.patients.items() if "sub" in case} == {"sub-1"}
    parts = parts_of(found)
    assert len({parts[case] for case in parts if "sub" in case}) == 1


def test_like_shapes_are_no_copies(tmp_path: Path) -> None:
    rng, depth_ZHW = np.random.default_rng(0), easy_depth()
    slices = [rng.normal(0, 1, (len(depth_ZHW), 4, 20, 20)).astype(np.float16) for _ in range(3)]
    for other in slices[1:]:
        other[:, 3] = 0  # a modality that both lack makes no copy
    cached = [
        store_slices(tmp_path / f"{n}.json", f"{n}", array, np.array(depth_ZHW)) for n, array in enumerate(slices)
    ]
    assert copies(cached) == []
    cached.append(store_slices(tmp_path / "3.json", "3", np.ascontiguousarray(slices[1]), np.zeros_like(depth_ZHW)))
    assert copies(cached) == [["1", "3"]]


def test_a_patient_in_two_parts_of_a_training_that_goes_on_is_told(tmp_path: Path) -> None:
    """It began before its cases' names were understood, or with a copy: the split cannot be changed any more."""
    data = write_easy_data(tmp_path / "data")
    found, _ = load(data, tmp_path)
    stored = report_of(found)
    trained, tested = stored.training_cases[0], stored.test_cases[0]
    for path in (data / trained).iterdir():
        shutil.copy(path, data / tested / path.name.replace(trained, tested))
    again, notes = load(data, tmp_path, stored=stored)
    assert parts_of(again) == parts_of(found)
    assert notes == [
        f"{', '.join(sorted((trained, tested)))} show the same images",
        f"{trained}: in the training and the test part since the training began, so the scores are too good; true ones "
        "need a training begun anew",
    ]


# Cases that cannot be used


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["image", "label", "convention", "grid", "own result"])
def test_what_cannot_be_used_is_known_at_once_whatever_it_is_for(tmp_path: Path, part: str, damage: str) -> None:
    data = write_easy_data(tmp_path / "data", 10)
    parts = parts_of(load(data, tmp_path)[0])
    name = next(case for case in parts if parts[case] == part)
    path = data / name / f"{name}_{'t2' if damage == 'image' else 'seg'}.nii.gz"
    if damage in ("image", "label"):
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "own result":
        write_label_map(read_label(path).data, read_label(path), path)
    else:
        image = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
        voxels = np.where(voxels == 4, 3, voxels) if damage == "convention" else voxels[:-1]
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    found, (note,) = load(data, tmp_path)
    assert note.startswith(f"{name}: left out: ")
    assert path.name in note
    del parts[name]
    assert parts_of(found) == parts, "the others keep their parts"
    with pytest.raises(InputError, match=path.name):
        load(data, tmp_path, replace(EASY, strict=True))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_of_which_nothing_is_left(tmp_path: Path, part: str) -> None:
    data = write_easy_data(tmp_path / "data")
    parts = parts_of(load(data, tmp_path)[0])
    for name in (case for case in parts if parts[case] == part):
        (data / name / f"{name}_t1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=f"none of 1 cases for the {part} part could be used"):
        load(data, tmp_path)


# Regions


def cached(folder: Path, name: str, deepest: int) -> CachedCase:
    """A case that has the regions down to a depth."""
    depth_ZHW = np.minimum(easy_depth(), deepest).astype(np.uint8)
    return store_slices(folder / f"{name}.json", name, np.ones((len(depth_ZHW), 4, 20, 20), np.float16), depth_ZHW)


ONE, THREE = replace(EASY, network=replace(TINY, outputs=3)), EASY
NOBODY = "no validation patient has a slice for {}: it is trained to the end, and its last epoch is kept"
NOTHING = "no training patient has any {}: its network can only learn to find none"
UNTOLD = "no validation patient has any {}: its Dice only tells whether none is found"


@pytest.mark.parametrize(
    ("config", "trained", "validated", "expected"),
    [
        (THREE, [3, 1], [3], []),
        (THREE, [3], [], []),  # nobody to validate on was asked for
        (THREE, [3], [1, 2], [UNTOLD.format("ET")]),
        (THREE, [3], [1], [UNTOLD.format("TC"), NOBODY.format("ET")]),
        (THREE, [3], [0], [UNTOLD.format("WT"), NOBODY.format("TC"), NOBODY.format("ET")]),
        (THREE, [2], [3], [NOTHING.format("ET")]),
        (THREE, [2], [2], [NOTHING.format("ET"), UNTOLD.format("ET")]),
        (replace(THREE, regions=("wt",)), [1], [1], []),
        (ONE, [1], [0], [UNTOLD.format("WT"), NOTHING.format("TC"), UNTOLD.format("TC"), *(
            text.format("ET") for text in (NOTHING, UNTOLD))]),
    ],
)  # fmt: skip
def test_regions_that_nobody_has(
    tmp_path: Path, config: TrainConfig, trained: list[int], validated: list[int], expected: list[str]
) -> None:
    notes: list[str] = []
    training, validation = (
        [cached(tmp_path, f"{name}{n}", deepest) for n, deepest in enumerate(depths)]
        for name, depths in (("t", trained), ("v", validated))
    )
    check_regions(training, validation, config, notes.append)
    assert notes == expected


@pytest.mark.parametrize(("deepest", "regions"), [(1, ("wt", "tc", "et")), (0, ("wt", "tc"))])
def test_no_slice_to_learn_from(tmp_path: Path, deepest: int, regions: tuple[str, ...]) -> None:
    name = "ET" if deepest else "TC"
    with pytest.raises(InputError, match=f"no slice for {name} in 1 case; expected tumours in the training cases"):
        check_regions([cached(tmp_path, "t", deepest)], [], replace(EASY, regions=regions), lambda note: None)

"""`page` writes one file or none, finds the case's reference and tells where it cannot use it; `segment` does too."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pages import Read

from lowmem_brats.cli import main
from lowmem_brats.data.case_files import find_case
from lowmem_brats.segment.result_path import Outputs, reference_of
from lowmem_brats.weights.store import open_set


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def read(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


@pytest.fixture
def case(tmp_path: Path, pristine: Path) -> Path:
    """A case folder with its reference, to be spoilt at will."""
    return Path(shutil.copytree(pristine, tmp_path / "case"))


@pytest.fixture
def reference(case: Path) -> Path:
    return case / "phantom_000_seg.nii.gz"


@pytest.fixture
def seg(reference: Path, tmp_path: Path) -> Path:
    """A label map that is not quite the reference, in a folder of its own."""
    (tmp_path / "out").mkdir()
    image = nibabel.load(reference)
    label = np.roll(np.asarray(image.dataobj, np.uint8), 1, axis=0)
    nibabel.save(nibabel.Nifti1Image(label, image.affine), tmp_path / "out" / "mine.nii.gz")
    return tmp_path / "out" / "mine.nii.gz"


def test_the_page_lies_beside_the_label_map_and_is_kept(case: Path, seg: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "phantom_000.html"
    result = run("page", case, seg)
    assert (result.exit_code, result.output) == (0, f"wrote        {target}\n")
    before = target.read_bytes()
    again = run("page", case, seg)
    assert again.exit_code == 2
    assert "exists already" in again.output
    assert run("page", case, seg, "--overwrite", "-q").output == ""
    assert target.read_bytes() == before
    assert sorted(p.name for p in target.parent.iterdir()) == ["mine.nii.gz", "phantom_000.html"]


def test_the_reference_of_the_case_is_found_or_named(case: Path, seg: Path, reference: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("page", case, seg, "-o", page).exit_code == 0
    rows = read(page).within("td")
    assert [reference.name, seg.name] == [rows[-1], rows[-3]]
    assert "Scores" in read(page).within("caption")
    assert run("page", case, reference, "-o", page, "--overwrite").exit_code == 0
    assert "Scores" not in read(page).within("caption"), "the reference itself, shown alone"
    moved = reference.rename(tmp_path / "elsewhere.nii.gz")
    assert run("page", case, seg, "-o", page, "--overwrite").exit_code == 0
    assert "Scores" not in read(page).within("caption")
    assert run("page", case, seg, "-o", page, "--overwrite", "--reference", moved).exit_code == 0
    assert "Scores" in read(page).within("caption")


def test_a_reference_that_cannot_be_compared_is_told(case: Path, seg: Path, reference: Path, tmp_path: Path) -> None:
    image = nibabel.load(reference)
    label = np.asarray(image.dataobj, np.uint8)
    label[label == 4] = 3
    nibabel.save(nibabel.Nifti1Image(label, image.affine), reference)
    page = tmp_path / "page.html"
    result = run("page", case, seg, "-o", page)
    assert result.exit_code == 0
    assert "warning: the page does not show the reference: " in result.stderr
    assert "unknown label 3" in read(page).within("li")[0]
    fails = run("page", case, seg, "-o", page, "--overwrite", "--reference", reference)
    assert fails.exit_code == 2
    assert "unknown label 3" in fails.output
    result = run("page", case, seg, "-o", page, "--overwrite", "--reference-labels", "brats2023")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Scores" in read(page).within("caption")


def test_nothing_is_left_where_it_fails(case: Path, seg: Path, reference: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), other)
    for arguments, told in (
        ((case, other), "expected the grid of"),
        ((case, tmp_path / "none.nii.gz"), "does not exist"),
        ((case, seg, "-o", reference), "is an input of the same command"),
        ((case, seg, "-o", tmp_path / "none" / "page.html"), "is not a folder"),
        ((case, seg, "--labels", "brats2023"), "Pass --labels brats2020"),
    ):
        result = run("page", *arguments)
        assert result.exit_code == 2, arguments
        assert told in result.output
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".html" or path.name.startswith(".")]


def test_a_person_s_label_map_is_the_reference(case: Path, reference: Path, tiny: Path, tmp_path: Path) -> None:
    files = find_case(case)
    assert reference_of(files, tmp_path / "x.nii.gz") == reference
    assert reference_of(files, reference) is None
    shutil.copy(reference, case / "phantom_000-seg.nii.gz")
    assert reference_of(find_case(case), tmp_path / "x.nii.gz") is None, "which of two?"
    reference.unlink()
    (case / "phantom_000-seg.nii.gz").unlink()
    assert run("segment", case, "--weights", tiny, "--no-preview", "--no-page", "--device", "cpu").exit_code == 0
    assert reference_of(find_case(case), tmp_path / "x.nii.gz") is None, "our own result"


def test_outputs_that_are_wanted() -> None:
    label_map = Path("out") / "seg.nii"
    page, picture = Path("out") / "a.html", Path("out") / "a_preview.png"
    assert Outputs.beside(label_map, "a", preview=True, page=True).paths == [label_map, picture, page]
    assert Outputs.beside(label_map, "a", preview=False, page=True).paths == [label_map, page]
    assert Outputs.beside(label_map, "a", preview=False, page=False).paths == [label_map]


def test_segment_writes_the_page_with_its_report(case: Path, reference: Path, tiny: Path, tmp_path: Path) -> None:
    options = ("--weights", tiny, "--device", "cpu", "--report", tmp_path / "run.json")
    result = run("segment", case, "-o", tmp_path / "new", *options)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "new" / "phantom_000.html") in result.output
    page = read(tmp_path / "new" / "phantom_000.html")
    (entry,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    facts = page.within("td")
    for file in open_set(str(tiny)).files:
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() in facts
    assert f"{sum(entry['seconds'].values()):.2f} = " in " ".join(facts)
    for text in ("phantom_000_seg.nii.gz", reference.name, "brats2020", entry["versions"]["torch"]):
        assert text in facts
    for name, count in entry["slices"].items():
        assert f"slices, {name.upper()}" in page.within("th")
        assert f"{count['run']} run, {count['skipped']} skipped" in facts
    assert [text for text in page.within("li") if text in entry["warnings"]] == entry["warnings"]
    label = np.asarray(nibabel.load(tmp_path / "new" / "phantom_000_seg.nii.gz").dataobj)
    assert (page.volume("found") != 0).sum() == (label != 0).sum()
    assert (page.volume("reference") != 0).sum() == (np.asarray(nibabel.load(reference).dataobj) != 0).sum()


def test_segment_tells_of_a_reference_that_it_does_not_show(
    case: Path, reference: Path, tiny: Path, tmp_path: Path
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 9, np.uint8), np.eye(4)), reference)
    options = ("--weights", tiny, "--device", "cpu", "--report", tmp_path / "run.json", "-q")
    result = run("segment", case, "-o", tmp_path / "new", *options)
    assert result.exit_code == 0
    assert "phantom_000: the page does not show the reference: " in result.stderr
    (entry,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert entry["warnings"][-1] in read(tmp_path / "new" / "phantom_000.html").within("li")


def test_an_existing_page_is_found_before_any_work(case: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "phantom_000.html").write_text("mine")
    options = ("segment", case, "--weights", tiny, "--device", "cpu", "-o", tmp_path / "new")
    result = run(*options)
    assert result.exit_code == 2
    assert "phantom_000.html: exists already" in result.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["phantom_000.html"]
    assert run(*options, "--no-page", "--no-preview").exit_code == 0
    assert (tmp_path / "new" / "phantom_000.html").read_text() == "mine"

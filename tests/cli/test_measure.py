"""`measure` and `compare` as a user meets them, and the measurements in `segment`'s report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lowmem_brats.api import measure_label_map
from lowmem_brats.cli import console, main
from lowmem_brats.data.nifti import write_volume
from lowmem_brats.measure.label_map import Measurements
from lowmem_brats.measure.lesions import Lesion

AFFINE = np.diag([-1.0, -1, 1, 1])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def fails(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def write(path: Path, size: int) -> Path:
    """A label map of brats2020 with an enhancing cube."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[5 : 5 + size, 5 : 5 + size, 5 : 5 + size] = 4
    write_volume(label, AFFINE, path)
    return path


def test_measure_shows_and_writes_what_was_measured(tmp_path: Path) -> None:
    paths = write(tmp_path / "A_seg.nii.gz", 20), write(tmp_path / "B.nii.gz", 5)
    result = run("measure", *paths, "--csv", tmp_path / "m.csv", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "A 8.0 8.0 8.0 0.0 0.0 1 1 761" in lines  # 20² + 19²
    assert "B 1, not measurable 6.4 6.4 41 5 7.5 0.1 -7, -7, 7 unknown" in lines  # 5² + 4², and 5² + 4² + 4²
    assert [row["case"] for row in csv.DictReader((tmp_path / "m.csv").read_text().splitlines())] == ["A", "B"]
    assert json.loads((tmp_path / "m.json").read_text())["label_maps"][0]["sum_of_products_mm2"] == pytest.approx(761)
    assert "exists already" in fails("measure", *paths, "--csv", tmp_path / "m.csv")
    assert run("measure", *paths, "-q", "--csv", tmp_path / "m.csv", "--overwrite").stdout == ""


def test_measure_takes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    for name in ("B_seg.nii.gz", "A_seg.nii.gz"):
        write(tmp_path / "maps" / name, 12)
    assert run("measure", tmp_path / "maps", "-q", "--json", tmp_path / "m.json").exit_code == 0
    assert [each["case_id"] for each in json.loads((tmp_path / "m.json").read_text())["label_maps"]] == ["A", "B"]


def test_few_lesions_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 4), np.uint8)
    label[::6, ::6, 1] = 4
    write_volume(label, AFFINE, tmp_path / "specks.nii.gz")
    lines = [line.split() for line in run("measure", tmp_path / "specks.nii.gz").stdout.splitlines()]
    assert ["specks", "44", "more"] in lines


def test_the_images_of_the_case_tell_the_side(pristine: Path) -> None:
    result = run("measure", pristine / "phantom_000_seg.nii.gz", "--case", pristine)
    assert result.exit_code == 0, result.output
    assert "unknown" not in result.stdout
    assert {"left", "right"} & set(result.stdout.split())


def test_what_measure_and_compare_refuse(pristine: Path, tmp_path: Path) -> None:
    first, second = write(tmp_path / "A.nii.gz", 5), write(tmp_path / "B.nii.gz", 5)
    assert "2 label maps; expected one label map" in fails("measure", first, second, "--case", pristine)
    assert "expected the grid of" in fails("measure", first, "--case", pristine)
    assert "does not exist" in fails("measure", tmp_path / "no.nii.gz")
    assert "unknown label 4" in fails("measure", first, "--labels", "brats2023")
    assert "is an input" in fails("compare", first, second, "--json", first, "--overwrite")
    (tmp_path / "folder").mkdir()
    assert "no label map" in fails("measure", tmp_path / "folder")
    assert "a folder" in fails("compare", first, tmp_path / "folder")


def test_measure_tells_what_may_be_wrong_with_a_label_map(tmp_path: Path) -> None:
    write_volume(np.ones((5, 5, 5), np.uint8), AFFINE, tmp_path / "mask.nii.gz")
    for words in (["measure", tmp_path / "mask.nii.gz"], ["compare", *[tmp_path / "mask.nii.gz"] * 2]):
        assert f"warning: {tmp_path / 'mask.nii.gz'}: its only label is 1" in run(*words, "-q").stderr


def test_compare_says_what_changed(tmp_path: Path) -> None:
    before, after = write(tmp_path / "before.nii.gz", 20), write(tmp_path / "after.nii.gz", 12)
    result = run("compare", before, after, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["ET,", "mL", "8.0", "1.7", "-6.3", "-78.4"] in lines
    assert ["oedema,", "mL", "0.0", "0.0", "+0.0"] in lines
    assert ["sum", "of", "products,", "mm²", "761", "265", "-496", "-65.2"] in lines
    assert "sum of products: at or below -50 %, RANO's threshold of a partial response" in result.stdout
    assert "not a diagnosis" in result.stdout
    assert json.loads((tmp_path / "c.json").read_text())["changes"]["et"]["after"] == pytest.approx(1.728)
    assert "+187.2" in run("compare", after, before).stdout


def test_segment_reports_the_measurements(pristine: Path, tiny: Path, tmp_path: Path) -> None:
    case = shutil.copytree(pristine, tmp_path / "case", ignore=shutil.ignore_patterns("*_seg*"))
    report = tmp_path / "report.json"
    result = run("segment", case, "--weights", tiny, "--device", "cpu", "--no-preview", "--report", report)
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    (entry,) = told.get("cases", [told])
    measured = measure_label_map(case / "phantom_000_seg.nii.gz")
    assert entry["measurements"]["volumes_ml"] == measured.volumes_ml
    found = [{**lesion, "side": "unknown"} for lesion in entry["measurements"]["lesions"]]
    assert len(found) == len(measured.lesions)
    assert [lesion["longest_mm"] for lesion in found] == [lesion.longest_mm for lesion in measured.lesions]
    assert entry["seconds"]["measure"] > 0
    assert ("enhancing  " in result.stdout) == (measured.measurable > 0)


def test_one_line_where_a_lesion_is_measurable(capsys: pytest.CaptureFixture[str]) -> None:
    lesion = Lesion(1.0, 23.6, 12.2, 287.9, True, 71, 25.0, (0.0, 0.0, 0.0), "left")
    shown = []
    for lesions in ([], [lesion], [lesion, lesion]):
        with console.out.capture() as capture:
            console.show_target_lesions(Measurements("A", "", {}, 287.9 * len(lesions), lesions))
        shown.append(capture.get())
    assert shown == [
        "",
        "enhancing    24 × 12 mm in slice 71; sum of products 288 mm²\n",
        "enhancing    24 × 12 mm in slice 71, the largest of 2 measurable; sum of products 576 mm²\n",
    ]


def test_a_result_in_memory_and_its_file_are_measured_alike(pristine: Path) -> None:
    path = pristine / "phantom_000_seg.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)
    assert measure_label_map(path).volumes_ml["et"] == pytest.approx((label == 4).sum() / 1000)

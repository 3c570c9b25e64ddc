"""What the commands say where a study is raw, and what `segment` does with a prepared case; without the extra."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lowmem_brats.cli import main
from lowmem_brats.cli.search import Search
from lowmem_brats.data.nifti import read_label
from lowmem_brats.prepare import extra

RECORD = {"native_image": "native/raw.nii.gz", "problems": [], "inputs": {"t1ce": {"checksum": "0"}}}
"""What `segment` reads of prepare.json."""


def test_without_the_extra_prepare_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda module: None)
    shown = CliRunner().invoke(main, ["prepare", str(tmp_path), "-o", str(tmp_path / "case")])
    assert shown.exit_code == 2
    assert "no SimpleITK, dcm2niix, deepbet, pydicom on this machine" in shown.stderr
    assert "pip install 'lowmem-brats[prepare]'" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_segment_of_dicom_files_says_to_prepare_them(tmp_path: Path) -> None:
    series = tmp_path / "study" / "series"
    series.mkdir(parents=True)
    (series / "IM_0001").write_bytes(b"\0" * 128 + b"DICM")
    shown = CliRunner().invoke(main, ["segment", str(tmp_path / "study")])
    assert shown.exit_code == 2
    assert "but DICOM files such as" in shown.stderr
    assert f"lowmem-brats prepare {tmp_path / 'study'} -o CASE; then segment CASE" in shown.stderr
    assert f"lowmem-brats segment {tmp_path / 'study'} --prepare CASE" in shown.stderr


@pytest.fixture
def prepared_case(pristine: Path, tmp_path: Path) -> Path:
    """A folder as `prepare` leaves it; the raw T1ce is the case's own."""
    case = tmp_path / "phantom"
    shutil.copytree(pristine, case)
    next(case.glob("*_seg.nii.gz")).unlink()
    (case / "native").mkdir()
    shutil.copy(next(case.glob("*_t1ce.nii.gz")), case / "native" / "raw.nii.gz")
    (case / "prepare.json").write_text(json.dumps(RECORD))
    return case


def segment(case: Path, tiny: Path, *more: object) -> Any:
    return CliRunner().invoke(main, ["segment", str(case), "--weights", str(tiny), "--no-preview", *map(str, more)])


def test_the_label_map_goes_back_onto_the_raw_t1ce(prepared_case: Path, tiny: Path, tmp_path: Path) -> None:
    shown = segment(prepared_case, tiny, "--report", tmp_path / "report.json")
    assert shown.exit_code == 0, shown.output
    (label_map,) = prepared_case.glob("*_seg.nii.gz")
    (native,) = (prepared_case / "native").glob("*_seg_native.nii.gz")
    assert (read_label(native).data == read_label(label_map).data).all(), "the grids are the same here"
    assert "raw T1ce     necrotic core" in shown.output
    (report,) = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert report["native_millilitres"] == pytest.approx(report["millilitres"])
    assert "not used" not in segment(prepared_case, tiny, "--overwrite").output, "the second time too"


def test_dicom_seg_of_a_case_that_was_not_prepared(pristine: Path, tiny: Path, tmp_path: Path) -> None:
    shown = segment(pristine, tiny, "--dicom-seg", tmp_path, "-o", tmp_path / "out")
    assert shown.exit_code == 2
    assert "was not prepared here" in shown.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_forced_preparation_is_told_again(prepared_case: Path, tiny: Path) -> None:
    (prepared_case / "prepare.json").write_text(json.dumps(RECORD | {"problems": ["t2 does not lie on T1ce"]}))
    shown = segment(prepared_case, tiny)
    assert shown.exit_code == 0, shown.output
    assert "prepared with --force although checks failed" in shown.stderr
    assert "t2 does not lie on T1ce" in shown.stderr


def test_both_in_one_go(prepared_case: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named is for the preparation; the prepared case is then segmented as any other."""
    asked: list[Any] = []

    def make(study: Path, output: Path, search: Search, *_: Any) -> None:
        asked.append((study, output, search.explicit))
        shutil.copytree(prepared_case, output)

    monkeypatch.setattr(importlib.import_module("lowmem_brats.cli.prepare"), "make_case", make)
    study, case = tmp_path / "study", tmp_path / "made"
    shown = segment(study, tiny, "--prepare", case, "--t1ce", "7")
    assert shown.exit_code == 0, shown.output
    assert asked == [(study, case, {"t1ce": Path("7")})]
    assert len(list(case.glob("*_seg.nii.gz"))) == len(list((case / "native").glob("*_seg_native.nii.gz"))) == 1


def test_weights_that_cannot_be_read_are_told_before_a_study_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("prepared first")

    monkeypatch.setattr(importlib.import_module("lowmem_brats.cli.prepare"), "make_case", never)
    shown = segment(tmp_path / "study", tmp_path / "no_weights", "--prepare", tmp_path / "case")
    assert shown.exit_code == 2, shown.output
    assert "no_weights" in shown.stderr


def test_several_studies_are_not_prepared_by_segment(tiny: Path, tmp_path: Path) -> None:
    shown = segment(tmp_path / "one", tiny, tmp_path / "two", "--prepare", tmp_path / "case")
    assert shown.exit_code == 2
    assert "--prepare: 2 studies; expected one. Prepare each with `lowmem-brats prepare`" in shown.stderr

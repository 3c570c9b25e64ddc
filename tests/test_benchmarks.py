"""Benchmarks that need no extra can be imported; no patient of a fold trains the set that segments it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from conftest import WriteCase

from lowmem_brats.data.case_list import read_cases
from lowmem_brats.train.dataset import split_cases

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEED_EXTRAS = {"bench_peers", "bench_prepare", "bench_prepare_dice", "bench_speed", "peers", "plot_results"}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("name", sorted({path.stem for path in BENCHMARKS.glob("*.py")} - NEED_EXTRAS))
def test_benchmarks_use_the_package_as_it_is(name: str) -> None:
    assert callable(importlib.import_module(name).main)


@pytest.mark.parametrize("fold", [1, 2])
def test_no_scan_of_a_validated_patient_is_trained_on(tmp_path: Path, write_case: WriteCase, fold: int) -> None:
    """Neither one of another name, whose patient is in the list, nor one whose name tells the patient."""
    folds = importlib.import_module("bench_folds")
    volumes, slices = tmp_path / "volumes", tmp_path / "slices"
    for name in ("BraTS2021_00001", "BraTS2021_00002"):
        write_case(volumes / name)
    shows = {"BraTS20_Training_007": "BraTS2021_00001", "BraTS20_Training_008": "BraTS2021_00002", "P3": "P3"}
    shows |= {"BraTS2021_00001_2": "", "BraTS2021_00002_2": ""}
    rows = [{"case": str(write_case(slices / name)), "patient": patient} for name, patient in shows.items()]
    listed = tmp_path / "also.json"
    listed.write_text(json.dumps(rows))
    split = split_cases(read_cases(volumes)[0], 0.0, 0.0, (fold, 2), 0)
    trained = folds.training_cases(split, read_cases(listed)[0])
    (validated,), (kept,) = ({case.patient for case in part} for part in (split.validation, split.training))
    assert {case.patient for case in trained} == {kept, "P3"}
    others = {name for name, patient in shows.items() if patient == kept}
    assert {case.case_id for case in trained} == {kept, f"{kept}_2", *others, "P3"}
    again = read_cases(folds.write_list(trained, tmp_path / "work" / "list.json"))[0]
    assert [(case.case_id, case.patient) for case in again] == [(case.case_id, case.patient) for case in trained]
    assert folds.training_cases(split, split.training) == list(split.training), "no case twice"
    assert validated not in {case.patient for case in again}

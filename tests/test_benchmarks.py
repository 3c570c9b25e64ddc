"""Benchmarks that need no extra can be imported; no patient of a fold trains the set that segments it."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WriteCase
from PIL import Image

from lowmem_brats.data.case_list import read_cases
from lowmem_brats.train.dataset import split_cases

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEED_EXTRAS = {
    "bench_import",
    "bench_peers",
    "bench_prepare",
    "bench_prepare_dice",
    "bench_speed",
    "plot_results",
}
IMPORTED_BY_OTHERS = {"bf16_rounding", "peers"}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in BENCHMARKS.glob("*.py")} - NEED_EXTRAS - IMPORTED_BY_OTHERS)
)
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


def test_the_picture_of_budgets_shows_process_allocator_and_budget(tmp_path: Path) -> None:
    """256 MiB of 512 are the process's, 128 the allocator's; a row beyond its budget is named in red."""
    row = {
        "job": "train",
        "network": "a net",
        "budget": "512M",
        "plan": {"predicted_bytes": 2**26},
        "within": False,
        "out_of_memory": False,
        "total_bytes": 2**29,
        "process_bytes": 2**28,
        "reserved_bytes": 2**27,
    }
    rows = [row, row | {"plan": None}, row | {"out_of_memory": True}]
    importlib.import_module("bench_card").draw_budgets(rows, tmp_path / "budgets.png")
    image = Image.open(tmp_path / "budgets.png").convert("RGB")
    middle = [image.getpixel((x, 33)) for x in range(300, 940)]
    assert [middle.count((170, 183, 184)), middle.count((93, 109, 126))] == [160, 157]  # the red line hides three
    name = [image.getpixel((x, y)) for x in range(8, 200) for y in range(22, 44)]
    assert all(red == 255 for red, _, _ in name), "red on white"
    assert any(green < 128 for _, green, _ in name)
    assert image.height == 3 * 22


def test_the_script_for_a_card_is_sound_and_takes_no_longer_than_it_says() -> None:
    script = BENCHMARKS / "on_a_card.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    limits = [int(seconds) for seconds in re.findall(r'^ *part "[^"]+" (\d+)', script.read_text(), re.MULTILINE)]
    assert len(limits) >= 8
    assert sum(limits) < 9 * 60


def test_the_fit_finds_a_line_and_its_interval() -> None:
    """Log-odds of Dice are 0.3 + 0.8 · agreement − 0.4 · volume and noise of a standard deviation of 0.5."""
    module = importlib.import_module("fit_expected")
    rng, rows = np.random.default_rng(0), []
    for number in range(400):
        features = {name: float(rng.normal()) for name in module.FEATURES}
        odds = 0.3 + 0.8 * features["agreement"] - 0.4 * features["volume"] + 0.5 * rng.normal()
        rows.append({"fold": str(number % 5), "dice": 1 / (1 + np.exp(-odds)), **features})
    model = module.fit(rows)
    assert model["intercept"] == pytest.approx(0.3, abs=0.06)
    assert model["slopes"] == pytest.approx({"agreement": 0.8, "volume": -0.4, "share": 0.0}, abs=0.06)
    assert model["interval"] == pytest.approx([-0.64, 0.64], abs=0.1)  # 1.28 standard deviations
    judged = module.judge(rows)
    assert judged["coverage"] == pytest.approx(0.8, abs=0.05)
    assert judged["mean_error"] < 0.6 * judged["mean_error_of_the_mean"]
    assert judged["spearman"] > 0.8
    assert judged["auc_below_0.7"] > 0.85


@pytest.mark.parametrize("biased", [False, True])
def test_bf16_by_rounding_is_bf16(biased: bool) -> None:
    rounding = importlib.import_module("bf16_rounding").Bf16ByRounding()
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(3, 5, 3, stride=2, padding=1, bias=biased)
    images = torch.randn(2, 3, 8, 7, 6, requires_grad=True)
    found = []
    for mode in (contextlib.nullcontext(), rounding):
        with mode, torch.autocast("cpu", torch.bfloat16):
            maps = layer(images)
        found.append([maps, *torch.autograd.grad(maps.float().square().sum(), [images, *layer.parameters()])])
    for native, rounded in zip(*found, strict=True):
        assert rounded.dtype == native.dtype
        assert torch.allclose(rounded.float(), native.float(), rtol=2**-7, atol=2**-7 * native.abs().max().item())
    with rounding:
        assert torch.equal(layer(images), torch.nn.functional.conv3d(images, layer.weight, layer.bias, 2, 1))

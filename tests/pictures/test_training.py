"""The pictures of a training are drawn from its report and its epochs, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from easy_cases import EASY
from PIL import Image

from lowmem_brats.pictures import curves
from lowmem_brats.pictures.training import draw_curves, draw_examples, panels_of
from lowmem_brats.train.report import NetworkReport, TrainReport
from lowmem_brats.train.state import Epoch
from lowmem_brats.train.validate import Example


def epoch(network: str = "wt", dice: float = 0.5) -> Epoch:
    """An epoch of ten steps."""
    return Epoch(network, 1, 10, 10.0, 0, 0, 1.0, 0.4, {region: {"a": dice} for region in network.split()})


def report(network: str, *epochs: Epoch) -> TrainReport:
    """A report of one network, which fell back once."""
    found = TrainReport(EASY, {}, "cpu", ["a"], ["b"], ["c"])
    found.networks = {network: NetworkReport([*epochs], [(10, 0.4)], [(7, "fp32 for 4 steps: trouble")], {})}
    return found


def test_panels_of_one_network_of_three_regions() -> None:
    losses, scores = panels_of(report("wt tc et", epoch("wt tc et")))
    assert (losses.name, losses.lines, losses.marks) == ("WT TC ET", {"loss": [(10, 0.4)]}, [(7.0, "fp32 for 4 steps")])
    assert scores.name == "WT TC ET validation Dice"
    assert scores.lines == {key: [(10.0, 0.5)] for key in ("mean", "WT", "TC", "ET")}


def test_panels_without_validation() -> None:
    (_, scores) = panels_of(report("wt", replace(epoch(), validation_dice={"wt": {}})))
    assert scores.lines == {"mean": []}


def test_both_are_written_as_png(tmp_path: Path) -> None:
    mask_HW = np.zeros((8, 8), bool)
    example = Example("a", np.zeros((4, 8, 8), np.float32), mask_HW, mask_HW, 0, 0.5)
    draw_curves(tmp_path / "curves.png", report("wt", epoch()))
    draw_examples(tmp_path / "examples.png", epoch(), [example])
    for name in ("curves", "examples"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100


def test_titles_name_the_run_and_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    for name in ("draw_curves", "draw_examples"):
        monkeypatch.setattr(curves, name, lambda _, title: titles.append(title) or Image.new("RGB", (1, 1)))
    (tmp_path / "mine").mkdir()
    draw_curves(tmp_path / "mine" / "curves.png", report("wt", epoch()))
    draw_examples(tmp_path / "mine" / "examples.png", epoch(), [])
    assert titles == ["mine: training", "WT, epoch 1, mean validation Dice 0.500"]

"""A run folder holds what a person looks at and a later run goes on from, and touches nothing else."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from easy_cases import EASY, TINY

from lowmem_brats import run_folder
from lowmem_brats.config import TrainConfig
from lowmem_brats.errors import InputError
from lowmem_brats.figures import Example
from lowmem_brats.fit import Epoch
from lowmem_brats.run_folder import MAY_CHANGE, NetworkReport, RunFolder, TrainReport, check_resumable, read_run
from lowmem_brats.validate import Validation


def epoch(number: int, network: str = "wt", dice: float = 0.5) -> Epoch:
    """An epoch of ten steps a second each."""
    scores = {region: {"a": dice, "b": dice / 2} for region in network.split()}
    return Epoch(network, number, 10 * number, 10.0 * number, 0, 0, 1.0, 0.4, scores)


def report(config: TrainConfig = EASY, **networks: list[Epoch]) -> TrainReport:
    """A report with epochs of some networks."""
    found = TrainReport(config, {"torch": "2"}, "cpu", ["a"], ["b"], ["c"])
    found.networks = {name: NetworkReport(epochs, [], [], {}) for name, epochs in networks.items()}
    return found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = replace(EASY, fold=(2, 5), regions=("wt", "et"), max_seconds=60.0)
    RunFolder(tmp_path).write_report(report(config))
    assert read_run(tmp_path) == (config, [["a"], ["b"], ["c"]])
    assert not (tmp_path / "metrics.csv").exists(), "no epoch yet"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {}}', '{"config": null}'])
def test_what_is_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        read_run(tmp_path)


def test_an_option_of_another_version_is_told(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report(report())
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"]["colour"] = "red"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="colour"):
        read_run(tmp_path)


def test_only_what_leaves_the_training_the_same_may_change(tmp_path: Path) -> None:
    other = {
        "network": replace(TINY, width=16),
        "regions": ("wt",),
        "precision": "bf16",
        "device": "cuda",
        "vram": "2G",
        "epochs": 99,
        "max_seconds": 1.0,
        "patience": 3,
        "strict": True,
    }
    for key in vars(EASY):
        changed = {key: other[key]} if key in other else {}
        if key in MAY_CHANGE:
            check_resumable(replace(EASY, **changed), EASY, tmp_path)
    for changed in ({"network": other["network"]}, {"seed": 1}, {"loss": "ce"}, {"validation": 0.3}, {"average": 0.9}):
        with pytest.raises(InputError, match=f"resuming .*{next(iter(changed))}"):
            check_resumable(replace(EASY, **changed), EASY, tmp_path)


def test_metrics_have_a_row_per_epoch(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report(report(wt=[epoch(1), epoch(2)], tc=[epoch(1, "tc", 0.8)]))
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "network,number,steps,seconds,skipped_steps,fallback_steps,slices_per_second,loss,validation_dice",
        "wt,1,10,10.0,0,0,1.0,0.4,0.375",
        "wt,2,20,20.0,0,0,1.0,0.4,0.375",
        f"tc,1,10,10.0,0,0,1.0,0.4,{0.75 * 0.8}",
    ]
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_without_validation_none_is_claimed(tmp_path: Path) -> None:
    folder, unvalidated = RunFolder(tmp_path), replace(epoch(1), validation_dice={"wt": {}})
    folder.write_report(report(wt=[unvalidated]))
    folder.add_epoch(unvalidated, Validation({"wt": {}}, [], 0))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "wt,1,10,10.0,0,0,1.0,0.4,"
    assert [panel.lines for panel in run_folder._panels(report(wt=[unvalidated]))[1:]] == [{"mean": []}]
    assert not list((tmp_path / "examples").iterdir())


def test_examples_of_the_first_and_every_tenth_epoch(tmp_path: Path) -> None:
    folder, mask_HW = RunFolder(tmp_path), np.zeros((8, 8), bool)
    example = Example("a", np.zeros((4, 8, 8), np.float32), mask_HW, mask_HW, 0, 0.5)
    for number in range(1, 22):
        folder.add_epoch(epoch(number, "wt tc et"), Validation({}, [example], 0))
    names = sorted(path.name for path in (tmp_path / "examples").iterdir())
    assert names == [f"wt-tc-et-epoch-{number}.png" for number in ("001", "010", "020")]


def test_forgetting_takes_checkpoints_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    mine = ["wt-last.safetensors.bak", "model.safetensors", "wt-last.txt"]
    old = ["wt-last.safetensors", "et-best.safetensors", "wt-tc-et-last.safetensors", "tc.safetensors"]
    for name in [*mine, *old]:
        (tmp_path / "checkpoints" / name).touch()
    folder.forget()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(mine)


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"--tensorboard: tensorboard is not installed.*pip install tensorboard"):
        RunFolder(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "events")

        def add_scalar(self, *scalar: object) -> None:
            seen.append(scalar)  # type: ignore[arg-type]

        def flush(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    RunFolder(tmp_path, tensorboard=True).add_epoch(epoch(2), Validation({}, [], 0))
    assert seen == [("loss/wt", 0.4, 20), ("validation Dice/wt", 0.375, 20)]

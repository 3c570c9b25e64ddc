"""A run folder holds what a person looks at and a later run goes on from, and touches nothing else."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from datetime import date
from itertools import islice
from pathlib import Path

import pytest
from easy_cases import EASY, TINY

from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import InputError
from lowmem_brats.networks import build_network
from lowmem_brats.train.folder import RunFolder, fresh_runs, newest_run
from lowmem_brats.train.report import NetworkReport, TrainReport
from lowmem_brats.train.state import Epoch, History
from lowmem_brats.weights.checkpoint import save_checkpoint
from lowmem_brats.weights.file import save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.store import open_set


def epoch(number: int, network: str = "wt", dice: float = 0.5) -> Epoch:
    """An epoch of ten steps a second each."""
    scores = {region: {"a": dice, "b": dice / 2} for region in network.split()}
    return Epoch(network, number, 10 * number, 10.0 * number, 0, 0, 1.0, 0.4, scores)


def report(config: TrainConfig = EASY, **networks: list[Epoch]) -> TrainReport:
    """A report with epochs of some networks."""
    found = TrainReport(config, {"torch": "2"}, "cpu", ["a"], ["b"], ["c"])
    found.networks = {name: NetworkReport(epochs, [], [], {}) for name, epochs in networks.items()}
    return found


def test_metrics_have_a_row_per_epoch(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_metrics(report(wt=[epoch(1), epoch(2)], tc=[epoch(1, "tc", 0.8)]))
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "network,number,steps,seconds,skipped_steps,fallback_steps,slices_per_second,loss,validation_dice",
        "wt,1,10,10.0,0,0,1.0,0.4,0.375",
        "wt,2,20,20.0,0,0,1.0,0.4,0.375",
        f"tc,1,10,10.0,0,0,1.0,0.4,{0.75 * 0.8}",
    ]


def test_without_validation_none_is_claimed(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_metrics(report(wt=[replace(epoch(1), validation_dice={"wt": {}})]))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "wt,1,10,10.0,0,0,1.0,0.4,"


def test_examples_of_the_first_and_every_tenth_epoch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    paths = filter(None, (folder.examples(epoch(number, "wt tc et")) for number in range(1, 22)))
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names == [f"examples/wt-tc-et-epoch-{number}.png" for number in ("001", "010", "020")]


@pytest.mark.parametrize("change", [{"epochs": None}, {"colour": 1}, None])
def test_a_checkpoint_of_other_contents_is_of_another_version(tmp_path: Path, change: dict[str, object] | None) -> None:
    """Those of this version must not raise, those with a field more or less must not give a traceback."""
    folder, history = RunFolder(tmp_path), asdict(History())
    path = tmp_path / "checkpoints" / "wt-last.safetensors"
    save_checkpoint(path, {}, {"history": history})
    folder.check("wt")
    for key, value in (change or {}).items():
        history |= {key: value}
        if value is None:
            del history[key]
    save_checkpoint(path, {}, {"history": history} if change else {})
    with pytest.raises(InputError, match=r"wt-last\.safetensors: written by another version"):
        folder.check("wt")


def test_forgetting_takes_checkpoints_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    mine = ["wt-last.safetensors.bak", "model.safetensors", "wt-last.txt"]
    old = ["wt-last.safetensors", "et-best.safetensors", "wt-tc-et-last.safetensors", "tc.safetensors"]
    for name in [*mine, *old]:
        (tmp_path / "checkpoints" / name).touch()
    folder.forget()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(mine)


def weights(folder: Path, name: str, regions: tuple[Region, ...], held_out: str, network: NetworkConfig = TINY) -> Path:
    """Write untrained weights of some regions to `folder/name`."""
    network = replace(network, outputs=len(regions))
    save_network(build_network(network), WeightsFile(folder / name, regions, network, {"held_out": held_out}, {}))
    return folder / name


@pytest.mark.parametrize(
    ("there", "fits"),
    [
        ({"held_out": ""}, False),
        ({"network": replace(TINY, width=16)}, False),
        ({"regions": (Region.WT,)}, False),  # somebody renamed a file
        ({}, True),
    ],
)
def test_a_set_is_of_networks_that_belong_together(tmp_path: Path, there: dict[str, object], fits: bool) -> None:
    told, folder = report(), RunFolder(tmp_path)
    alike = {"held_out": told.held_out}
    weights(tmp_path, "wt.safetensors", (Region.WT,), **alike)
    trained = {Region.TC: weights(tmp_path / "checkpoints", "tc.safetensors", (Region.TC,), **alike)}
    assert folder.missing(trained, told) == ["ET"]
    weights(tmp_path, "et.safetensors", **{"regions": (Region.ET,), **alike, **there})  # type: ignore[arg-type]
    expected = [] if fits else ["ET"]
    assert folder.missing(trained, told) == expected, "known before the training"
    assert folder.install(trained, told) == expected
    assert (tmp_path / "tc.safetensors").exists()
    assert (tmp_path / "index.json").exists() == fits
    if fits:
        assert [file.regions for file in open_set(str(tmp_path)).files] == [(region,) for region in Region]


def test_fresh_runs_hold_no_training(tmp_path: Path) -> None:
    runs, today = tmp_path / "runs", date.today()
    for name in (f"{today}-1", f"{today}-2", "2020-01-01-1"):
        (runs / name).mkdir(parents=True)
    (runs / f"{today}-1" / "run.json").touch()
    assert [path.name for path in islice(fresh_runs(runs), 2)] == [f"{today}-2", f"{today}-3"]
    assert next(iter(fresh_runs(tmp_path / "none"))) == tmp_path / "none" / f"{today}-1"


def test_the_newest_run_was_last_at_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to go on with"):
        newest_run(tmp_path / "runs")
    for seconds, name in ((1, "2026-01-02-1"), (3, "2026-01-01-9"), (3, "2026-01-01-10"), (2, "mine"), (0, "none")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if seconds:
            (folder / "run.json").touch()
            os.utime(folder / "run.json", (seconds, seconds))
    assert newest_run(tmp_path / "runs").name == "2026-01-01-10"

"""Whatever goes wrong in a training, its weights are kept, it is told, and it can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
import torch
from easy_cases import EASY, TINY, write_easy_data

from lowmem_brats.config import TrainConfig
from lowmem_brats.engine.step import Outcome, TrainingStep
from lowmem_brats.errors import InputError
from lowmem_brats.train import folder as run_folder
from lowmem_brats.train import held_out
from lowmem_brats.train import run as train
from lowmem_brats.train.lock import LOCK, hold
from lowmem_brats.train.networks import TrainListener
from lowmem_brats.train.report import TrainReport
from lowmem_brats.train.run import train_set
from lowmem_brats.train.state import Epoch
from lowmem_brats.weights.store import open_set

QUICK = replace(EASY, network=replace(TINY, outputs=3), epochs=1, batch=8)
NAME = "wt tc et"


@pytest.fixture(scope="module")
def easy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases: three to train on, one to validate, one for the test."""
    return write_easy_data(tmp_path_factory.mktemp("easy") / "data")


def run(data: Path, out: Path | None, config: TrainConfig = QUICK, **options: object) -> tuple[TrainReport, list[str]]:
    """A training to its end: its report, and what was on the screen."""
    seen: list[str] = []
    tell = TrainListener(on_note=seen.append, **options.pop("tell", {}))  # type: ignore[arg-type]
    report = train_set(data, out, config, tell, **options)  # type: ignore[arg-type]
    assert report is not None
    if out:
        assert json.loads((out / "run.json").read_text())["notes"] == report.notes, "all that was noted is written"
        assert not (out / LOCK).exists()
    return report, seen


def raising(error: Exception) -> Callable[..., None]:
    return Mock(side_effect=error)


# After the training


@pytest.mark.parametrize(
    "error", [InputError("a", "b", "c", "d"), ZeroDivisionError("oh"), MemoryError(), OSError(28, "full")]
)
def test_a_failing_test_costs_no_weights(
    easy_data: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[bool] = []

    def score(folder: Path, *arguments: object) -> None:
        installed.append((folder / "index.json").exists())
        raise error

    monkeypatch.setattr(held_out, "score_held_out", score)
    report, seen = run(easy_data, tmp_path / "run")
    assert installed == [True]
    assert report.notes == seen
    assert [note.split(": ")[0] for note in seen] == ["the test patients are not scored"]
    assert open_set(str(tmp_path / "run")).name == "run"


def test_a_bad_test_case_costs_not_the_others(easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(easy_data, data)
    config = replace(QUICK, test=0.4)

    def spoil(report: TrainReport) -> None:
        name = report.test_cases[0]  # once it is checked, hours before it is segmented
        (data / name / f"{name}_t1.nii.gz").write_bytes(b"")

    report, (note,) = run(data, tmp_path / "run", config, tell={"on_data": spoil})
    assert note.startswith(f"{report.test_cases[0]}: not scored: ")
    assert report.test.keys() == {"wt", "tc", "et"}


@pytest.mark.parametrize("name", ["draw_curves", "draw_examples", "metrics_csv"])
def test_pictures_that_cannot_be_drawn_are_told_once(
    easy_data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = raising(ValueError("height and width must be > 0"))
    if name == "metrics_csv":
        monkeypatch.setattr(run_folder, name, failing)
    report, seen = run(
        easy_data, tmp_path / "run", replace(QUICK, epochs=2), tell={name: failing} if "draw" in name else {}
    )
    what = "no pictures of epoch 1" if name == "draw_examples" else "metrics.csv and curves.png are not up to date"
    assert seen == report.notes == [f"{what}: ValueError: height and width must be > 0"]
    assert open_set(str(tmp_path / "run")).name == "run"


def test_without_thresholds_the_weights_are_kept(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem_brats.train.loop.best_thresholds", raising(RuntimeError("no room")))
    report, (note,) = run(easy_data, tmp_path / "run")
    assert note == "WT TC ET masks are taken at 0, not where validation Dice is best: RuntimeError: no room"
    assert report.networks[NAME].thresholds == {}
    assert report.test


def test_a_card_that_is_too_small_is_too_small_for_the_next_network_too(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not fitted once is not tried again, and told once."""
    take, sizes = TrainingStep.take, list[int]()

    def cramped(step: TrainingStep, parts: list[tuple[torch.Tensor, torch.Tensor]], *how: object) -> Outcome:
        sizes.append(len(parts[0][0]))
        if len(sizes) <= 3:
            raise torch.OutOfMemoryError("no room")
        return take(step, parts, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingStep, "take", cramped)
    report, notes = run(easy_data, tmp_path / "run", replace(QUICK, network=TINY))
    assert notes == report.notes
    assert [note.removeprefix("the card ran out of memory: from now on ") for note in notes] == [
        "recomputing widest stages",
        "recomputing all stages",
        "4 of 8 slices at once",
    ]
    assert sizes[:4] == [8, 8, 8, 4]
    assert set(sizes[4:]) == {4}
    assert len(report.networks) == 3


def test_the_network_is_off_the_device_when_the_test_is_scored(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = list[str]()
    monkeypatch.setattr("lowmem_brats.train.networks.empty_cache", lambda: order.append("emptied"))
    monkeypatch.setattr(train, "score_test_part", lambda *_: order.append("scored"))
    run(easy_data, tmp_path / "run")
    assert order == ["emptied", "scored"]


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines"])
def test_a_folder_that_no_weights_could_be_read_from_is_refused_first(
    easy_data: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match="a name that weights cannot be read from; expected UTF-8 on one line"):
        train_set(easy_data, tmp_path / name, QUICK)
    assert not list(tmp_path.iterdir())


# On the way


def test_whoever_is_stopped_is_told_how_to_go_on(easy_data: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    out = tmp_path / "my run"

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        train_set(easy_data, out, replace(QUICK, epochs=3), TrainListener(on_note=seen.append, on_epoch=stop))
    assert seen == [
        "the training has stopped; what was learnt is kept, and this goes on: "
        f"lowmem-brats train {easy_data} -o '{out}' --resume"
    ]
    assert not (out / LOCK).exists()
    report, seen = run(easy_data, out, replace(QUICK, epochs=3), resume=True)
    assert seen == ["WT TC ET goes on at step 2"]
    assert len(report.networks[NAME].epochs) == 3


def test_weights_that_cannot_be_installed_wait_for_it(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_index", raising(InputError("index.json", "cannot be written", "", "")))
        with pytest.raises(InputError, match=r"index\.json"):
            train_set(easy_data, tmp_path / "run", QUICK, TrainListener(on_note=seen.append))
    assert "--resume" in seen[-1]
    epochs: list[Epoch] = []
    report, _ = run(easy_data, tmp_path / "run", resume=True, tell={"on_epoch": epochs.append})
    assert epochs == [], "nothing is trained again"
    assert report.test
    assert open_set(str(tmp_path / "run")).name == "run"


def test_a_folder_that_was_moved_is_gone_on_with_where_it_is(easy_data: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", replace(QUICK, epochs=3)

    def move(epoch: Epoch) -> None:
        if epoch.number == 2:
            out.rename(tmp_path / "moved")

    with pytest.raises(InputError, match=r"run\.json: cannot be written \(No such file"):
        train_set(easy_data, out, config, TrainListener(on_epoch=move))
    assert not out.exists()
    report, seen = run(easy_data, tmp_path / "moved", config, resume=True)
    assert seen == ["WT TC ET goes on at step 2"]
    assert open_set(str(tmp_path / "moved")).name == "moved"
    assert report.test


def test_what_was_noted_before_is_kept(easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(easy_data, data)
    (data / "easy_0" / "easy_0_t1.nii.gz").unlink()
    before, _ = run(data, tmp_path / "run", replace(QUICK, allow_missing=("t1",)))
    (warning,) = before.notes
    assert warning.startswith("easy_0: t1 is missing")
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    stored["notes"].insert(0, "the card ran out of memory")  # nothing of the kind happens again
    (tmp_path / "run" / "run.json").write_text(json.dumps(stored))
    path = data / "easy_1" / "easy_1_t2.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj) * np.float32(1.5), image.affine), path)
    monkeypatch.setattr(train, "versions_here", lambda: {**before.versions, "torch": "9.9"})
    after, seen = run(data, tmp_path / "run", replace(QUICK, epochs=2, allow_missing=("t1",)), resume=True)
    changed = [
        "easy_1: not the files that the training began with, or they are prepared in another way",
        f"torch was {before.versions['torch']} when the training began and is 9.9 now",
    ]
    assert seen == [warning, *changed, "WT TC ET goes on at step 2"], "what still holds is said again, and written once"
    assert after.notes == ["the card ran out of memory", *seen]
    assert after.patients == {f"easy_{n}": f"easy_{n}" for n in range(5)}


# Nobody to find, nobody to validate on


def test_an_early_stop_needs_somebody_to_watch(tmp_path: Path) -> None:
    """Of five cases the one to validate on has no core, so ET's network sees none of its slices."""
    data = write_easy_data(tmp_path / "data")
    config = replace(EASY, epochs=4, batch=8, patience=1, schedule="plateau")
    parts: list[TrainReport] = []
    run(data, tmp_path / "first", replace(config, epochs=1, regions=("wt",)), tell={"on_data": parts.append})
    (name,) = parts[0].validation_cases
    path = data / name / f"{name}_seg.nii.gz"
    image = nibabel.load(path)
    edema = np.where(np.asanyarray(image.dataobj) > 0, 2, 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(edema, image.affine), path)
    report, seen = run(data, tmp_path / "run", config)
    assert seen == [
        "no validation patient has any TC: its Dice only tells whether none is found",
        "no validation patient has a slice for ET: it is trained to the end, and its last epoch is kept",
    ]
    epochs = report.networks["et"].epochs
    assert len(epochs) == 4, "patience has nothing to wait for"
    assert [epoch.region_dice for epoch in epochs] == [{}] * 4
    assert report.networks["et"].thresholds == {}
    *_, et = open_set(str(tmp_path / "run")).files
    assert et.metrics == {"validation_dice": {}, "validation_cases": 0, "thresholds": {}}


def test_a_set_to_fine_tune_is_checked_before_anything_is_forgotten(easy_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(easy_data, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="--finetune"):
        train_set(easy_data, out, replace(EASY, finetune=str(out), network=replace(TINY, width=16)))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


# One training at a time


def test_a_second_training_in_the_folder_is_refused(easy_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(easy_data, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with hold(out):
        for resume in (False, True):
            with pytest.raises(InputError, match=f"process {os.getpid()} on .* trains in it"):
                train_set(easy_data, out, QUICK, resume=resume)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_trainings_that_nobody_named_have_a_folder_each(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders: list[Path] = []
    run(easy_data, None, tell={"on_folder": folders.append})
    with hold(Path("runs") / f"{date.today()}-2"):
        run(easy_data, None, tell={"on_folder": folders.append})
    assert folders == [Path("runs") / f"{date.today()}-{number}" for number in (1, 3)]
    assert sorted(path.name for path in Path("runs").iterdir()) == [path.name for path in folders]
    with pytest.raises(InputError):
        train_set(tmp_path / "none", None, QUICK)
    assert len(list(Path("runs").iterdir())) == 2, "what was refused leaves no folder"


ONE_OF_TWO = """
import os, sys
from pathlib import Path
data, out, tests = map(Path, sys.argv[1:])
sys.path[:0] = [str(tests), str(tests / "train")]
from test_mishaps import QUICK
from lowmem_brats.errors import LowmemError
from lowmem_brats.train.run import train_set
try:
    found = f"trained, {train_set(data, out, QUICK) is not None}"
except LowmemError as error:
    found = f"refused, {error.where}"
Path(f"{os.environ['RANK']}.txt").write_text(found)
"""


def test_processes_of_one_training_are_refused_together(easy_data: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(ONE_OF_TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, script, easy_data, out, Path(__file__).parents[1]]
    with hold(out):
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [f"refused, {out}"] * 2


def test_two_nodes_train_one_set(easy_data: Path, tmp_path: Path) -> None:
    """Two torchruns that meet, as docs/training.md starts them on two machines; both write to one run folder."""
    out, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(ONE_OF_TWO)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1"]
    command = [*torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}"]
    command += map(str, (script, easy_data, out, Path(__file__).parents[1]))
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    nodes = [subprocess.Popen(command, env=settings, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        told = [node.communicate(timeout=300)[1] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # torchrun then ends its processes
    assert [node.returncode for node in nodes] == [0, 0], told
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["trained, True", "trained, False"]
    assert json.loads((out / "run.json").read_text())["processes"] == 2


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs signals")
def test_a_training_that_is_told_to_end_ends_in_order(easy_data: Path, tmp_path: Path) -> None:
    """SIGTERM, as a cluster sends it: nothing half-written stays, and what to do is said."""
    options = ["--width", "8", "--epochs", "1000", "--batch", "8", "--device", "cpu", "--validation", "0"]
    command = [sys.executable, "-m", "lowmem_brats", "train", str(easy_data), *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first epoch
        process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"train {easy_data} -o runs/{folder.name} --resume" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob(".partial*"))
    assert not (folder / LOCK).exists()

"""A whole training: it learns an easy task, leaves a run folder and a set, and goes on after it was killed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from easy_cases import EASY, TINY, write_easy_case, write_easy_data
from PIL import Image
from safetensors.torch import load_file

from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import BudgetError, InputError, WeightsError
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.networks.pvt_v2 import B0, PVTv2
from lowmem_brats.pictures.training import draw_curves, draw_examples
from lowmem_brats.train import networks as train_networks
from lowmem_brats.train import run as train
from lowmem_brats.train.networks import TrainListener
from lowmem_brats.train.report import TrainReport, read_run
from lowmem_brats.train.run import train_set
from lowmem_brats.train.state import Epoch
from lowmem_brats.weights.checkpoint import load_checkpoint, save_checkpoint
from lowmem_brats.weights.file import load_network
from lowmem_brats.weights.header import read_header
from lowmem_brats.weights.store import open_set

SHORT = replace(EASY, epochs=2)


@pytest.fixture(scope="module")
def easy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases: three to train on, one to validate, one for the test."""
    return write_easy_data(tmp_path_factory.mktemp("easy") / "data")


@pytest.fixture(scope="module")
def trained(easy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport, list[Epoch]]:
    """A finished training: its folder, its report, and the epochs as they were announced."""
    out, announced = tmp_path_factory.mktemp("out") / "easy", []
    tell = TrainListener(on_epoch=announced.append, draw_curves=draw_curves, draw_examples=draw_examples)
    return out, run(easy_data, out, EASY, tell), announced


def run(data: Path, out: Path, config: TrainConfig, *arguments: object, **options: object) -> TrainReport:
    report = train_set(data, out, config, *arguments, **options)  # type: ignore[arg-type]
    assert report is not None
    return report


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a set."""
    files = open_set(str(folder)).files
    return {f"{file.regions} {k}": v for file in files for k, v in load_network(file).state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two sets hold the same numbers."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# A whole training


def test_an_easy_task_is_learnt(trained: tuple[Path, TrainReport, list[Epoch]]) -> None:
    _, report, _ = trained
    for region in Region:
        epochs = report.networks[region.value].epochs
        assert epochs[-1].loss < 0.2, region
        assert epochs[-1].loss < epochs[0].loss / 2, region
        assert max(epoch.mean_dice for epoch in epochs) > 0.95, region
    assert all(report.test[region.value]["dice"] > 0.95 for region in Region), "scored from NIfTI to NIfTI"


def test_the_set_opens_and_says_how_it_was_made(trained: tuple[Path, TrainReport, list[Epoch]]) -> None:
    out, report, _ = trained
    opened = open_set(str(out))
    assert opened.name == "easy"
    for region, file in zip(Region, opened.files, strict=True):
        assert (file.regions, file.network) == ((region,), TINY)
        best = max(epoch.mean_dice for epoch in report.networks[region.value].epochs)
        thresholds = report.networks[region.value].thresholds
        assert file.metrics == {
            "validation_dice": {region.value: best},
            "validation_cases": 1,
            "thresholds": {region.value: list(thresholds[region.value])},
        }
        assert thresholds[region.value][1] >= round(best, 4)
        assert file.training["training_cases"] == 3
        assert file.training["precision"] == "fp32"
        assert {"lowmem-brats", "torch", "python"} <= set(file.training["versions"])


def test_the_run_folder(trained: tuple[Path, TrainReport, list[Epoch]]) -> None:
    out, report, announced = trained
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    cache = {name for name in names if name.startswith("cache/")}
    assert len(cache) == 5 * 3, "those held out for the test are read and checked at the start too"
    (test,) = report.test_cases
    assert names - cache == {
        *("run.json", "metrics.csv", "curves.png", "index.json"),
        *(f"{region}.safetensors" for region in ("wt", "tc", "et")),
        *(f"checkpoints/{region}-{kind}.safetensors" for region in ("wt", "tc", "et") for kind in ("last", "best")),
        *(f"examples/{region}-epoch-{number}.png" for region in ("wt", "tc", "et") for number in ("001", "010")),
        *(f"test/{test}_seg.nii.gz", "test/scores.csv"),
    }
    for name in names:
        if name.endswith(".png"):
            Image.open(out / name).verify()
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [(row["network"], int(row["number"]), int(row["steps"])) for row in rows] == [
        (region, number, 9 * number) for region in ("wt", "tc", "et") for number in range(1, 11)
    ]
    assert [float(row["validation_dice"]) for row in rows] == [epoch.mean_dice for epoch in announced]


def test_run_json_tells_everything(trained: tuple[Path, TrainReport, list[Epoch]]) -> None:
    out, report, announced = trained
    written = json.loads((out / "run.json").read_text())
    assert written == json.loads(json.dumps(asdict(report)))
    assert written["config"]["network"] == {
        "name": "unet2d",
        "width": 8,
        "depth": 1,
        "norm": "group",
        "outputs": 1,
        "views": 1,
        "context": 0,
        "patch": "",
        "cropped": False,
        "tissues": False,
        "architecture": "",
    }
    assert written["versions"]["torch"] == torch.__version__
    split = written["training_cases"] + written["validation_cases"] + written["test_cases"]
    assert sorted(split) == [f"easy_{n}" for n in range(5)]
    epochs = [epoch for network in report.networks.values() for epoch in network.epochs]
    assert epochs == announced
    assert read_run(out).config == EASY


def test_the_measured_peak_of_a_training_is_the_predicted_one(
    trained: tuple[Path, TrainReport, list[Epoch]],
) -> None:
    _, report, _ = trained
    assert [plan.precision for plan in report.plans] == ["fp32"]
    for network in report.networks.values():
        assert network.peak_bytes == {"fp32": report.plans[0].predicted_bytes}


def test_a_training_with_its_state_in_host_memory_keeps_to_its_plan_and_can_be_resumed_without(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, epochs=1, spatial_dropout=0.2, optimizer="radam", regions=("wt",))
    with monkeypatch.context() as patch:
        patch.setattr(train_networks, "plan_train", partial(train_networks.plan_train, smallest=True))
        report = run(easy_data, tmp_path / "run", config)
    (plan,), (network,) = report.plans, report.networks.values()
    assert plan.state_on_host
    assert network.peak_bytes == {"fp32": plan.predicted_bytes}
    resumed = run(easy_data, tmp_path / "run", replace(config, epochs=2), resume=True)
    assert not resumed.plans[0].state_on_host
    assert len(resumed.networks["wt"].epochs) == 2


def test_without_validation_a_schedule_that_needs_none_stays(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, training = [], train_networks.NetworkTraining
    monkeypatch.setattr(train_networks, "NetworkTraining", lambda *a: seen.append(a[4].schedule) or training(*a))
    config = replace(SHORT, epochs=1, validation=0.0, schedule="restarts", regions=("wt",))
    train_set(easy_data, tmp_path / "run", config)
    assert seen == ["restarts"]


def test_same_seed_same_weights(easy_data: Path, tmp_path: Path) -> None:
    config = replace(SHORT, epochs=1, batch=4, augment=True, seed=3)
    run(easy_data, tmp_path / "one", config)
    torch.rand(5)  # the state that another program part leaves behind
    run(easy_data, tmp_path / "two", config)
    one = weights_of(tmp_path / "one")
    assert same(one, weights_of(tmp_path / "two"))
    run(easy_data, tmp_path / "other", replace(config, seed=4))
    assert not same(one, weights_of(tmp_path / "other"))


def test_progress_covers_reading_every_step_and_the_test(easy_data: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    tell = TrainListener(on_progress=lambda *step: seen.append(step))
    run(easy_data, tmp_path / "out", replace(EASY, epochs=1, batch=9), tell)
    reading = [("reading cases", n, 5) for n in (1, 2, 3, 4, 5)]
    steps = [(f"{region.name} epoch 1", n, 2) for region in Region for n in (1, 2)]
    assert seen == [*reading, *steps, ("test cases", 1, 1)]


# What can be asked for


def test_without_validation_the_last_epoch_is_kept(easy_data: Path, tmp_path: Path) -> None:
    config = replace(EASY, network=replace(TINY, outputs=3, views=3), validation=0.0)
    report = train_set(easy_data, tmp_path / "run", config)
    assert report is not None
    assert (len(report.training_cases), report.validation_cases) == (4, [])
    (network,) = report.networks.values()
    assert [epoch.region_dice for epoch in network.epochs] == [{}] * config.epochs
    (file,) = open_set(str(tmp_path / "run")).files
    assert (file.network.views, file.training["steps"]) == (3, network.epochs[-1].steps)
    assert file.metrics == {"validation_dice": {}, "validation_cases": 0, "thresholds": {}}


def test_three_views_are_planned_validated_and_gone_on_with(tmp_path: Path) -> None:
    for number in range(5):
        write_easy_case(tmp_path / "data" / f"easy_{number}", number, depth=12)
    config = replace(SHORT, network=replace(TINY, outputs=3, views=3), epochs=3, batch=8, augment=True)

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_set(tmp_path / "data", tmp_path / "stopped", config, TrainListener(on_epoch=stop))
    resumed = run(tmp_path / "data", tmp_path / "stopped", config, resume=True)
    whole = run(tmp_path / "data", tmp_path / "whole", config)
    (network,) = whole.networks.values()
    assert [epoch.steps for epoch in network.epochs] == [3 * (12 + 20 + 20) // 8 * n for n in (1, 2, 3)]
    assert [e.validation_dice for e in resumed.networks["wt tc et"].epochs] == [
        e.validation_dice for e in network.epochs
    ]
    assert same(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole"))
    assert network.peak_bytes == {"fp32": whole.plans[0].predicted_bytes}


def test_one_network_for_all_regions(easy_data: Path, tmp_path: Path) -> None:
    config = replace(EASY, network=replace(TINY, outputs=3))
    report = run(easy_data, tmp_path / "out", config)
    assert list(report.networks) == ["wt tc et"]
    assert min(report.test[region.value]["dice"] for region in Region) > 0.9
    (file,) = open_set(str(tmp_path / "out")).files
    assert file.regions == tuple(Region)


@pytest.mark.slow
def test_another_network_trains_and_segments(easy_data: Path, tmp_path: Path) -> None:
    """EMCAD, from an ImageNet-style checkpoint of its encoder, on slices of 20 × 20 padded to its stride."""
    config = NetworkConfig(name="emcad-b0", outputs=3)
    encoder = tmp_path / "pvt_v2_b0.pth"
    torch.manual_seed(5)
    torch.save(PVTv2(B0, channels=3).state_dict(), encoder)
    config = replace(SHORT, epochs=3, batch=4, network=config, learning_rate=4e-3, loss="dice+ce")
    config = replace(config, encoder_weights=str(encoder))
    run(easy_data, tmp_path / "out", replace(config, epochs=1))
    encoder.unlink()  # what it gave is in the checkpoint
    report = run(easy_data, tmp_path / "out", config, resume=True)
    first, *_, last = report.networks["wt tc et"].epochs
    assert last.loss < 0.8 * first.loss
    assert report.test.keys() == {"wt", "tc", "et"}
    (file,) = open_set(str(tmp_path / "out")).files
    assert file.network == config.network
    plan, measured = report.plans[0], report.networks["wt tc et"].peak_bytes["fp32"]
    assert plan.predicted_bytes == measured


def test_encoder_weights_of_another_network(easy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--encoder-weights"):
        run(easy_data, tmp_path / "out", replace(SHORT, encoder_weights="pvt_v2_b0.pth"))
    with pytest.raises(InputError, match="--encoder-weights"):
        replace(SHORT, encoder_weights="pvt_v2_b0.pth", finetune="unet2d")
    config = replace(SHORT, network=NetworkConfig(name="emcad-b0"), encoder_weights=str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match=r"none\.pth"):
        run(easy_data, tmp_path / "out", config)
    assert not (tmp_path / "out" / "run.json").exists()


def test_regions_may_be_trained_one_by_one(easy_data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    out = tmp_path / "out"
    for region, missing in (("et", "WT, TC"), ("wt", "TC"), ("tc", "")):
        report = run(easy_data, out, replace(SHORT, regions=(region,)), TrainListener(on_note=notes.append))
        assert list(report.networks) == [region]
        assert (out / "index.json").exists() == (not missing)
        assert report.notes == ([f"no set to segment with yet: {missing} not trained"] if missing else [])
    assert len(notes) == 2
    assert len(open_set(str(out)).files) == 3
    assert report.test


@pytest.mark.parametrize("change", [{"seed": 1}, {"network": replace(TINY, width=16)}])
def test_networks_of_other_trainings_make_no_set(easy_data: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """Other patients were held out, or they are of another kind: nothing is scored or segmented with them."""
    out = tmp_path / "out"
    run(easy_data, out, replace(SHORT, epochs=1))
    report = run(easy_data, out, replace(SHORT, epochs=1, regions=("tc",), **change))
    assert report.notes == ["no set to segment with yet: WT, ET not trained"]
    assert not report.test
    assert not (out / "index.json").exists()


def test_batch_norm_keeps_to_one_process(easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.parallel, "size", lambda: 2)
    with pytest.raises(InputError, match="batch norm: several processes"):
        run(easy_data, tmp_path / "out", replace(SHORT, network=replace(TINY, norm="batch")))


def test_fine_tuning_starts_from_the_set(
    easy_data: Path, tmp_path: Path, trained: tuple[Path, TrainReport, list[Epoch]]
) -> None:
    config = replace(EASY, epochs=1, learning_rate=1e-12, average=0.0, finetune=str(trained[0]))
    run(easy_data, tmp_path / "out", config)
    old, new = weights_of(trained[0]), weights_of(tmp_path / "out")
    for key in old:
        torch.testing.assert_close(new[key], old[key], rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match=r"--finetune: NetworkConfig.*width=8.*expected NetworkConfig.*width=16"):
        run(easy_data, tmp_path / "wide", replace(config, network=replace(TINY, width=16)))


def test_binary_networks_start_from_their_outputs_of_a_network_of_three(easy_data: Path, tmp_path: Path) -> None:
    plain = replace(TINY, norm="none")
    three = replace(EASY, epochs=2, network=replace(plain, outputs=3), window=32)
    run(easy_data, tmp_path / "three", three)
    same = replace(three, epochs=1, network=plain, learning_rate=1e-12, average=0.0, validation=0.0)
    run(easy_data, tmp_path / "out", replace(same, finetune=str(tmp_path / "three")))
    (one,) = {file.path for file in open_set(str(tmp_path / "three")).files}
    shared = load_file(one)
    files = open_set(str(tmp_path / "out")).files
    assert [file.name for file in files] == ["wt", "tc", "et"]
    for number, file in enumerate(files):
        for key, value in load_file(file.path).items():
            expected = shared[key][number : number + 1] if key.startswith("head") else shared[key]
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


def test_fine_tuning_may_add_neighbours_but_not_take_them_away(
    easy_data: Path, tmp_path: Path, trained: tuple[Path, TrainReport, list[Epoch]]
) -> None:
    seeing = replace(TINY, context=1)
    config = replace(EASY, epochs=1, learning_rate=1e-12, average=0.0, finetune=str(trained[0]), network=seeing)
    run(easy_data, tmp_path / "out", config)
    old, new = weights_of(trained[0]), weights_of(tmp_path / "out")
    for key in old:
        kept = new[key][:, : old[key].shape[1]] if old[key].ndim == 4 else new[key]
        torch.testing.assert_close(kept, old[key], rtol=1e-3, atol=1e-6)
    assert open_set(str(tmp_path / "out")).network == seeing
    with pytest.raises(InputError, match=r"--finetune: .*context=1.*expected .*context=0"):
        run(easy_data, tmp_path / "back", replace(config, network=TINY, finetune=str(tmp_path / "out")))


def test_no_test_share_scores_nothing(easy_data: Path, tmp_path: Path) -> None:
    report = run(easy_data, tmp_path / "out", replace(SHORT, epochs=1, test=0.0))
    assert (report.test_cases, report.test) == ([], {})
    assert len(report.training_cases) == 4
    assert not list((tmp_path / "out").glob("test/*"))


def test_assorted_precision_has_a_plan_for_each_format(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, epochs=1, precision="auto")
    train_precision = train_networks.choose_precision("auto", torch.device("cpu"))
    if train_precision == "fp32":
        pytest.skip("this processor has no half format")
    report = run(easy_data, tmp_path / "out", config)
    assert [plan.precision for plan in report.plans] == ["bf16", "fp32"]
    assert report.plans[0].predicted_bytes < report.plans[1].predicted_bytes
    assert report.notes == []
    report = run(easy_data, tmp_path / "fixed", replace(config, precision="bf16"))
    assert [plan.precision for plan in report.plans] == ["bf16"], "a format that was asked for is kept to"
    plan = train_networks.plan_train

    def only_half_fits(*arguments: object) -> TrainPlan:
        if "fp32" in arguments:
            raise BudgetError("--vram", "little", "more", "Give more.")
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_networks, "plan_train", only_half_fits)
    report = run(easy_data, tmp_path / "tight", config)
    assert [plan.precision for plan in report.plans] == ["bf16"]
    assert report.notes == ["fp32 does not fit in max: training stays in bf16 also when it is unstable"]


# Cases that cannot be used


def test_a_case_that_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "data", 6)
    bad = data / "easy_5" / "easy_5_t1ce.nii.gz"
    bad.write_bytes(bad.read_bytes()[:100])
    config = replace(SHORT, epochs=1, seed=1)
    notes: list[str] = []
    report = run(data, tmp_path / "out", config, TrainListener(on_note=notes.append))
    (note,) = (note for note in notes if "easy_5" in note)
    assert note in report.notes
    assert "left out" in note or "not scored" in note
    assert "easy_5" not in report.training_cases + report.validation_cases
    with pytest.raises(InputError, match="easy_5"):
        run(data, tmp_path / "strict", replace(config, strict=True))


def test_an_unlabelled_case_is_left_out_and_listed(tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "data", 6)
    (data / "easy_0" / "easy_0_seg.nii.gz").unlink()
    report = run(data, tmp_path / "out", replace(SHORT, epochs=1))
    assert any("easy_0" in note and "label map" in note for note in report.notes)
    with pytest.raises(InputError, match="easy_0"):
        run(data, tmp_path / "strict", replace(SHORT, strict=True))


def test_one_case_is_not_enough(tmp_path: Path) -> None:
    write_easy_case(tmp_path / "data" / "easy_0")
    with pytest.raises(InputError, match="labelled patient"):
        train_set(tmp_path / "data", tmp_path / "out", EASY)
    assert not (tmp_path / "out").exists()


# Going on


KILLED = """
import os, signal, sys
from dataclasses import replace
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from easy_cases import EASY
from lowmem_brats.train.run import train_set
from lowmem_brats.train.networks import TrainListener

def die(epoch):
    if (epoch.network, epoch.number) == ("tc", 2):
        os.kill(os.getpid(), signal.SIGKILL)

config = replace(EASY, epochs=3, batch=4, augment=True, modality_dropout=0.3)
train_set(Path(sys.argv[1]), Path(sys.argv[2]), config, TrainListener(on_epoch=die))
"""


def test_a_killed_training_goes_on_to_the_same_end(easy_data: Path, tmp_path: Path) -> None:
    """kill -9 in the second network's second epoch, before its checkpoint: losses and weights come out the same."""
    config = replace(EASY, epochs=3, batch=4, augment=True, modality_dropout=0.3)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(easy_data), str(out), str(Path(__file__).parents[1])]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "index.json").exists()
    seen: list[tuple[str, int]] = []
    tell = TrainListener(on_epoch=lambda epoch: seen.append((epoch.network, epoch.number)))
    resumed = run(easy_data, out, config, tell, resume=True)
    assert seen == [("tc", 2), ("tc", 3), ("et", 1), ("et", 2), ("et", 3)]
    assert [note for note in resumed.notes if "goes on" in note] == ["WT goes on at step 12", "TC goes on at step 4"]
    whole = run(easy_data, tmp_path / "whole", config)
    for name, network in whole.networks.items():
        found = resumed.networks[name]
        assert [tuple(point) for point in found.curve] == network.curve
        assert [epoch.loss for epoch in found.epochs] == [epoch.loss for epoch in network.epochs]
        assert [epoch.validation_dice for epoch in found.epochs] == [e.validation_dice for e in network.epochs]
    assert same(weights_of(out), weights_of(tmp_path / "whole"))


@pytest.fixture
def interrupted(easy_data: Path, tmp_path: Path) -> Iterator[Path]:
    """A training that was stopped after its first epoch."""

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_set(easy_data, tmp_path / "run", EASY, TrainListener(on_epoch=stop))
    return tmp_path / "run"


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 3}, {"loss": "ce"}, {"width": 16}])
def test_another_recipe_is_not_gone_on_with(easy_data: Path, interrupted: Path, change: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in interrupted.rglob("*") if path.is_file()}
    network = replace(TINY, width=change.get("width", TINY.width))
    changed = replace(EASY, network=network, **{key: value for key, value in change.items() if key != "width"})
    with pytest.raises(InputError, match=f"resuming .*{next(iter(change))}.*as it began"):
        train_set(easy_data, interrupted, changed, resume=True)
    assert {path: path.stat().st_mtime_ns for path in interrupted.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_version_is_not_gone_on_with(easy_data: Path, interrupted: Path) -> None:
    """It is told before anything is learnt, and nothing says that going on would help."""
    path, notes = interrupted / "checkpoints" / "wt-last.safetensors", list[str]()
    tensors, state = load_checkpoint(path)
    for changed in ({"epochs": []}, state | {"history": state["history"] | {"colour": "red"}}):
        save_checkpoint(path, tensors, changed)
        with pytest.raises(InputError, match=r"wt-last\.safetensors: written by another version; .* Train anew"):
            train_set(easy_data, interrupted, EASY, TrainListener(on_note=notes.append), resume=True)
    assert notes == []


def test_epochs_and_places_may_change(easy_data: Path, interrupted: Path) -> None:
    report = run(easy_data, interrupted, replace(EASY, epochs=2, vram="50%"), resume=True)
    assert [len(network.epochs) for network in report.networks.values()] == [2, 2, 2]


def test_cases_that_are_gone_or_new(interrupted: Path, tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "more", 7)
    report = run(data, interrupted, replace(EASY, epochs=2), resume=True)
    assert "easy_6" not in report.training_cases + report.validation_cases + report.test_cases
    (tmp_path / "fewer").mkdir()
    for number in range(4):
        (data / f"easy_{number}").rename(tmp_path / "fewer" / f"easy_{number}")
    with pytest.raises(InputError, match=r"--resume: no easy_4"):
        train_set(tmp_path / "fewer", interrupted, EASY, resume=True)


@pytest.mark.parametrize("name", ["run.json", "checkpoints/wt-last.safetensors", "checkpoints/wt-best.safetensors"])
def test_damage_is_told(easy_data: Path, interrupted: Path, name: str) -> None:
    path = interrupted / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{path.name}: cannot be read"):
        train_set(easy_data, interrupted, EASY, resume=True)


def test_a_case_that_was_damaged_meanwhile(interrupted: Path, tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "again")
    path = data / "easy_0" / "easy_0_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"easy_0_t1\.nii\.gz"):
        train_set(data, interrupted, EASY, resume=True)


def test_nothing_to_resume(easy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json: does not exist; expected .* leave out --resume"):
        train_set(easy_data, tmp_path / "new", EASY, resume=True)


def test_a_network_that_does_not_exist_makes_no_folder(easy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="network: 'unet'; expected one of"):
        train_set(easy_data, tmp_path / "new", replace(EASY, network=NetworkConfig(name="unet")))
    assert not (tmp_path / "new").exists()


def test_starting_anew_takes_nothing_from_before(easy_data: Path, interrupted: Path, tmp_path: Path) -> None:
    config = replace(SHORT, seed=9)
    run(easy_data, interrupted, config)
    run(easy_data, tmp_path / "fresh", config)
    assert same(weights_of(interrupted), weights_of(tmp_path / "fresh"))


def test_a_full_disk_is_told_and_loses_no_checkpoint(
    easy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "run", Path.write_bytes
    count = 0

    def full(path: Path, content: bytes) -> int:
        nonlocal count
        count += "-last" in path.name
        if count == 3:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"wt-last\.safetensors: cannot be written \(No space left"):
            train_set(easy_data, out, replace(EASY, epochs=4))
    assert not list(out.rglob("*.partial*"))
    report = run(easy_data, out, replace(EASY, epochs=4), resume=True)
    assert report.notes[0] == "WT goes on at step 18", "the second epoch's checkpoint is whole"
    run(easy_data, tmp_path / "whole", replace(EASY, epochs=4))
    assert same(weights_of(out), weights_of(tmp_path / "whole"))


def test_an_older_set_stays_until_the_new_one_is_whole(easy_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(easy_data, out, replace(SHORT, epochs=1))
    before = weights_of(out)

    def stop(epoch: Epoch) -> None:
        if epoch.network == "et":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_set(easy_data, out, replace(SHORT, epochs=1, seed=1), TrainListener(on_epoch=stop))
    assert same(weights_of(out), before)


def test_weights_beside_the_checkpoints_are_whole(easy_data: Path, interrupted: Path) -> None:
    """What is finished before the end lies beside the checkpoints until the set is complete."""

    def stop(epoch: Epoch) -> None:
        if epoch.network == "tc":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_set(easy_data, interrupted, replace(EASY, epochs=2), TrainListener(on_epoch=stop), resume=True)
    assert read_header(interrupted / "checkpoints" / "wt.safetensors").regions == (Region.WT,)

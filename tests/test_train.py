"""Training learns an easy task, keeps the best epoch, is reproducible, and ends when it should."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowmem_brats import fit, train
from lowmem_brats.config import MODALITIES, NetworkConfig, TrainConfig
from lowmem_brats.dataset import CachedCase
from lowmem_brats.errors import InputError
from lowmem_brats.fit import Epoch, RegionTraining, validate
from lowmem_brats.labels import Region
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.train import train_set
from lowmem_brats.weights import load_network, open_set

TINY = NetworkConfig(width=8, depth=1)
EASY = TrainConfig(
    network=TINY, epochs=10, batch=2, learning_rate=1e-2, validation=0.34, augment=False, precision="fp32", device="cpu"
)
FP32 = TrainPlan("cpu", "fp32", 1, 1)
SIDE, DEPTH = 20, 6


def easy_depth() -> np.ndarray:
    """Nested discs in every slice: 1 whole tumour, 2 core, 3 enhancing."""
    axis = np.arange(SIDE) - 9.5
    radius_YX = np.hypot(axis[:, None], axis)
    depth_YX = (radius_YX < 7).astype(np.uint8) + (radius_YX < 5) + (radius_YX < 3)
    return np.broadcast_to(depth_YX, (DEPTH, SIDE, SIDE))


@pytest.fixture(scope="module")
def easy_data(tmp_path_factory: pytest.TempPathFactory, save_nifti: Callable[..., Path]) -> Path:
    """Three cases in which one modality each gives a region away."""
    data = tmp_path_factory.mktemp("data")
    depth_ZYX, rng = easy_depth(), np.random.default_rng(0)
    label_XYZ = np.array([0, 2, 1, 4], np.uint8)[depth_ZYX.T]
    shows = {"t1": 9, "t1ce": 3, "t2": 2, "flair": 1}  # t1 shows nothing
    for number in range(3):
        folder = data / f"easy_{number}"
        folder.mkdir()
        save_nifti(folder / f"{folder.name}_seg.nii.gz", label_XYZ)
        for modality in MODALITIES:
            image_XYZ = 100 + rng.normal(0, 2, label_XYZ.shape) + 60 * (shows[modality] <= depth_ZYX.T)
            save_nifti(folder / f"{folder.name}_{modality}.nii.gz", image_XYZ.astype(np.float32))
    return data


@pytest.fixture(scope="module")
def trained(easy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, train.TrainReport, list[Epoch]]:
    """A finished training: its folder, its report, and the epochs as they were announced."""
    out, announced = tmp_path_factory.mktemp("out") / "easy", []
    return out, train_set(easy_data, out, EASY, on_epoch=announced.append), announced


def cached(case_id: str = "case", seed: int = 0) -> CachedCase:
    """Return an easy case without files."""
    depth_ZHW = easy_depth()
    slices_ZCHW = np.random.default_rng(seed).normal(0, 0.1, (DEPTH, 4, SIDE, SIDE))
    slices_ZCHW += np.stack([depth_ZHW >= limit for limit in (9, 3, 2, 1)], axis=1) - 0.5
    return CachedCase(case_id, slices_ZCHW.astype(np.float16), np.array(depth_ZHW))


def region_training(config: TrainConfig, seed: int = 0) -> RegionTraining:
    """Return a training of WT on one easy case, with another to validate on."""
    torch.manual_seed(seed)
    plan = TrainPlan("cpu", "fp32", config.batch, config.batch)
    return RegionTraining(Region.WT, build_network(TINY), [cached()], [cached("held out", 1)], config, plan)


def silent(*_: object) -> None:
    """Take any progress."""


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a set."""
    files = open_set(str(folder)).files
    return {f"{r.value} {k}": v for r, file in files.items() for k, v in load_network(file).state_dict().items()}


# A whole set


def test_an_easy_task_is_learnt(trained: tuple[Path, train.TrainReport, list[Epoch]]) -> None:
    _, report, _ = trained
    for region in Region:
        epochs = [epoch for epoch in report.epochs if epoch.region == region.value]
        assert epochs[-1].loss < 0.2, region
        assert epochs[-1].loss < epochs[0].loss / 2, region
        assert max(epoch.mean_dice for epoch in epochs) > 0.95, region


def test_the_set_opens_and_segments(trained: tuple[Path, train.TrainReport, list[Epoch]]) -> None:
    out, report, _ = trained
    opened = open_set(str(out))
    assert opened.name == "easy"
    for region, file in opened.files.items():
        assert file.network == TINY
        best = max(epoch.mean_dice for epoch in report.epochs if epoch.region == region.value)
        assert file.metrics == {"validation_dice": round(best, 4), "validation_cases": 1}
        assert file.training["training_cases"] == 2
        assert file.training["precision"] == "fp32"
        assert set(file.training["versions"]) == {"lowmem-brats", "torch", "python"}
        scores, _ = validate(load_network(file), TINY, [cached(seed=5)], region, FP32)
        assert scores["case"] > 0.9, region


def test_only_the_set_and_its_report_are_left(trained: tuple[Path, train.TrainReport, list[Epoch]]) -> None:
    out, _, _ = trained
    assert sorted(p.name for p in out.iterdir()) == [
        "et.safetensors", "index.json", "run.json", "tc.safetensors", "wt.safetensors"
    ]  # fmt: skip


def test_run_json_tells_everything(trained: tuple[Path, train.TrainReport, list[Epoch]]) -> None:
    out, report, announced = trained
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["network"] == {"name": "unet2d", "width": 8, "depth": 1, "norm": "group"}
    assert (run["config"]["seed"], run["config"]["batch"]) == (0, 2)
    assert (run["device"], run["precision"]) == ("cpu", "fp32")
    assert run["versions"]["torch"] == torch.__version__
    assert len(run["training_cases"]) == 2
    assert sorted(run["training_cases"] + run["validation_cases"]) == ["easy_0", "easy_1", "easy_2"]
    assert [(e["region"], e["number"]) for e in run["epochs"]] == [(r.value, n) for r in Region for n in range(1, 11)]
    assert [e["steps"] for e in run["epochs"]] == [6 * n for n in range(1, 11)] * 3  # 12 slices by 2
    assert all(list(e["validation_dice"]) == run["validation_cases"] for e in run["epochs"])
    assert not any(e["skipped_steps"] for e in run["epochs"])
    assert announced == report.epochs


def test_same_seed_same_weights(easy_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(network=TINY, epochs=1, batch=4, validation=0.34, precision="fp32", device="cpu", seed=3)
    train_set(easy_data, tmp_path / "one", config)
    torch.rand(5)  # the state that another program part leaves behind
    train_set(easy_data, tmp_path / "two", config)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)
    train_set(easy_data, tmp_path / "other", TrainConfig(**vars(config) | {"seed": 4}))
    other = weights_of(tmp_path / "other")
    assert not torch.equal(one["wt head.weight"], other["wt head.weight"])


def test_progress_covers_reading_and_every_step(easy_data: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    config = TrainConfig(**vars(EASY) | {"epochs": 1, "batch": 6})
    train_set(easy_data, tmp_path / "out", config, lambda *step: seen.append(step))
    reading = [("reading cases", n, 3) for n in (1, 2, 3)]
    assert seen == reading + [(f"{region.name} epoch 1", n, 2) for region in Region for n in (1, 2)]


def test_an_interrupted_training_leaves_no_cache(easy_data: Path, tmp_path: Path) -> None:
    def interrupt(epoch: Epoch) -> None:
        assert len(list((tmp_path / "out").glob(".training-*/cache/*.npy"))) == 6
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_set(easy_data, tmp_path / "out", EASY, on_epoch=interrupt)
    assert not list((tmp_path / "out").iterdir())


def test_one_case_is_not_enough(easy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "easy_0").symlink_to(easy_data / "easy_0")
    with pytest.raises(InputError, match="1 labelled case; expected at least 2"):
        train_set(tmp_path / "data", tmp_path / "out", EASY)
    assert not (tmp_path / "out").exists()


# One region


@pytest.mark.parametrize(("scores", "best"), [([0.2, 0.9, 0.5], 2), ([0.3, 0.4, 0.4], 3), ([0.7, 0.1, 0.2], 1)])
def test_the_best_epoch_is_kept(scores: list[float], best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def score(network: SliceNetwork, *_: object) -> tuple[dict[str, float], int]:
        states.append(copy.deepcopy(network.state_dict()))
        return {"a": scores[len(states) - 1] + 0.1, "b": scores[len(states) - 1] - 0.1}, 0

    monkeypatch.setattr(fit, "validate", score)
    training = region_training(TrainConfig(**vars(EASY) | {"epochs": 3}))
    chosen = training.run(silent, silent)
    assert (chosen.number, chosen.mean_dice) == (best, pytest.approx(scores[best - 1]))
    assert [epoch.number for epoch in training.epochs] == [1, 2, 3]
    for key, kept in training.network.state_dict().items():
        assert torch.equal(kept, states[best - 1][key]), key
    others = [state["head.weight"] for n, state in enumerate(states, 1) if n != best]
    assert not any(torch.equal(states[best - 1]["head.weight"], other) for other in others)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock of seconds that only the test moves."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_limit_ends_a_region_after_its_third(clock: SimpleNamespace) -> None:
    rates: list[float] = []
    training = region_training(TrainConfig(**vars(EASY) | {"epochs": 1000, "max_minutes": 1.0}))  # 20 s each

    def tick(*_: object) -> None:
        clock.now += 2.5
        rates.append(training._optimizer.param_groups[0]["lr"])

    best = training.run(tick, silent)
    assert len(rates) == 8
    assert (training.epochs[-1].steps, training.epochs[-1].seconds) == (8, 20.0)
    assert best in training.epochs
    expected = EASY.learning_rate * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6, err_msg="a half cosine over the time there is")


def test_even_the_shortest_time_allows_a_step(clock: SimpleNamespace) -> None:
    training = region_training(TrainConfig(**vars(EASY) | {"max_minutes": 1e-9}))

    def tick(*_: object) -> None:
        clock.now += 100

    assert training.run(tick, silent).steps == 1


def test_training_without_any_finite_gradient_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    training = region_training(EASY)
    monkeypatch.setattr(fit, "training_step", lambda *_: (float("nan"), False))
    with pytest.raises(InputError, match=r"no gradient of \d+ steps was finite"):
        training.run(silent, silent)


def test_validation_is_in_the_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and Adam's state are on the device too while a validation runs."""
    monkeypatch.setattr(fit, "validate", lambda *_: ({"a": 1.0}, 2**30))
    training = region_training(EASY)
    training.run(silent, silent)
    count = sum(-(-p.numel() * 4 // 512) * 512 for p in training.network.parameters())
    steps = len(list(training.network.parameters())) * 512  # Adam counts its steps in a tensor per parameter
    assert training.peak_bytes == 2**30 + 3 * count + steps


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_without_finite_gradient_is_left_out(bad: float) -> None:
    training = region_training(TrainConfig(**vars(EASY) | {"epochs": 1, "batch": 1}))
    calls, states = [], []

    def spoil_the_third(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * bad if len(calls) == 3 else gradient

    training.network.head.weight.register_hook(spoil_the_third)
    best = training.run(lambda *_: states.append(copy.deepcopy(training.network.state_dict())), silent)
    assert (best.steps, best.skipped_steps) == (6, 1)
    changed = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(states)]
    assert changed == [True, False, True, True, True]
    assert all(p.isfinite().all() for p in training.network.parameters())


def test_augmentation_is_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    sample = fit.sample_warp
    monkeypatch.setattr(fit, "sample_warp", lambda rng, shape: calls.append(tuple(shape)) or sample(rng, shape))
    for augment, expected in ((False, []), (True, [(3, 4, SIDE, SIDE)] * 2)):
        region_training(TrainConfig(**vars(EASY) | {"epochs": 1, "batch": 3, "augment": augment})).run(silent, silent)
        assert calls == expected


def test_validation_is_by_patient_on_the_slices_seen() -> None:
    """A network that calls all brain tumour: Dice 2·TP / (2·TP + FP), over the slices with the parent only."""
    network = build_network(TINY)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.ones_(network.head.bias)
    full, half = cached("full"), cached("half")
    half.depth_ZHW[: DEPTH // 2] = 0
    scores, _ = validate(network, TINY, [full, half], Region.TC, FP32)
    core = int((easy_depth()[0] >= 2).sum())
    expected = 2 * core / (core + SIDE * SIDE)
    assert scores == {"full": pytest.approx(expected), "half": pytest.approx(expected)}
    assert next(network.parameters()).dtype == torch.float32
    validate(network, TINY, [full], Region.WT, TrainPlan("cpu", "bf16", 1, 1))
    assert next(network.parameters()).dtype == torch.float32, "the network in training stays as it is"


def test_running_out_of_memory_halves_the_micro_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card would do: the step that fails is taken again in smaller parts, with the same gradient."""
    config = TrainConfig(network=TINY, batch=4, augment=False, precision="fp32", device="cpu")
    roomy, cramped = region_training(config), region_training(config)
    forward = cramped.network.forward

    def cramped_forward(slices_NCHW: torch.Tensor) -> torch.Tensor:
        if len(slices_NCHW) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(slices_NCHW)

    monkeypatch.setattr(cramped.network, "forward", cramped_forward)
    rows = np.arange(4)
    assert cramped._step(rows) == pytest.approx(roomy._step(rows), rel=1e-5)
    for ours, theirs in zip(cramped.network.parameters(), roomy.network.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert cramped.plan.micro_batch == 1
    assert [note.split(": ")[1] for note in cramped.notes] == [
        "2 slices at once instead of 4",
        "1 slices at once instead of 2",
    ]


def test_the_measured_peak_of_a_training_is_the_predicted_one(
    trained: tuple[Path, train.TrainReport, list[Epoch]],
) -> None:
    _, report, _ = trained
    assert report.plan is not None
    assert report.peak_bytes == report.plan.predicted_bytes > 0

"""A bank is trained member by member, goes on where it was stopped, and is a set that `segment` can use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easy_cases import EASY, store_slices, write_easy_case, write_easy_data

from lowmem_brats.config import NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.config import bank as banks
from lowmem_brats.data.case_files import find_case
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import TrainingStep
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.budget import MIB, MemoryBudget
from lowmem_brats.memory.footprint import multiply_adds
from lowmem_brats.networks import build_network
from lowmem_brats.segment.case import segment_files
from lowmem_brats.train import bank as module
from lowmem_brats.train.bank import cost_of, train_bank
from lowmem_brats.train.data import TrainingData
from lowmem_brats.train.folder import RunFolder
from lowmem_brats.train.networks import TrainListener
from lowmem_brats.train.report import TrainReport, read_run
from lowmem_brats.weights.index import INDEX
from lowmem_brats.weights.store import open_set

MEMBERS = {"plain-8": ("unet2d", 8), "residual-12": ("resunet2d", 12)}
RECIPE = replace(EASY, bank="widths", epochs=4, max_seconds=None)


@pytest.fixture(autouse=True)
def small_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks, "BANKS", {"widths": MEMBERS})
    monkeypatch.setattr(module, "EPOCHS", 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_easy_data(tmp_path_factory.mktemp("easy") / "data")


def test_a_bank_becomes_a_set_and_segments(data: Path, tmp_path: Path) -> None:
    facts: list[str] = []
    report = train_bank(data, tmp_path / "run", RECIPE, TrainListener(on_fact=facts.append))
    weights = open_set(str(tmp_path / "run"))
    assert weights.bank
    assert list(weights.bank.gmac_per_megapixel) == list(MEMBERS)
    assert [file.network.name for file in weights.files] == ["unet2d", "resunet2d"]
    assert all(file.network.outputs == 3 for file in weights.files)
    assert weights.bank.decision.training["epochs"] == 3
    assert facts[:2] == ["member       plain-8, 1 of 2", "member       residual-12, 2 of 2"]
    assert "best choice for" in facts[2]
    epochs = {name: len(runs_of(tmp_path / "run", name)["networks"]["wt tc et"]["epochs"]) for name in MEMBERS}
    assert epochs == {"plain-8": 3, "residual-12": 4}, "the smaller half stops early"
    assert set(report.test) == {"wt", "tc", "et"}
    files = find_case(data / "easy_0")
    result = segment_files(files, SegmentConfig(weights=str(tmp_path / "run"), device="cpu", precision="fp32"))
    assert set(result.report.members) == {"decision", *MEMBERS}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_members_are_compared_in_the_format_that_they_were_trained_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    formats: list[str] = []

    def compared(*arguments: Any) -> None:
        formats.append(arguments[3].precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "label_slices", compared)
    with pytest.raises(KeyboardInterrupt):
        train_bank(data, tmp_path / "run", replace(RECIPE, epochs=1, precision=precision))
    assert formats == [precision]


def runs_of(folder: Path, member: str) -> dict[str, dict[str, dict[str, list[object]]]]:
    return json.loads((folder / "members" / member / "run.json").read_text())  # type: ignore[no-any-return]


def test_it_goes_on_with_the_member_that_was_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    train_bank(data, whole, RECIPE)
    notes, stopped, real = list[str](), tmp_path / "stopped", module.train_set

    def break_off(data: Path, folder: Path, *arguments: object) -> object:
        if folder.name == "residual-12":
            raise KeyboardInterrupt
        return real(data, folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_set", break_off)
    with pytest.raises(KeyboardInterrupt):
        train_bank(data, stopped, RECIPE, TrainListener(on_note=notes.append))
    assert notes[-1].startswith("the bank goes on with: lowmem-brats train")
    assert not (stopped / "index.json").exists()
    trained: list[str] = []

    def watch(data: Path, folder: Path, *arguments: object) -> object:
        trained.append(folder.name)
        return real(data, folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_set", watch)
    train_bank(data, stopped, read_run(stopped).config, resume=True)
    assert trained == ["residual-12"], "what is trained is not trained again"
    first, second = (open_set(str(folder)) for folder in (whole, stopped))
    assert [file.sha256 for file in first.files] != [], "there is something to compare"
    for one, other in zip(first.paths, second.paths, strict=True):
        from safetensors.torch import load_file

        tensors, others = load_file(one), load_file(other)
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_a_budget_that_one_member_needs_more_than_is_refused_before_any_is_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="resunet2d of width 12"):
        train_bank(data, tmp_path / "run", replace(RECIPE, vram="7M"))
    assert not (tmp_path / "run" / "members").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_budget_too_small_to_compare_the_members_is_refused_too(tmp_path: Path) -> None:
    """Windows of 16 pixels need less to be learnt from than whole slices need to be segmented."""
    large = np.ones((1, 4, 160, 192), np.float16)
    case = store_slices(tmp_path / "large.json", "large", large, np.ones((1, 160, 192), np.uint8))
    data = TrainingData([case], [], [], {}, {})
    (_, recipe) = module._recipes(replace(RECIPE, window=16, batch=1)).values()
    with pytest.raises(BudgetError, match="resunet2d of width 12"):
        module._check_budget(recipe, MemoryBudget(8 * MIB), "cpu", data)
    module._check_budget(recipe, MemoryBudget(16 * MIB), "cpu", data)


class Members:
    """Stands for `train_set`: notes what it is asked for, and leaves trained members behind."""

    def __init__(self, stop_at: str = "") -> None:
        self.stop_at, self.calls = stop_at, dict[str, tuple[object, ...]]()

    def __call__(self, data: Path, folder: Path, config: TrainConfig, *arguments: object) -> None:
        if folder.name == self.stop_at:
            raise KeyboardInterrupt
        self.calls[folder.name] = (config, *arguments)
        RunFolder(folder).write_report(TrainReport(config, {}, "cpu", [], [], []))
        (folder / INDEX).write_text("{}")


def begin(monkeypatch: pytest.MonkeyPatch, members: Members, *arguments: object, **named: object) -> None:
    """Train a bank whose members `members` stands for, until there is a decision network to train."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_set", members)
    monkeypatch.setattr(module, "_train_choice", stop)
    with pytest.raises(KeyboardInterrupt):
        train_bank(*arguments, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"window": 16}, {"bank": "med-danet"}])
def test_another_recipe_is_refused_when_a_bank_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(banks, "BANKS", dict.fromkeys(("widths", "med-danet"), MEMBERS))
    begin(monkeypatch, Members("residual-12"), data, tmp_path / "run", RECIPE)
    members = Members()
    monkeypatch.setattr(module, "train_set", members)
    with pytest.raises(InputError, match="as it began"):
        train_bank(data, tmp_path / "run", replace(RECIPE, **changes), resume=True)
    assert members.calls == {}


def test_members_of_fewer_epochs_go_on_when_there_are_to_be_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, Members(), data, tmp_path / "run", RECIPE)
    same, longer = Members(), Members()
    begin(monkeypatch, same, data, tmp_path / "run", RECIPE, resume=True)
    assert same.calls == {}
    begin(monkeypatch, longer, data, tmp_path / "run", replace(RECIPE, epochs=8), resume=True)
    assert {name: (call[0].epochs, call[2]) for name, call in longer.calls.items()} == {  # type: ignore[attr-defined]
        "plain-8": (6, True),
        "residual-12": (8, True),
    }


def test_members_of_an_older_bank_are_not_taken_for_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, Members(), data, tmp_path / "run", RECIPE)
    (tmp_path / "run" / INDEX).write_text("{}")
    begin(monkeypatch, Members("residual-12"), data, tmp_path / "run", RECIPE)
    assert not (tmp_path / "run" / INDEX).exists()
    resumed = Members()
    begin(monkeypatch, resumed, data, tmp_path / "run", RECIPE, resume=True)
    assert {name: call[2] for name, call in resumed.calls.items()} == {"residual-12": False}


def test_a_bank_that_was_moved_keeps_its_slices_where_it_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, Members("residual-12"), data, tmp_path / "old", RECIPE)
    (tmp_path / "old").rename(tmp_path / "new")
    resumed = Members()
    begin(monkeypatch, resumed, data, tmp_path / "new", RECIPE, resume=True)
    assert resumed.calls["residual-12"][3] == tmp_path / "new" / "cache"
    assert not (tmp_path / "old").exists()


def test_members_that_begin_later_have_the_split_of_the_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a patient held out for the test would teach them where cases were added meanwhile."""
    data, real = write_easy_data(tmp_path / "data"), module.train_set
    begin(monkeypatch, Members("plain-8"), data, tmp_path / "run", RECIPE)
    for number in range(5, 9):
        write_easy_case(data / f"easy_{number}", number)
    begin(monkeypatch, real, data, tmp_path / "run", RECIPE, resume=True)  # type: ignore[arg-type]
    runs = [read_run(tmp_path / "run" / "members" / name) for name in MEMBERS]
    bank = read_run(tmp_path / "run")
    for run in runs:
        assert (run.training_cases, run.validation_cases, run.test_cases) == (
            bank.training_cases,
            bank.validation_cases,
            bank.test_cases,
        )


def test_notes_are_told_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = write_easy_data(tmp_path / "data"), list[str]()
    (write_easy_case(data / "easy_9", 9) / "easy_9_flair.nii.gz").unlink()
    real = module.train_set
    begin(monkeypatch, real, data, tmp_path / "run", RECIPE, TrainListener(on_note=told.append))  # type: ignore[arg-type]
    (about,) = [text for text in told if "easy_9" in text]
    assert about in read_run(tmp_path / "run").notes


def test_time_is_shared_out_by_passes_and_operations() -> None:
    recipes = module._recipes(replace(RECIPE, max_seconds=100.0))
    small, large = (recipe.max_seconds for recipe in recipes.values())
    assert small is not None
    assert large is not None
    assert small + large == pytest.approx(100)
    operations = [multiply_adds(recipe.network, module.COUNTED_HW) for recipe in recipes.values()]
    assert small / large == pytest.approx(3 * operations[0] / (4 * operations[1]))


def test_one_step_with_all_members_is_a_step_with_each() -> None:
    """Equation 6, the mean of the members' losses, gives each the weights that its own loss gives it."""
    configs = [NetworkConfig(name=name, width=width, outputs=3) for name, width in MEMBERS.values()]
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 4, 16, 16, generator=generator), (torch.rand(2, 3, 16, 16, generator=generator) > 0.5).float())
        for _ in range(3)
    ]
    torch.manual_seed(0)
    alone = [build_network(config).train() for config in configs]
    together = torch.nn.ModuleList(build_network(config).train() for config in configs)
    for one, other in zip(alone, together, strict=True):
        other.load_state_dict(one.state_dict())
    loss = find_loss("dice")
    steps = [TrainingStep(network, loss, clip_norm=1e9) for network in alone]
    joint = torch.optim.Adam(together.parameters(), lr=1e-3, eps=1e-8 / len(configs))
    for slices_NCHW, target_NKHW in batches:
        for step in steps:
            step.take([(slices_NCHW, target_NKHW)], 1e-3, torch.float32)
        joint.zero_grad()
        losses = [loss.value(loss.terms(network(slices_NCHW), target_NKHW)) for network in together]
        torch.stack(losses).mean().backward()
        joint.step()
    for one, other in zip(alone, together, strict=True):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[key], atol=1e-5, rtol=1e-4)


def test_a_cost_is_counted_per_megapixel(tmp_path: Path) -> None:
    from lowmem_brats.data.labels import Region
    from lowmem_brats.weights.header import WeightsFile

    config = NetworkConfig(name="resunet2d", width=12, outputs=3)
    assert cost_of(WeightsFile(tmp_path / "x", tuple(Region), config, {}, {})) == pytest.approx(
        2.0176128 / (240**2 / 1e6), 1e-3
    )


@pytest.mark.parametrize("settings", [{"finetune": "x"}, {"encoder_weights": "x"}, {"regions": ("wt",)}])
def test_members_start_fresh_with_all_regions(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="fresh networks of all three regions"):
        TrainConfig(bank="widths", **settings)  # type: ignore[arg-type]

"""A bank is opened whole or not at all: members and decision network must be those that were trained together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bank import COSTS, FRAME_HW, decision_of, write_bank
from tiny_weights import write_tiny_set

from lowmem_brats.errors import WeightsError
from lowmem_brats.weights.decision import DecisionFile, load_decision, read_decision, save_decision
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.index import INDEX, sha256_of
from lowmem_brats.weights.store import open_set


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return write_bank(tmp_path / "bank", decision_of(1))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the index."""
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_a_bank_holds_its_members_in_order_and_its_decision_network(bank: Path) -> None:
    weights = open_set(str(bank))
    assert weights.bank
    assert list(weights.bank.gmac_per_megapixel.items()) == list(COSTS.items())
    assert weights.bank.decision.frame_HW == FRAME_HW
    assert [path.parent.name for path in weights.paths] == ["small", "large", "bank"]
    assert [file.network.width for file in weights.files] == [8, 16]
    assert weights.network.width == 16
    assert len(weights.networks) == 2
    network = load_decision(weights.bank.decision)
    wanted = decision_of(1)
    for key, value in wanted.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert not network.training


def test_a_member_is_a_set_of_its_own(bank: Path) -> None:
    weights = open_set(str(bank), member="large")
    assert (weights.name, weights.bank, len(weights.files)) == ("bank, large", None, 1)
    with pytest.raises(WeightsError, match="'larg', no member of bank; expected one of: small, large"):
        open_set(str(bank), member="larg")


def test_a_set_has_no_members(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="these weights are no bank"):
        open_set(str(write_tiny_set(tmp_path / "set")), member="small")


def test_a_bank_shares_its_views_with_no_other_set(bank: Path, tmp_path: Path) -> None:
    other = write_tiny_set(tmp_path / "set")
    with pytest.raises(WeightsError, match="a bank and other sets"):
        open_set([str(bank), str(other)])


def test_a_decision_network_of_other_members_is_refused(bank: Path) -> None:
    path = bank / "decision.safetensors"
    file = read_decision(path)
    save_decision(decision_of(1), replace(file, members=dict(reversed(file.members.items()))))
    change(bank, lambda index: index["banks"]["bank"]["decision"].update(sha256=sha256_of(path)))
    with pytest.raises(WeightsError, match="was trained for other members"):
        open_set(str(bank))


def test_a_member_that_was_exchanged_is_refused(bank: Path) -> None:
    """Although its checksum is put right in the index, as somebody does who copies files by hand."""
    path = bank / "members" / "small" / "wt-tc-et.safetensors"
    file = open_set(str(bank)).files[0]
    network = load_network(file)
    network.take_masks_at([1, 1, 1])
    save_network(network, file)

    def rehash(index: dict[str, Any]) -> None:
        for row in index["sets"]["small"].values():
            row["sha256"] = sha256_of(path)

    change(bank, rehash)
    with pytest.raises(WeightsError, match="was trained for other members"):
        open_set(str(bank))


def test_all_that_is_wrong_is_listed(bank: Path) -> None:
    change(bank, lambda index: index["sets"].pop("small"))
    shutil.copy(bank / "members" / "large" / "wt-tc-et.safetensors", bank / "decision.safetensors")
    sha256 = sha256_of(bank / "decision.safetensors")
    change(bank, lambda index: index["banks"]["bank"]["decision"].update(sha256=sha256))
    (bank / "members" / "large" / "wt-tc-et.safetensors").unlink()
    with pytest.raises(WeightsError) as caught:
        open_set(str(bank))
    for words in ("no set small", "wt-tc-et.safetensors: missing", "expected a decision network"):
        assert words in str(caught.value)
    assert ".;" not in str(caught.value), "each is a clause, and the advice comes once"


def test_members_of_other_views_are_refused(bank: Path, tmp_path: Path) -> None:
    other = write_bank(tmp_path / "other", decision_of(1), views=1)
    for name in ("members/small/wt-tc-et.safetensors",):
        shutil.copy(other / name, bank / name)

    def rehash(index: dict[str, Any]) -> None:
        for row in index["sets"]["small"].values():
            row["sha256"] = sha256_of(bank / row["file"])

    change(bank, rehash)
    with pytest.raises(WeightsError, match="members of different views or neighbours"):
        open_set(str(bank))


def test_three_networks_are_no_member(bank: Path) -> None:
    def split(index: dict[str, Any]) -> None:
        three = json.loads((bank / "three" / INDEX).read_text())["sets"]["tiny"]
        index["sets"]["small"] = {region: row | {"file": f"three/{row['file']}"} for region, row in three.items()}

    change(bank, split)
    with pytest.raises(WeightsError, match="small: a network for each region"):
        open_set(str(bank))


@pytest.mark.parametrize(
    "edit",
    [
        lambda bank: bank.pop("decision"),
        lambda bank: bank.update(gmac_per_megapixel={"small": "1", "large": 2}),
        lambda bank: bank.update(gmac_per_megapixel={"small": -1, "large": 2}),
        lambda bank: bank.update(gmac_per_megapixel=["small"]),
        lambda bank: bank["decision"].update(file=3),
    ],
)
def test_a_damaged_index_is_an_error(bank: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(bank, lambda index: edit(index["banks"]["bank"]))
    with pytest.raises(WeightsError, match="missing or damaged"):
        open_set(str(bank))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("members", "[]"),
        ("members", "{}"),
        ("frame_HW", "[0, 8]"),
        ("frame_HW", "[8]"),
        ("format", "x"),
        ("training", "1"),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path: Path, key: str, value: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "decision.safetensors"
    save_decision(decision_of(1), DecisionFile(path, {"a": "0", "b": "1"}, FRAME_HW, {}))
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    save_file(load_file(path), path, header | {key: value})
    with pytest.raises(WeightsError, match="a decision network"):
        read_decision(path)


def test_tensors_for_another_number_of_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "decision.safetensors"
    save_decision(decision_of(1, choices=4), DecisionFile(path, {"a": "0", "b": "1"}, FRAME_HW, {}))
    with pytest.raises(WeightsError, match=r"scores.weight \(4, 256\) instead of \(3, 256\)"):
        load_decision(read_decision(path))

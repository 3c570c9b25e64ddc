"""What a user sees of a bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from easy_cases import write_easy_data
from tiny_bank import undecided, write_bank

from lowmem_brats.cli import main


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank") / "bank", undecided())


def test_slices_and_operations_of_each_member_are_shown(bank: Path, pristine: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ["segment", str(pristine), "--weights", str(bank), "-o", str(out), "--report", str(report)]
    result = CliRunner().invoke(main, [*arguments, "--device", "cpu", "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    (case,) = json.loads(report.read_text())["cases"]
    members = case["members"]
    parts = [f"{name} {members[name]['slices']} ({members[name]['gmac']:.1f} GMAC)" for name in members]
    assert list(members) == ["decision", "small", "large"]
    assert f"by member    {' · '.join(parts)}" in " ".join(result.output.split("\n")).replace("  ·", " ·")
    page = next(out.glob("*.html")).read_text()
    assert "slices, small" in page
    assert "LARGE, sagittal" in page


def test_a_member_can_be_named(bank: Path, pristine: Path, tmp_path: Path) -> None:
    arguments = ["segment", str(pristine), "--weights", str(bank), "-o", str(tmp_path), "--device", "cpu", "--no-page"]
    assert CliRunner().invoke(main, [*arguments, "--member", "small"]).exit_code == 0
    result = CliRunner().invoke(main, [*arguments, "--member", "medium"])
    assert result.exit_code == 2
    assert "no member of bank; expected one of: small, large" in result.output


def test_a_bank_is_no_set_to_start_from(bank: Path, tmp_path: Path) -> None:
    data = write_easy_data(tmp_path / "data")
    arguments = ["train", str(data), "-o", str(tmp_path / "out"), "--finetune", str(bank), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert "--finetune: bank, a bank; expected one set. Name the folder of a member, such as" in output


@pytest.mark.parametrize("option", [["--width", "8"], ["--network", "unet2d"], ["--mode", "one-network"]])
def test_members_have_their_own_architecture(option: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", str(tmp_path), "--bank", "widths", *option])
    assert result.exit_code == 2
    assert f"--bank: {option[0]} beside it" in result.output


def test_a_preset_of_another_network_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", str(tmp_path), "--bank", "widths", "--preset", "emcad"])
    assert result.exit_code == 2
    assert "--bank: --preset with a network beside it" in " ".join(result.output.split())


def test_a_plan_says_which_member_it_is_of(bank: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "--weights", str(bank), "--vram", "1G", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "bank is a bank, of which one member is in memory at a time: planned is large" in " ".join(
        result.output.split()
    )
    assert "unet2d of width 16" in result.output

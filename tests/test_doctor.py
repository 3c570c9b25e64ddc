"""The diagnosis on machines that this one is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_weights import write_tiny_set

from lowmem_brats import doctor
from lowmem_brats.weights import store


def pretend_card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], built_for: list[str]) -> None:
    properties = SimpleNamespace(name=name, total_memory=4 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * 2**30, 4 * 2**30))


def test_an_old_card_is_told_which_torch_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, "GTX 1050 Ti", (6, 1), ["sm_70", "sm_75", "sm_80"])
    build, card = doctor._cuda()
    assert "for sm_70 sm_75 sm_80" in build.value
    assert "GTX 1050 Ti, compute capability 6.1, 4096 MiB" in card.value
    assert "torch==2.7.1" in card.advice


def test_a_supported_card_shows_its_memory_and_half_format(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, "GTX 1650", (7, 5), ["sm_70", "sm_75", "sm_80"])
    _, card = doctor._cuda()
    assert card.advice == ""
    assert "3072 MiB free, half format fp16 (bf16 would be emulated)" in card.value
    pretend_card(monkeypatch, "RTX 3050", (8, 6), ["sm_80"])
    assert doctor._cuda()[1].value.endswith("half format bf16")


def test_a_cuda_build_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, "none", (0, 0), [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = doctor._cuda()
    assert "no device or no driver" in finding.value
    assert "nvidia-smi" in finding.advice


def test_every_shipped_set_is_checked_and_damage_does_not_stop_the_diagnosis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_tiny_set(tmp_path / "shipped")
    monkeypatch.setattr(store, "SHIPPED", folder)
    index = json.loads((folder / "index.json").read_text())
    broken = {key: row | {"sha256": "0"} for key, row in index["sets"]["tiny"].items()}
    index["sets"] = {"broken": broken} | index["sets"]
    (folder / "index.json").write_text(json.dumps(index))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    whole, damaged = doctor._weights()
    assert whole == doctor.Finding("weights", f"tiny, {size:.1f} MiB, checksums right")
    assert damaged.value.startswith("broken: ")
    assert "checksum differs" in damaged.value
    assert damaged.advice
    (folder / "index.json").unlink()
    assert doctor._weights() == [doctor.Finding("weights", "missing or damaged", "Reinstall, or train the set again.")]


def test_the_context_is_measured_before_any_card_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(doctor, "_plans", lambda: order.append("plans") or [])
    monkeypatch.setattr(doctor, "_cuda", lambda: order.append("cards") or [])
    doctor.diagnose()
    assert order == ["plans", "cards"]


def test_a_card_that_fails_does_not_stop_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: object) -> None:
        raise RuntimeError("CUDA error: unknown error\nCompile with TORCH_USE_CUDA_DSA")

    pretend_card(monkeypatch, "RTX 3050", (8, 6), ["sm_80"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    monkeypatch.setattr(doctor, "choose_device", fail)
    _, card = doctor._cuda()
    assert card == doctor.Finding("cuda:0", "fails: CUDA error: unknown error", doctor.BROKEN_ADVICE)
    assert doctor._plans() == [doctor.Finding("plan", card.value, doctor.BROKEN_ADVICE)]


@pytest.mark.parametrize("version", ["570.86.15", "unknown"])
def test_the_drivers_version_is_shown(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend_card(monkeypatch, "RTX 3050", (8, 6), ["sm_80"])
    monkeypatch.setattr(doctor.cuda, "driver_version", lambda: version)
    assert doctor._cuda()[0].value.endswith(f"driver {version}")

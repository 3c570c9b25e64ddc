"""A checkpoint comes back as it was, is written whole or not at all, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lowmem_brats.errors import InputError
from lowmem_brats.weights.checkpoint import FORMAT, load_checkpoint, load_state, save_checkpoint

TENSORS = {
    "network head.weight": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "network norm.num_batches_tracked": torch.tensor(7),
    "exp_avg head.weight": torch.randn(4, 6).T,
}
STATE = {"steps": 12, "losses": [0.1, 1 / 3, 2.0**-60], "nested": {"why": [[3, "a “reason”"]]}, "none": None}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    save_checkpoint(tmp_path / "wt-last.safetensors", TENSORS, STATE)
    return tmp_path / "wt-last.safetensors"


def test_all_comes_back(saved: Path) -> None:
    tensors, state = load_checkpoint(saved)
    assert state == STATE
    assert sorted(tensors) == sorted(TENSORS)
    for key, tensor in TENSORS.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor), key


def test_a_full_disk_keeps_the_older_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"wt-last\.safetensors: cannot be written \(No space left on device\)"):
        save_checkpoint(saved, {}, {})
    assert load_checkpoint(saved)[1] == STATE
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for header, found in (
        (None, "format 'none' instead of"),
        ({"format": "lowmem-brats/1"}, "format 'lowmem-brats/1' instead of"),
        ({"format": FORMAT}, "'state'"),
        ({"format": FORMAT, "state": "{"}, "Expecting property name"),
    ):
        save_file({"x": torch.zeros(1)}, path, header)
        with pytest.raises(InputError, match=rf"x\.safetensors: cannot be read \(.*{found}"):
            load_checkpoint(path)
    with pytest.raises(InputError, match=r"absent: cannot be read"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("version", ["1", "3"])
def test_a_checkpoint_of_another_version(tmp_path: Path, version: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": f"lowmem-brats-checkpoint/{version}", "state": "{}"})
    for load in (load_checkpoint, load_state):
        with pytest.raises(InputError, match=r"x\.safetensors: written by another version; .* Train anew"):
            load(path)


def test_the_state_alone(saved: Path) -> None:
    assert load_state(saved) == STATE


@given(kept=st.integers(0, 2000), flipped=st.one_of(st.none(), st.tuples(st.integers(0, 2000), st.integers(1, 255))))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_loads_or_is_an_input_error(saved: Path, kept: int, flipped: tuple[int, int] | None) -> None:
    content = bytearray(saved.read_bytes())
    content = content[:kept] if flipped is None else content
    if flipped:
        content[flipped[0] % len(content)] ^= flipped[1]
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(content)
    try:
        tensors, state = load_checkpoint(path)
    except InputError:
        return
    assert isinstance(state, dict)
    assert len(tensors) == len(TENSORS)

"""A case belongs to one process at a time, and to none that has ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowmem_brats.cohort import claim as claims
from lowmem_brats.cohort.claim import OLD_S, claim

KILLED = """
import os, signal, sys
from pathlib import Path
from lowmem_brats.cohort.claim import claim
with claim(Path(sys.argv[1]), "theirs") as holder:
    assert holder == ""
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_behind(path: Path, host: str, age_s: float = 0, run: str = "theirs") -> Path:
    """A claim that no process holds a lock on."""
    path.write_text(json.dumps({"process": 12, "host": host, "since": "2026-01-01 00:00:00", "run": run}))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_case_is_held_by_one_only(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    with claim(path, "mine") as holder:
        assert holder == ""
        for run in ("mine", "theirs"):
            with claim(path, run) as other:
                assert other.startswith(f"process {os.getpid()} on {platform.node()} (since 20")
            assert path.exists(), "whoever was refused leaves the claim alone"
    assert list(tmp_path.iterdir()) == []
    with claim(path, "theirs") as holder:
        assert holder == ""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode < 0
    assert json.loads(path.read_text())["run"] == "theirs"
    with claim(path, "mine") as holder:
        assert holder == ""
        assert json.loads(path.read_text())["run"] == "mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("age_s", "run", "held"), [(0, "theirs", True), (OLD_S + 60, "theirs", False), (0, "mine", False)]
)
def test_the_claim_of_another_machine(age_s: float, run: str, held: bool, tmp_path: Path) -> None:
    """Its locks may be invisible here; a worker of the same command is asked again by Dask only if that one is lost."""
    path = left_behind(tmp_path / "a.claim", "node7", age_s, run)
    with claim(path, "mine") as holder:
        assert holder == ("process 12 on node7 (since 2026-01-01 00:00:00)" if held else "")
    assert path.exists() == held


def test_a_claim_that_says_nothing_is_a_young_one(tmp_path: Path) -> None:
    (tmp_path / "a.claim").touch()
    with claim(tmp_path / "a.claim", "mine") as holder:
        assert holder == "process ? on ? (since ?)"


def test_where_no_file_can_be_made_nothing_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), claim(tmp_path / "none" / "a.claim", "mine"):
        pass


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowmem_brats.cohort.claim.os.write", full)
    with pytest.raises(OSError, match="No space left"), claim(tmp_path / "a.claim", "mine"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_read_from_its_beginning_wherever_locking_has_left_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_windows(file: int) -> None:
        os.lseek(file, 2**30, os.SEEK_SET)

    monkeypatch.setattr(claims, "lock_byte", as_on_windows)
    with claim(left_behind(tmp_path / "a.claim", platform.node()), "mine") as holder:
        assert holder == ""

"""One training at a time writes to a folder, and none is kept out by one that is over, however it ended."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lowmem_brats.errors import InputError
from lowmem_brats.train import lock as run_lock
from lowmem_brats.train.lock import LOCK, InUseError, hold

HOLDER = """
import sys, time
from pathlib import Path
from lowmem_brats.train.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_while_it_is_held_nobody_else_gets_it(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        with pytest.raises(InUseError) as error, hold(tmp_path):
            pass
        assert error.value.where == str(tmp_path)
        assert error.value.found.startswith(f"process {process.pid} on {platform.node()} (since 20")
        assert error.value.found.endswith(") trains in it")
        assert "choose another folder with -o" in error.value.advice
        assert (tmp_path / LOCK).exists(), "whoever was refused leaves the lock alone"
    with hold(tmp_path) as notes:
        assert notes == [f"taken over from {error.value.found.removesuffix(' trains in it')}, which was killed"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    new = tmp_path / "runs" / "one"
    with hold(new) as notes:
        assert notes == []
        assert [path.name for path in new.iterdir()] == [LOCK]
        assert json.loads((new / LOCK).read_text()).keys() == {"process", "host", "since"}
    assert not list(tmp_path.iterdir())
    with hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir()), "a folder that was there stays"
    with hold(new):
        (new / "run.json").touch()
    assert [path.name for path in new.iterdir()] == ["run.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, InputError("a", "b", "c", "d"), ValueError])
def test_it_is_let_go_of_after_any_error(tmp_path: Path, error: BaseException | type[BaseException]) -> None:
    with pytest.raises(BaseException) as raised, hold(tmp_path):  # noqa: PT011
        raise error
    assert raised.value is error or raised.type is error
    with hold(tmp_path) as notes:
        assert notes == []


def test_a_process_of_the_same_number_is_not_mistaken_for_the_killed_one(tmp_path: Path) -> None:
    """After a restart this process may have the number that the lock names."""
    (tmp_path / LOCK).write_text(json.dumps({"process": os.getpid(), "host": platform.node(), "since": "yesterday"}))
    with hold(tmp_path) as (note,):
        assert note == f"taken over from process {os.getpid()} on {platform.node()} (since yesterday), which was killed"


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        ('{"process": 7, "host": "elsewhere", "since": "noon"}', "process 7 on elsewhere (since noon)"),
        ("what is this", "an unknown process"),
        ('["elsewhere"]', "an unknown process"),
    ],
)
def test_another_machines_training_may_still_run(tmp_path: Path, content: str, holder: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(InUseError, match="one training at a time") as error, hold(tmp_path):
        pass
    assert error.value.found == f"{holder} has not said that it ended"
    assert error.value.advice == f"If its training is over, remove {tmp_path / LOCK}."
    assert (tmp_path / LOCK).read_text() == content
    (tmp_path / LOCK).unlink()
    with hold(tmp_path) as notes:
        assert notes == []


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(run_lock, "lock_byte", lambda file: trouble)
    with hold(tmp_path) as (note,):
        assert note == f"{tmp_path} cannot be locked (No locks available): see that no other training writes to it"
        with pytest.raises(InUseError, match="has not said that it ended"), hold(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_meanwhile_is_not_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other training ends between opening and locking, and removes the file that has just been opened."""
    lock = run_lock.lock_byte

    def end_first(file: int) -> OSError | None:
        monkeypatch.setattr(run_lock, "lock_byte", lock)
        (tmp_path / LOCK).unlink()
        return lock(file)

    monkeypatch.setattr(run_lock, "lock_byte", end_first)
    with hold(tmp_path), pytest.raises(InUseError), hold(tmp_path):
        pass


def test_a_folder_that_was_moved_takes_its_lock_along(tmp_path: Path) -> None:
    with hold(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        with hold(tmp_path / "run"), pytest.raises(InUseError), hold(tmp_path / "moved"):
            pass
    with hold(tmp_path / "moved") as notes:
        assert notes == []


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_where_no_folder_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made or written to") as error, hold(tmp_path / place):
        pass
    assert not isinstance(error.value, InUseError)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold(tmp_path) as (note,):
            assert note.startswith(f"taken over from process {process.pid} ")

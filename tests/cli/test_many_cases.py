"""`lowmem-brats segment` of many cases into one folder: lists, parts, workers, other commands, and every way to end."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_weights import SMALL_SHAPE

from lowmem_brats import files
from lowmem_brats.cli import main
from lowmem_brats.cli.phantom import write_phantom
from lowmem_brats.cohort import engine
from lowmem_brats.cohort.records import Records
from lowmem_brats.errors import InputError

NAMES = [f"phantom_{number:03d}" for number in range(4)]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four case folders; not to be written to."""
    folder = tmp_path_factory.mktemp("cohort") / "cases"
    for seed in range(len(NAMES)):
        write_phantom(folder, seed, SMALL_SHAPE, overwrite=False)
    return folder


@pytest.fixture(scope="module")
def segment(tiny: Path) -> Run:
    """`segment(cases, out, ...)` runs the command in this process."""

    def run(*arguments: object) -> Result:
        words = ["segment", *arguments[:1], "-o", *arguments[1:], "--weights", tiny, "--device", "cpu"]
        return CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "200"})

    return run


@pytest.fixture(scope="module")
def made(cases: Path, segment: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their results, segmented one after another by one process; not to be written to."""
    out = tmp_path_factory.mktemp("made") / "out"
    result = segment(cases, out)
    assert result.exit_code == 0
    assert "case 2 of 4 (" in result.stderr
    return out


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, Any]:
    """Case → label map, of those results."""
    return label_maps(made)


def label_maps(out: Path) -> dict[str, Any]:
    return {
        path.name.removesuffix("_seg.nii.gz"): np.asarray(nibabel.load(path).dataobj)
        for path in sorted(out.glob("*_seg.nii.gz"))
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, label_XYZ in found.items():
        assert label_XYZ.any()
        assert np.array_equal(label_XYZ, expected[name]), name


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "cohort.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def statuses(out: Path) -> dict[str, str]:
    return {name: row["status"] for name, row in rows(out).items()}


def with_broken(cases: Path, folder: Path) -> Path:
    """A folder of links to the cases, and of a corrupt one."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(cases / name)
    shutil.copytree(cases / NAMES[0], folder / "broken")
    (folder / "broken" / f"{NAMES[0]}_t2.nii.gz").write_bytes(b"\x1f\x8b no NIfTI")
    for path in list((folder / "broken").iterdir()):
        path.rename(path.with_name(path.name.replace(NAMES[0], "broken")))
    return folder


# --- parts and lists ---


def test_two_parts_give_what_one_run_gives(cases: Path, expected: Any, segment: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = segment(cases, out, "--part", "1/2")
    assert "2 done, 0 skipped, 0 failed" in first.stderr
    assert list(label_maps(out)) == [NAMES[0], NAMES[2]]
    assert list(rows(out)) == [NAMES[0], NAMES[2]]
    assert "2 done, 0 skipped, 0 failed" in segment(cases, out, "--part", "2/2").stderr
    assert_same(label_maps(out), expected)
    assert statuses(out) == dict.fromkeys(NAMES, "done")
    assert (out / "index.html").read_text().count('class="done"') == 4
    assert "0 done, 1 skipped, 0 failed" in segment(cases, out, "--part", "2/4").stderr
    empty = segment(cases, out, "--part", "5/9")
    assert (empty.exit_code, empty.stderr) == (0, "0 done, 0 skipped, 0 failed\n")
    for wrong in ("0/2", "3/2", "1", "a/b"):
        assert segment(cases, out, "--part", wrong).exit_code == 2


def test_a_list_as_for_training(cases: Path, expected: Any, segment: Run, tmp_path: Path) -> None:
    first, second = (cases / name for name in NAMES[:2])
    images = {m: f"{first}/{first.name}_{m}.nii.gz" for m in ("t1", "t1ce", "t2", "flair")}
    listed = tmp_path / "list.csv"
    with listed.open("w", newline="") as file:
        table = csv.DictWriter(file, ["case", "case_id", "patient", *images])
        table.writeheader()
        table.writerows([{"case_id": "one", **images}, {"case": second, "patient": "x"}, {"case": "gone"}, {}])
    result = segment(listed, tmp_path / "out")
    assert result.exit_code == 3
    assert "2 done, 0 skipped, 2 failed" in result.stderr
    assert "gone: does not exist" in result.stderr
    assert f"{listed}, case 4: no path; expected either a case, or its files" in result.stderr
    assert_same(label_maps(tmp_path / "out"), {"one": expected[NAMES[0]], NAMES[1]: expected[NAMES[1]]})
    assert sorted(statuses(tmp_path / "out").values()) == ["done", "done", "failed", "failed"]
    again = segment(listed, tmp_path / "out")
    assert "0 done, 2 skipped, 2 failed" in again.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "a list of no cases"),
        ("{}", "expected a list of cases"),
        ("[", "cannot be read"),
        ('["a", "a"]', "again"),
    ],
)
def test_a_list_that_is_none(content: str, told: str, segment: Run, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content)
    result = segment(tmp_path / "list.json", tmp_path / "out")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


# --- ways to end, and to go on ---


def test_after_kill_9_a_second_run_does_only_what_is_missing(
    cases: Path, expected: Any, segment: Run, tiny: Path, tmp_path: Path
) -> None:
    """The same process is the first of two commands at once: whichever has a case, the other leaves it alone."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "lowmem_brats", "segment", cases, "-o", out, "--weights", tiny, "--device", "cpu"]
    with subprocess.Popen([*words, "-q"], stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: any(path.stat().st_size for path in (out / "records").glob("*.claim")), process)
            process.send_signal(signal.SIGSTOP)  # in the middle of its first case
            (claimed,) = (out / "records").glob("*.claim")
            second = segment(cases, out)
        finally:
            process.kill()
    assert second.exit_code == 0, second.stderr
    assert "3 done, 0 skipped, 0 failed, 1 left to another command" in second.stderr
    assert f"{cases / NAMES[0]}: left to another command: process {process.pid} on " in second.stderr
    assert claimed.exists()
    assert statuses(out) == dict.fromkeys(NAMES[1:], "done")
    third = segment(cases, out)
    assert third.exit_code == 0
    assert "1 done, 3 skipped, 0 failed" in third.stderr
    assert_same(label_maps(out), expected)
    assert statuses(out) == dict.fromkeys(NAMES, "done")
    assert list((out / "records").glob("*.claim")) == []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    while not condition():
        assert process is None or process.poll() is None
        time.sleep(0.002)


def test_a_label_map_without_a_record_was_not_finished(cases: Path, made: Path, segment: Run, tmp_path: Path) -> None:
    """As a process leaves it that is killed between the two; a corrected one is kept, and measured."""
    out = shutil.copytree(made, tmp_path / "out")
    for name in NAMES[:2]:
        Records(out).path(cases / name).unlink()
    (out / f"{NAMES[0]}.html").unlink()
    corrected = out / f"{NAMES[1]}_seg.nii.gz"
    image = nibabel.load(corrected)
    label_XYZ = np.asarray(image.dataobj).copy()
    label_XYZ[:] = 0
    label_XYZ[3:5, 3:5, 3:8] = 2
    nibabel.save(nibabel.Nifti1Image(label_XYZ, None, image.header), corrected)
    assert "1 done, 3 skipped, 0 failed" in segment(cases, out).stderr
    assert (out / f"{NAMES[0]}.html").exists()
    assert statuses(out) == dict.fromkeys(NAMES, "done")
    row = rows(out)[NAMES[1]]
    assert (row["wt_ml"], row["et_ml"], row["seconds"]) == ("0.02", "0.0", "")
    assert "corrected by a person" in row["warnings"]
    assert np.array_equal(np.asarray(nibabel.load(corrected).dataobj), label_XYZ)


def test_a_full_disk(cases: Path, expected: Any, segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(files.os, "fsync", full)
    result = segment(cases, out, "--part", "1/2")
    assert result.exit_code == 2
    assert result.stderr.count("_seg.nii.gz: cannot be written (No space left on device)") == 2
    assert "cohort.csv: cannot be written (No space left on device)" in result.stderr
    assert [path.name for path in out.rglob("*")] == ["records"], "nothing half-written stays"
    monkeypatch.undo()
    assert "2 done, 0 skipped, 0 failed" in segment(cases, out, "--part", "1/2").stderr
    assert_same(label_maps(out), {name: expected[name] for name in NAMES[::2]})


# --- workers ---


def test_without_the_extra_it_says_what_to_install(
    cases: Path, segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    for flags in (("--workers", 2), ("--scheduler", "tcp://127.0.0.1:1")):
        result = segment(cases, tmp_path / "out", *flags)
        assert result.exit_code == 2
        assert f"Error: {flags[0]} {flags[1]}: cannot be used" in result.stderr
        assert "Install it: pip install 'lowmem-brats[cluster]'" in result.stderr
        assert not (tmp_path / "out").exists()
    assert "one of the two" in segment(cases, tmp_path / "out", "--workers", 2, "--scheduler", "tcp://x:1").stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and two worker processes, which `--workers 2` starts; yields a client."""
    pytest.importorskip("distributed")
    with engine.local_workers(2) as client:
        yield client


@pytest.mark.filterwarnings("default")
def test_workers_give_what_one_process_gives_and_a_killed_one_costs_nothing(
    cluster: Any, cases: Path, expected: Any, segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the folder of the command, which is not that of the workers."""
    monkeypatch.chdir(tmp_path)
    out, folder = tmp_path / "out", with_broken(cases, tmp_path / "cases")
    path, victims = Records(out).path(folder / NAMES[1], ".claim"), list[int]()

    over = threading.Event()

    def kill() -> None:
        while not victims and not over.wait(0.002):
            with suppress(OSError, ValueError):
                victims.append(json.loads(path.read_text())["process"])
                os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = segment("cases", "out", "--scheduler", cluster.scheduler.address)
    over.set()
    killer.join()
    assert victims
    assert victims[0] != os.getpid()
    assert result.exit_code == 3, result.stderr
    assert "2 workers, each with its own threads" in result.stderr
    assert "4 done, 0 skipped, 1 failed: cases/broken" in result.stderr
    assert "Error: cases/broken/broken_t2.nii.gz" in result.stderr
    assert "per hour, 0 min left): " in result.stderr
    assert_same(label_maps(out), expected)
    assert statuses(out) == {"broken": "failed"} | dict.fromkeys(NAMES, "done")
    assert list((out / "records").glob("*.claim")) == []


@pytest.mark.filterwarnings("default")
def test_work_whose_worker_is_lost_twice_is_an_error(cluster: Any) -> None:
    ((code, error),) = engine.results(cluster, os._exit, [3])
    assert code == 3
    assert isinstance(error, InputError)
    assert error.found.startswith("its worker process ended while it worked on this")


def test_a_scheduler_that_is_not_there(segment: Run, cases: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    result = segment(cases, tmp_path / "out", "--scheduler", "nonsense://x")
    assert result.exit_code == 2
    assert "--scheduler nonsense://x: no scheduler answers" in result.stderr


def test_more_workers_than_fit_are_refused(segment: Run, cases: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    result = segment(cases, tmp_path / "out", "--workers", 2, "--vram", "75%")
    assert result.exit_code == 2
    assert "--workers 2: 2 × " in result.stderr
    assert not (tmp_path / "out").exists()

"""A report is read again by a training that goes on, which may change little and notes what has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from easy_cases import EASY

from lowmem_brats.config import TrainConfig
from lowmem_brats.errors import InputError
from lowmem_brats.train import report as train_report
from lowmem_brats.train.folder import RunFolder
from lowmem_brats.train.report import TrainReport, changes_since, read_run, revision


def report(config: TrainConfig = EASY) -> TrainReport:
    """A report of three cases."""
    return TrainReport(config, {"torch": "2"}, "cpu", ["a"], ["b"], ["c"])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = report(replace(EASY, fold=(2, 5), regions=("wt", "et"), allow_missing=("t1ce",), max_seconds=60.0))
    written.notes, written.patients, written.checksums = ["b: odd"], {"a": "P1", "b": "P1"}, {"a": "0f"}
    written.data, written.cache, written.processes = "cases", "cache", 2
    RunFolder(tmp_path).write_report(written)
    assert read_run(tmp_path) == written


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report(report())
    run = json.loads((tmp_path / "run.json").read_text())
    for key in ("data", "cache", "patients", "checksums", "processes"):
        del run[key]
    del run["config"]["allow_missing"]
    run["config"] |= {"transplant": 0.0, "network": run["config"]["network"] | {"members": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_run(tmp_path) == report()
    assert changes_since(read_run(tmp_path), changed(checksums={"a": "0f"})) == []


def test_a_run_with_a_setting_that_is_gone_is_not_gone_on_with(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report(report())
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"]["transplant"] = 0.3
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="unexpected keyword argument 'transplant'"):
        read_run(tmp_path)


def changed(**changes: object) -> TrainReport:
    return replace(report(), **changes)


@pytest.mark.parametrize(
    ("now", "note"),
    [
        ({}, None),
        ({"checksums": {"a": "1", "b": "2", "c": "x"}}, "c: not the files that the training began with"),
        ({"checksums": dict.fromkeys("abcdefg", "x")}, "a, b, c, d, e and others: not the files"),
        ({"checksums": {}}, None),
        ({"processes": 3}, "2 processes began the training, 3 go on with it"),
        ({"versions": {"torch": "3"}}, "torch was 2 when the training began and is 3 now"),
        ({"versions": {"torch": "2", "revision": "a"}}, None),
    ],
)
def test_what_has_changed_is_noted(now: dict[str, object], note: str | None) -> None:
    begun = {"checksums": {**dict.fromkeys("defg", "0"), "a": "1", "b": "2", "c": "3"}, "processes": 2}
    begun["checksums"] = {key: begun["checksums"][key] for key in "abcdefg"}  # type: ignore[index]
    notes = changes_since(changed(**begun), changed(**begun | now))
    assert notes == [] if note is None else notes[0].startswith(note)
    assert len(notes) <= 1


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{}", '{"config": {}}', '{"config": null}'])
def test_what_is_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        read_run(tmp_path)


def test_an_option_of_another_version_is_told(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report(report())
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"]["colour"] = "red"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="colour"):
        read_run(tmp_path)


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody; its output."""
    command = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_is_that_of_this_projects_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the repository in which somebody's environment lies, nor of a copy in it that is not tracked."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    for package in (checkout / "lowmem_brats", work / "env" / "lowmem_brats", work / "lowmem_brats"):
        (package / "train").mkdir(parents=True)
        shutil.copy(train_report.__file__, package / "train")
    for folder, tracked in ((checkout, "lowmem_brats"), (work, "notes.txt")):
        (work / "notes.txt").touch()
        git(folder, "init", "-q")
        git(folder, "add", tracked)
        git(folder, "commit", "-qm", "first")

    def revision_in(package: Path) -> str:
        monkeypatch.setattr(train_report, "__file__", str(package / "train" / "report.py"))
        return revision()

    assert revision_in(checkout / "lowmem_brats") == git(checkout, "rev-parse", "HEAD")
    assert revision_in(work / "env" / "lowmem_brats") == ""
    assert revision_in(work / "lowmem_brats") == ""
    assert revision_in(tmp_path) == ""

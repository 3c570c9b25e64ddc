"""What keeps a file from being opened is told before it is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lowmem_brats.data.readable import problem_of

OBJECT = ".git/annex/objects/3x/Kq/MD5E-s1--0a.nii.gz/MD5E-s1--0a.nii.gz"


def test_files_that_can_be_opened(tmp_path: Path) -> None:
    file = tmp_path / "x.nii"
    file.write_bytes(b"")
    link = tmp_path / "link.nii"
    link.symlink_to(file)
    assert problem_of(file) is problem_of(link) is None


@pytest.mark.parametrize("target", [f"../{OBJECT}", "../.git/modules/sub/annex/objects/a/b", f"/data/set/{OBJECT}"])
def test_content_that_was_not_fetched(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "a case"
    folder.mkdir()
    (folder / "x.nii.gz").symlink_to(target)
    found, advice = problem_of(folder / "x.nii.gz") or ("", "")
    assert found == "is a link whose content was not fetched (git-annex, DataLad)"
    assert advice == f"Fetch it first: datalad get '{folder}', or git annex get '{folder}'."


def test_fetched_content_is_no_problem(tmp_path: Path) -> None:
    content = tmp_path / OBJECT
    content.parent.mkdir(parents=True)
    content.write_bytes(b"x")
    (tmp_path / "x.nii.gz").symlink_to(OBJECT)
    assert problem_of(tmp_path / "x.nii.gz") is None


def test_a_pointer_in_the_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_text("/annex/objects/MD5E-s1--0a.nii.gz\n")
    found, advice = problem_of(tmp_path / "x.nii.gz") or ("", "")
    assert found == "is a pointer to content that was not fetched (git-annex, DataLad)"
    assert advice.startswith("Fetch it first: datalad get ")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("absent.nii", "does not exist"),
        ("file/x.nii", "does not exist"),
        ("nul\0.nii", "does not exist"),
        ("n" * 5000, "cannot be read (File name too long)"),
        ("folder", "is a folder, not a file"),
        ("pipe", "is not a regular file"),
        ("gone.nii", "is a link to nowhere.nii, which cannot be reached (No such file or directory)"),
        ("self.nii", "is a link to self.nii, which cannot be reached (Too many levels of symbolic links)"),
    ],
)
def test_what_is_no_file(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # would wait for ever if it were opened
    (tmp_path / "gone.nii").symlink_to("nowhere.nii")
    (tmp_path / "self.nii").symlink_to("self.nii")
    problem = problem_of(tmp_path / name)
    assert problem
    assert problem[0] == found
    assert problem[1].endswith(".")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.nii").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # root may read anything
    assert problem_of(tmp_path / "x.nii") == (
        "cannot be read (Permission denied)",
        "Change its permissions, or ask its owner to.",
    )


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert problem_of(tmp_path / "x.nii") == (
        "cannot be read (Permission denied)",
        "Check the path and its permissions.",
    )

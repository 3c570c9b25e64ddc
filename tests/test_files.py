"""A file is written whole or not at all, and impossible outputs are refused before any work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lowmem_brats.case_files import niftis
from lowmem_brats.errors import InputError
from lowmem_brats.files import check_output, replace_when_complete


@pytest.fixture(params=["new", "existing"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path to write to, with and without a file there already."""
    path = tmp_path / "x_seg.nii.gz"
    if request.param == "existing":
        path.write_text("old")
    return path


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def write_half(path: Path, error: BaseException) -> None:
    with replace_when_complete(path) as partial:
        partial.write_text("half")
        raise error


def test_a_complete_file_replaces(target: Path) -> None:
    with replace_when_complete(target) as partial:
        partial.write_text("new")
        assert partial.parent == target.parent  # renaming within one file system is atomic
        assert partial.name.endswith(target.name)  # nibabel and Pillow choose the format by suffix
        assert niftis(target.parent) == [p for p in [target] if p.exists()]  # nobody mistakes it for an image
    assert state(target.parent) == {target.name: "new"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_a_failing_write_leaves_all_as_it_was(target: Path, code: int) -> None:
    before = state(target.parent)
    with pytest.raises(InputError, match=rf"x_seg\.nii\.gz: cannot be written \({os.strerror(code)}\).*another place"):
        write_half(target, OSError(code, os.strerror(code)))
    assert state(target.parent) == before


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_an_interrupt_passes_through_and_leaves_all_as_it_was(target: Path, interrupt: type[BaseException]) -> None:
    before = state(target.parent)
    with pytest.raises(interrupt):
        write_half(target, interrupt())
    assert state(target.parent) == before


def test_a_real_size_limit_is_reported(target: Path) -> None:
    resource = pytest.importorskip("resource")
    before = state(target.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"), replace_when_complete(target) as partial:
            partial.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state(target.parent) == before


def test_a_target_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(InputError, match="cannot be written"), replace_when_complete(tmp_path / "x.nii") as partial:
        partial.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii"]


def test_output_may_be_written(target: Path) -> None:
    check_output(target, overwrite=True)
    target.unlink(missing_ok=True)
    check_output(target, overwrite=False)


def test_existing_output_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "x.nii").touch()
    with pytest.raises(InputError, match=r"x\.nii: exists already; .*--overwrite"):
        check_output(tmp_path / "x.nii", overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_in_no_folder(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere" / "x.nii", tmp_path / "file" / "x.nii"):
        with pytest.raises(InputError, match="is not a folder; expected an existing folder"):
            check_output(path, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_is_a_folder(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(InputError, match="is a folder; expected a file name"):
        check_output(tmp_path, overwrite)


def test_output_folder_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the answer is the system's only for others.
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    with pytest.raises(InputError, match="is not writable; expected a folder you may write to"):
        check_output(tmp_path / "x.nii", overwrite=True)

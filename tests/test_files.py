"""A file is written whole or not at all, and impossible outputs are refused before any work."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lowmem_brats.data.case_files import niftis
from lowmem_brats.errors import InputError
from lowmem_brats.files import check_apart, check_output, replace_when_complete, write_text


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


# --- the temporary file ---


def test_the_temporary_name_cannot_be_foreseen_and_follows_no_link(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with replace_when_complete(tmp_path / "x.nii") as partial:
            names.add(partial.name)
            assert partial.is_file()  # made by us before anyone can put a link there
            assert not partial.is_symlink()
            assert str(os.getpid()) not in partial.name.split("-")
    assert len(names) == 3


@pytest.mark.skipif(os.name == "nt", reason="no umask on Windows")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("overwrite", [False, True])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int, overwrite: bool) -> None:
    before = os.umask(umask)
    try:
        with replace_when_complete(tmp_path / "x.nii", overwrite) as partial:
            partial.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "x.nii").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["n" * 248 + ".nii.gz", "名" * 82 + ".nii.gz", "n" * 251 + ".NII"])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    with replace_when_complete(tmp_path / name) as partial:
        assert partial.name.endswith(name[-7:].lower())
        partial.write_text("new")
    assert state(tmp_path) == {name: "new"}


def test_a_file_is_on_the_disk_before_it_has_its_name(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    with replace_when_complete(target) as partial:
        partial.write_text("new")
    assert order == ["sync", "rename"]


# --- two that write one file ---


def no_hard_links(source: object, target: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["links", "no links"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and one without."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_hard_links)


def write_beside_another(path: Path) -> None:
    with replace_when_complete(path, overwrite=False) as partial:
        partial.write_text("ours")
        path.write_text("theirs")


@pytest.mark.usefixtures("file_system")
def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    with pytest.raises(InputError, match=r"x\.nii: exists already; .*--overwrite"):
        write_beside_another(path)
    assert state(tmp_path) == {"x.nii": "theirs"}
    with replace_when_complete(path, overwrite=True) as partial:
        partial.write_text("ours")
    assert state(tmp_path) == {"x.nii": "ours"}


@pytest.mark.usefixtures("file_system")
def test_a_new_file_is_written_without_overwrite(tmp_path: Path) -> None:
    with replace_when_complete(tmp_path / "x.nii", overwrite=False) as partial:
        partial.write_text("ours")
    assert state(tmp_path) == {"x.nii": "ours"}


@pytest.mark.usefixtures("file_system")
def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    together, won = threading.Barrier(8), []

    def write(number: int) -> None:
        with suppress(InputError):
            with replace_when_complete(tmp_path / "x.nii", overwrite=False) as partial:
                partial.write_text(str(number))
                together.wait()
            won.append(number)

    writers = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert state(tmp_path) == {"x.nii": str(*won)}


def test_a_claimed_name_is_given_back_where_renaming_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(os, "replace", fail)
    with (
        pytest.raises(InputError, match="cannot be written"),
        replace_when_complete(tmp_path / "x.nii", overwrite=False) as partial,
    ):
        partial.write_text("ours")
    assert state(tmp_path) == {}


# --- before any work ---


def test_outputs_lie_apart_from_each_other_and_from_inputs(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    taken = {a}
    check_apart([b], [c], taken)
    assert taken == {a, b}
    for outputs, inputs, match in (
        ([a], [], "a: is another output"),
        ([c], [c], "c: is an input"),
        ([c, c], [], "c: is another output"),
        ([c], [b], "b: is an input"),  # an output of before that would be read now
    ):
        with pytest.raises(InputError, match=match):
            check_apart(outputs, inputs, set(taken))


def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no name for a file here .*shorter"):
        check_output(tmp_path / ("n" * 300), overwrite=True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device or a pipe"):
        check_output(tmp_path / "pipe", overwrite)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_nowhere_is_a_file_already(tmp_path: Path) -> None:
    (tmp_path / "x.nii").symlink_to("nowhere")
    with pytest.raises(InputError, match="exists already"):
        check_output(tmp_path / "x.nii", overwrite=False)
    check_output(tmp_path / "x.nii", overwrite=True)


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


def test_a_text_keeps_its_line_ends_and_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_text(path, "a\r\nä\udce9\n")
    assert path.read_bytes() == b"a\r\n\xc3\xa4\\udce9\n"
    with pytest.raises(InputError, match="exists already"):
        write_text(path, "b", overwrite=False)
    assert path.read_bytes().startswith(b"a"), "as it was"


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_is_a_folder(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(InputError, match="is a folder; expected a file name"):
        check_output(tmp_path, overwrite)


def test_output_folder_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the answer is the system's only for others.
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    with pytest.raises(InputError, match="is not writable; expected a folder you may write to"):
        check_output(tmp_path / "x.nii", overwrite=True)

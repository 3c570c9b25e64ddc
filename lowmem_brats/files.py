"""Write files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowmem_brats.errors import InputError

ENDING = 16
"""Characters of a name that its temporary name ends with: enough for every suffix, and never too long."""
_WHAT_TO_DO = "Nothing was left behind; free disk space or choose another place."


@contextmanager
def replace_when_complete(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a new file beside `path` to write to; rename it into place at the end, remove it on any error or interrupt.

    Nobody can foresee its name, which ends as `path` does, in small letters, as libraries know a format by. Without
    `overwrite`, a file that has appeared at `path` meanwhile stays as it is. Raises InputError for that, and when the
    disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".partial-{secrets.token_hex(8)}-{path.name[-ENDING:].lower()}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as any new file: less the umask
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            os.replace(partial, path)
        else:
            _rename_to_new(partial, path)
    except OSError as error:
        raise InputError(
            path, f"cannot be written ({error.strerror or error})", "a complete write", _WHAT_TO_DO
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, overwrite: bool = True) -> None:
    """Write a text file as UTF-8, with the line ends that it has, as `replace_when_complete` does.

    What UTF-8 cannot hold, as in names of files from other systems, is written as `\\udce9`.
    """
    with replace_when_complete(path, overwrite) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _rename_to_new(partial: Path, path: Path) -> None:
    """Give a complete file its name in one step that fails where the name is taken."""
    try:
        try:
            os.link(partial, path)  # the other name is removed by the caller
        except FileExistsError:
            raise
        except OSError:  # no hard links there, as on exFAT: claim the name, then replace the claim
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                os.replace(partial, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise _exists_already(path) from error


def _exists_already(path: Path) -> InputError:
    return InputError(path, "exists already", "a new file", "Pass --overwrite, or choose another place.")


def check_output(path: Path, overwrite: bool) -> None:
    """Make sure, before any work, that `path` may be written. Raises InputError."""
    folder = path.parent
    if not os.path.isdir(folder):
        raise InputError(path, f"{folder} is not a folder", "an existing folder", "Create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise InputError(path, f"{folder} is not writable", "a folder you may write to", "Choose another.")
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:  # a name too long, or of characters that this file system has not
        found = f"no name for a file here ({error.strerror})"
        raise InputError(path, found, "a name that the file system takes", "Choose another, shorter one.") from error
    if os.path.isdir(path):
        raise InputError(path, "is a folder", "a file name", "Name a file inside it.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(path, "is a device or a pipe", "a file name", "Name a file.")
    if not overwrite:
        raise _exists_already(path)


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path], taken: set[Path] | None = None) -> None:
    """Raise InputError if two outputs are one file, or an output is an input: not even --overwrite means that.

    `taken`: where the command's other outputs lie, resolved; these are added.
    """
    read, taken = {path.resolve() for path in inputs}, set() if taken is None else taken
    for path in (*(read & taken), *outputs):
        place = path.resolve()
        if place in read or place in taken:
            found = f"is {'an input' if place in read else 'another output'} of the same command"
            raise InputError(path, found, "a file of its own for each output", "Choose another name.")
        taken.add(place)


def add_to_checksum(digest: hashlib.blake2b, path: Path) -> None:
    """Feed a file's bytes to a checksum. Raises InputError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "a NIfTI file", "Check the file.") from error

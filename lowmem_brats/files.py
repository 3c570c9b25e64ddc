"""Write files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowmem_brats.errors import InputError


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it into place at the end, remove it on any error or interrupt.

    The temporary name ends as `path` does, so that format is still recognised by suffix.
    Raises InputError when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            path, f"cannot be written ({error.strerror or error})", "a complete write", _WHAT_TO_DO
        ) from error
    finally:
        with suppress(OSError):  # a name too long to be written is too long to be removed
            partial.unlink(missing_ok=True)


_WHAT_TO_DO = "Nothing was left behind; free disk space or choose another place."


def check_output(path: Path, overwrite: bool) -> None:
    """Make sure, before any work, that `path` may be written. Raises InputError."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(path, f"{folder} is not a folder", "an existing folder", "Create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise InputError(path, f"{folder} is not writable", "a folder you may write to", "Choose another.")
    if path.is_dir():
        raise InputError(path, "is a folder", "a file name", "Name a file inside it.")
    if path.exists() and not overwrite:
        raise InputError(path, "exists already", "a new file", "Pass --overwrite, or another name.")


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if two outputs are one file, or an output is an input: not even --overwrite means that."""
    taken = {path.resolve(): "an input" for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            found = f"is {taken[path.resolve()]} of the same command"
            raise InputError(path, found, "a file of its own for each output", "Choose another name.")
        taken[path.resolve()] = "another output"

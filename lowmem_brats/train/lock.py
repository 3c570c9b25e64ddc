"""One training at a time in a run folder.

The lock is the operating system's own, on a small file, because that ends with the process, however it ends: nobody has
to ask whether a process of that number still runs, and is the same one. The file says who holds it. A file that nobody
has locked but that names somebody is what a killed process left behind; or, if that was on another machine, it may run
there still, where the two machines do not see each other's locks.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lowmem_brats.errors import InputError

LOCK = "training.lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
"""Errors of `lock_byte` which mean that another process holds the lock; others: the file system has no locks."""
_EXPECTED = "one training at a time in a folder"
_BEHIND = 2**30
"""The byte that is locked on Windows lies behind the text: there, a locked byte cannot be read."""


class InUseError(InputError):
    """Another training writes to the folder, or may do so."""


@contextmanager
def hold(folder: Path) -> Iterator[list[str]]:
    """Keep all other trainings out of a folder while the block runs; the folder is made if it is missing.

    Yields notes: that a killed training's lock was taken over, or that the file system has no locks. A folder that was
    made for it and is empty in the end is removed. Raises InUseError where another training holds the folder, and
    InputError where it cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file, notes = _lock(path)
        except OSError as error:
            found = f"cannot be made or written to ({error.strerror or error})"
            raise InputError(folder, found, "a folder to train in", "Choose another.") from error
        try:
            yield notes
        finally:
            release(file, path)
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


def _lock(path: Path) -> tuple[int, list[str]]:
    """Lock the file and write this process into it; returns its descriptor, and notes."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            notes = _take(file, path)
            if is_at(file, path):  # else the training that held it has ended and removed it meanwhile
                me = {"process": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                os.write(file, json.dumps(me).encode())
                return file, notes
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _take(file: int, path: Path) -> list[str]:
    """Lock an open file, unless it is another training's; returns notes."""
    trouble = lock_byte(file)
    os.lseek(file, 0, os.SEEK_SET)
    holder, host = _holder(os.read(file, 4096))
    if trouble and trouble.errno in TAKEN:
        advice = "Wait until it is over, or choose another folder with -o."
        raise InUseError(path.parent, f"{holder or 'another process'} trains in it", _EXPECTED, advice) from trouble
    if holder and (trouble or host != platform.node()):
        found = f"{holder} has not said that it ended"
        raise InUseError(path.parent, found, _EXPECTED, f"If its training is over, remove {path}.") from trouble
    if trouble:
        return [f"{path.parent} cannot be locked ({trouble.strerror}): see that no other training writes to it"]
    return [f"taken over from {holder}, which was killed"] if holder else []


def _holder(text: bytes) -> tuple[str, str]:
    """Whom a lock file names, and on which machine; nothing where nobody holds it."""
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['host']} (since {holder['since']})", str(holder["host"])
    except (ValueError, KeyError, TypeError):
        return "an unknown process" if text.strip() else "", ""


def lock_byte(file: int) -> OSError | None:
    """Lock an open file for this process alone, at once; returns why it could not be done."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, _BEHIND, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def release(file: int, path: Path) -> None:
    """Remove the file and let go of it."""
    with suppress(OSError):
        os.ftruncate(file, 0)
    if sys.platform == "win32":  # there, a file cannot be removed while it is open
        os.close(file)
        with suppress(OSError):
            path.unlink()
    else:
        with suppress(OSError):
            if is_at(file, path):  # and not another's, in a folder of the same name
                path.unlink()
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one that lies at `path`."""
    return path.exists() and os.path.samestat(os.fstat(file), path.stat())

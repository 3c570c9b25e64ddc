"""One process at a time works on a case, however many commands segment into one folder.

A process claims a case by a small file that says who it is, and keeps the operating system's lock on it, which ends
with the process. A claim is left behind if that lock is free and its process was of this machine or of this same
command, or if the claim is old, because the locks of another machine cannot always be seen. Should two processes work
on one case all the same, nothing is damaged: each writes whole files, and both make the same.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lowmem_brats.train.lock import TAKEN, is_at, lock_byte, release

OLD_S = 3600
"""Seconds after which a claim of another machine counts as left behind; a case takes seconds to minutes."""


@contextmanager
def claim(path: Path, run: str) -> Iterator[str]:
    """Keep other processes from a case while the block runs; `path`: the claim's file, `run`: names this command.

    Yields an empty text, or who works on the case, which then is not to be touched. Raises OSError.
    """
    file, holder = _take(path, run)
    try:
        yield holder
    finally:
        if file is not None:
            release(file, path)


def _take(path: Path, run: str) -> tuple[int | None, str]:
    """The descriptor of the claim's file and an empty text; or None and who holds the claim."""
    while True:
        file, new = _open(path)
        if file is None:
            continue
        try:
            trouble = lock_byte(file)
            while new and trouble and trouble.errno in TAKEN:  # for a moment, by a process that looks at the claim
                time.sleep(0.01)
                trouble = lock_byte(file)
            if is_at(file, path):
                if not new and (holder := _holder(file, run, bool(trouble and trouble.errno in TAKEN))):
                    os.close(file)
                    return None, holder
                _sign(file, run)
                return file, ""
        except BaseException:
            if new:
                release(file, path)
            else:
                os.close(file)
            raise
        os.close(file)  # whoever held the claim has ended and removed it meanwhile


def _open(path: Path) -> tuple[int | None, bool]:
    """The claim's file and whether it was made here; None where somebody has just removed it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False
        return None, False


def _holder(file: int, run: str, locked: bool) -> str:
    """Who holds a claim that was there before; empty if it is left behind."""
    named: dict[str, Any] = {}
    os.lseek(file, 0, os.SEEK_SET)  # on Windows locking has moved it
    with suppress(ValueError, TypeError):
        named = dict(json.loads(os.read(file, 4096)))
    who = f"process {named.get('process', '?')} on {named.get('host', '?')} (since {named.get('since', '?')})"
    if locked:
        return who
    here = named.get("host") == platform.node() or named.get("run") == run
    return "" if here or time.time() - os.fstat(file).st_mtime > OLD_S else who


def _sign(file: int, run: str) -> None:
    """Write into a claim's file whose it is."""
    me = {"process": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "run": run}
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, json.dumps(me).encode())

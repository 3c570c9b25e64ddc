"""Say why a file cannot be opened, before anything is read, and what to do about it."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

_POINTER = b"/annex/objects/"
"""First bytes of a file that git-annex puts in place of content that was not fetched, where it cannot make links."""


def problem_of(path: Path) -> tuple[str, str] | None:
    """Return why a file cannot be opened and what to do about it; None if it can be opened. Never raises."""
    folder = shlex.quote(str(path.parent))
    fetch = f"Fetch it first: datalad get {folder}, or git annex get {folder}."
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        if os.path.islink(path):
            target = Path(os.readlink(path)).as_posix()
            if "annex/objects" in target:
                return "is a link whose content was not fetched (git-annex, DataLad)", fetch
            return (
                f"is a link to {target}, which cannot be reached ({reason})",
                "Put the file itself there, or a right link.",
            )
        if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            return "does not exist", "Check the path."
        return f"cannot be read ({reason})", "Check the path and its permissions."
    if stat.S_ISDIR(mode):
        return "is a folder, not a file", "Name the file in it."
    if not stat.S_ISREG(mode):
        return "is not a regular file", "Put the file itself there."
    if not os.access(path, os.R_OK):
        return "cannot be read (Permission denied)", "Change its permissions, or ask its owner to."
    if size < 1024 and _begins_like_a_pointer(path):
        return "is a pointer to content that was not fetched (git-annex, DataLad)", fetch
    return None


def _begins_like_a_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do. Never raises."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False

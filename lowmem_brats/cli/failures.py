"""Turn every error that ends a command or a case into a message that the user can act on."""

from __future__ import annotations

import traceback
from pathlib import Path

from lowmem_brats.errors import InputError, LowmemError

PLACES = 4
"""Number of places in the code that the message of an unforeseen error names."""


class UnforeseenError(LowmemError):
    """A mistake in this program."""


def explain(error: Exception, where: object) -> LowmemError:
    """Return any error as a LowmemError; `where` it happened is used if the error does not say so itself."""
    if isinstance(error, LowmemError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        advice = "Close other programs, or take a smaller case or batch."
        return InputError(where, "the memory of this machine ran out", "enough of it", advice)
    if isinstance(error, OSError):
        advice = "Check the path, its permissions and the space on the disk."
        return InputError(error.filename or where, error.strerror or text, "a file or folder that can be used", advice)
    said = text.splitlines()[0][:200] if text else "no message"
    frames = traceback.extract_tb(error.__traceback__)[: -PLACES - 1 : -1]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    found = f"unexpected error, {type(error).__name__}: {said} (at {places})"
    return UnforeseenError(where, found, "none", "This is a mistake in the program: please report it with this line.")


def full_text(error: BaseException) -> str:
    """The traceback of an error, for a report."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))

"""`python -m lowmem_brats`, and the console script: the commands, which a signal ends as orderly as Ctrl-C does."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from lowmem_brats import cli

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Signals that would end a process at once, with half a file left behind."""


def main() -> None:
    """Run the command that this process was started with."""
    handled = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores SIGHUP
    for number in handled:
        signal.signal(number, _leave)
    sys.unraisablehook = _raise_again
    try:
        cli.main()
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _raise_again(dropped: Any) -> None:
    """Python drops an exception in a finalizer, of which a network runs many: let its signal come once more."""
    if isinstance(dropped.exc_value, SystemExit | KeyboardInterrupt):
        code = getattr(dropped.exc_value, "code", None)
        number = code - 128 if isinstance(code, int) and code > 128 else signal.SIGINT
        threading.Timer(0.01, signal.raise_signal, [number]).start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()

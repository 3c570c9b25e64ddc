"""`python -m lowmem_brats`, and the console script: the commands, which every signal ends as orderly as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from lowmem_brats import cli

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Signals that end a process; most of them would do so at once, and leave half a file behind."""
AGAIN_S = 0.5


def main() -> None:
    """Run the command that this process was started with."""
    usual = {number: signal.getsignal(number) for number in ENDING}
    arrived = set()

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        arrived.add(number)
        # A finalizer drops an exception, and a library may turn it into another: it is raised until the command ends.
        again = threading.Timer(AGAIN_S, _send, [number])
        again.daemon = True
        again.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number, handler in usual.items():
        if handler is not signal.SIG_IGN:  # as `nohup` sets it
            signal.signal(number, leave)
    sys.unraisablehook = _show_dropped
    try:
        cli.main()
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for number, handler in usual.items():
            signal.signal(number, signal.SIG_IGN if number in arrived else handler)


def _send(number: int) -> None:
    """Send this process a signal that interrupts what its main thread waits for; Windows knows no such."""
    if os.name == "nt":
        signal.raise_signal(number)
    else:
        os.kill(os.getpid(), number)


def _show_dropped(dropped: Any) -> None:
    if not isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()

"""End a command in order when the process is told to end: nothing half-written stays, as after Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Signals that would end a process at once."""
AGAIN_S = 0.5
"""Seconds after which a signal whose exception was dropped is sent again."""


@contextmanager
def ending_in_order() -> Iterator[None]:
    """End the block by an exception when a signal arrives: KeyboardInterrupt for Ctrl-C, SystemExit for the others.

    Signals that the parent process ignores, as `nohup` does, are ignored. To be used in the main thread.
    """
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    arrived = set[int]()

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        arrived.add(number)
        # A finalizer drops an exception, and a library may turn it into another: it is raised until the block ends.
        again = threading.Timer(AGAIN_S, _send, [number])
        again.daemon = True
        again.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number, handler in usual.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    sys.unraisablehook = _show_dropped
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for number, handler in usual.items():
            signal.signal(number, signal.SIG_IGN if number in arrived else handler)


def _send(number: int) -> None:
    """Send this process a signal; except on Windows it interrupts what the main thread waits for."""
    if os.name == "nt":
        signal.raise_signal(number)
    else:
        os.kill(os.getpid(), number)


def _show_dropped(dropped: Any) -> None:
    if not isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(dropped)


def end_at_once_under_torchrun() -> None:
    """Undo `ending_in_order` for torchrun's processes: they wait for each other where no exception can be raised."""
    from torch.distributed import is_available, is_torchelastic_launched

    if is_available() and is_torchelastic_launched():
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)

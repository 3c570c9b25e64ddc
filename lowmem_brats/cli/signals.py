"""End a command in order when the process is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_ending_in_order() -> Iterator[None]:
    """Leave the block as an error would when the process is told to end, so that nothing half-written stays.

    Not under torchrun, whose processes wait for each other where no such signal is heard.
    """
    from torch.distributed import is_available, is_torchelastic_launched

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    alone = (
        not (is_available() and is_torchelastic_launched()) and threading.current_thread() is threading.main_thread()
    )
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if alone and hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)

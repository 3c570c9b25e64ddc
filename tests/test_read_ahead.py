"""One task is worked on while the one before is in use, and no more than one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lowmem_brats.read_ahead import read_ahead


def test_results_come_in_order_and_errors_with_their_own_task() -> None:
    def failing() -> int:
        raise KeyError("second")

    first, second, third = read_ahead([lambda: 1, failing, lambda: 3])
    assert (first.result(), third.result()) == (1, 3)
    with pytest.raises(KeyError, match="second"):
        second.result()


def test_no_task_no_future() -> None:
    assert list(read_ahead([])) == []


def test_exactly_one_is_read_ahead() -> None:
    began = [threading.Event() for _ in range(3)]

    def task(number: int) -> Callable[[], int]:
        def run() -> int:
            began[number].set()
            return number

        return run

    for number, future in enumerate(read_ahead(map(task, range(3)))):
        assert future.result() == number
        if number == 0:
            assert began[1].wait(timeout=60), "the next is read while this one is in use"
            assert not began[2].is_set(), "but the one after that is not"


def test_who_stops_early_leaves_nothing_running() -> None:
    before = threading.active_count()
    for future in read_ahead(map(lambda number: lambda: number, range(100))):
        if future.result() == 1:
            break
    del future
    assert threading.active_count() == before

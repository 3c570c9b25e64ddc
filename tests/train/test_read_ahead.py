"""One task is worked on while the one before is in use, and no more than one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lowmem_brats.train.read_ahead import read_ahead


def test_results_come_in_order_and_errors_in_their_place() -> None:
    def failing() -> int:
        raise KeyError("second")

    results = read_ahead([lambda: 1, failing, lambda: 3])
    assert next(results) == 1
    with pytest.raises(KeyError, match="second"):
        next(results)


def test_no_task_no_result() -> None:
    assert list(read_ahead([])) == []


def test_exactly_one_is_read_ahead() -> None:
    began = [threading.Event() for _ in range(3)]

    def task(number: int) -> Callable[[], int]:
        def run() -> int:
            began[number].set()
            return number

        return run

    for number, result in enumerate(read_ahead(map(task, range(3)))):
        assert result == number
        if number == 0:
            assert began[1].wait(timeout=60), "the next is read while this one is in use"
            assert not began[2].is_set(), "but the one after that is not"


def test_who_stops_early_leaves_nothing_running() -> None:
    before = threading.active_count()
    results = read_ahead(map(lambda number: lambda: number, range(100)))
    assert [next(results), next(results)] == [0, 1]
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before

"""Reading done in a thread while what was read before is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Read = TypeVar("Read")


def read_ahead(tasks: Iterable[Callable[[], Read]]) -> Iterator[Future[Read]]:
    """The tasks' futures in order, of which only the next one is worked on while one is in use.

    A task's exception is raised by its future's `result()`.
    """
    with ThreadPoolExecutor(1) as reader:
        futures = (reader.submit(task) for task in tasks)
        current = next(futures, None)
        while current is not None:
            following = next(futures, None)
            yield current
            current = following

"""Reading done in a thread while what was read before is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Read = TypeVar("Read")


def read_ahead(tasks: Iterable[Callable[[], Read]]) -> Iterator[Read]:
    """The tasks' results in order; while one is in use, the next task is worked on, and no other.

    A task's exception is raised where its result would come.
    """
    with ThreadPoolExecutor(1) as reader:
        futures = (reader.submit(task) for task in tasks)
        current = next(futures, None)
        while current is not None:
            following = next(futures, None)
            yield current.result()
            current = following

"""Hand work to Dask's workers: to processes on this machine, or to those of a running scheduler.

Only paths, settings and plain values travel. A worker gets one piece of work at a time, so whatever ends it costs that
piece alone; Dask then gives it to another worker once more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from lowmem_brats.errors import InputError

Item = TypeVar("Item")
RETRIES = 1
"""How often work is given to another worker if one is lost; of a running scheduler it is that scheduler's setting."""
PATIENCE_S = 60
"""Seconds in which a first worker has to be there."""
_CLUSTER = "pip install 'lowmem-brats[cluster]'"


@contextmanager
def local_workers(count: int) -> Iterator[Any]:
    """Start `count` worker processes on this machine, and end them with the block; yields a Dask client.

    Each may hold its share of the host's memory; Dask ends one that holds more. Raises InputError where
    dask.distributed is not installed.
    """
    dask, distributed = dask_for(f"--workers {count}")
    settings = {
        "distributed.scheduler.allowed-failures": RETRIES,
        "distributed.worker.profile.enabled": False,
        # Dask's own makes malloc give memory back after every tensor: a sixth more processor time.
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
        "distributed.logging": {"distributed": "critical"},
    }
    with (
        tempfile.TemporaryDirectory(prefix="lowmem-brats-") as scratch,
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",  # no port is open to other machines
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs="CRITICAL",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def workers_of(address: str) -> Iterator[Any]:
    """Connect to a running scheduler, whose workers stay when the block ends; yields a Dask client.

    Raises InputError where dask.distributed is not installed, where no scheduler answers, or where it has no worker.
    """
    _, distributed = dask_for(f"--scheduler {address}")
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        found = f"no scheduler answers ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        advice = "Start one: dask scheduler."
        raise InputError(f"--scheduler {address}", found, "a running Dask scheduler", advice) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError as error:
            found = f"no worker within {PATIENCE_S} seconds"
            advice = f"Start some: dask worker {address} --nthreads 1."
            raise InputError(f"--scheduler {address}", found, "at least one worker", advice) from error
        yield client


def results(client: Any, work: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Yield each item with what `work` made of it on some worker, or the error that came instead, as they come.

    There are as many items under way as there are workers; those that join later get work too. Raises InputError where
    the scheduler is lost.
    """
    _, distributed = dask_for("")
    waiting, under_way = iter(items), dict[Any, Item]()
    done = distributed.as_completed([], with_results=False)
    try:
        while True:
            free = max(len(client.nthreads()), 1) - len(under_way)
            for item in islice(waiting, max(free, 0)):
                future = client.submit(work, item, pure=False)
                under_way[future] = item
                done.add(future)
            if not under_way:
                return
            future = next(done)
            item = under_way.pop(future)
            error = future.exception()
            yield item, future.result() if error is None else _explained(error)
    except CancelledError as error:
        found, advice = "the scheduler was lost", "Start it again; the same command goes on with the rest."
        raise InputError("--scheduler", found, "a scheduler that goes on", advice) from error
    finally:
        client.cancel(list(under_way))


def _explained(error: BaseException) -> BaseException:
    """The error of a piece of work; where its workers were lost, in words."""
    if type(error).__name__ != "KilledWorker":
        return error
    found = f"its worker process ended while it worked on this ({getattr(error, 'last_worker', 'unknown')}), repeatedly"
    advice = "Often the memory of the machine ran out: start fewer workers."
    return InputError("worker", found, "a worker that goes on", advice)


def dask_for(wanted_by: str) -> tuple[Any, Any]:
    """The modules dask and distributed. Raises InputError, with what to install for `wanted_by`."""
    try:
        import dask
        import distributed
    except ImportError as error:
        expected = "dask.distributed, which is an extra"
        raise InputError(wanted_by, f"cannot be used ({error})", expected, f"Install it: {_CLUSTER}") from error
    return dask, distributed

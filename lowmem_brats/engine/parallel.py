"""Training on several devices at once, one process each, as `torchrun` starts them; with one process all is a no-op.

Gradients are added up here and not by torch's DistributedDataParallel: its buckets would need the parameters' bytes
once more on every device, and it averages where batch Dice needs the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(days=1)
"""How long processes wait for the first, which reads the cases and validates alone; torch's 30 minutes are too few."""


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that `torchrun` started for as long as the block runs; alone without it."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _running() else 0


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _running() else 1


def local_device(requested: str) -> str:
    """The card of this process: `auto` and `cuda` become `cuda:N`, N its number on its machine."""
    if size() == 1 or requested not in ("auto", "cuda") or not torch.cuda.is_available():
        return requested
    return f"cuda:{distributed.get_node_local_rank()}"


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes."""
    if size() > 1:
        distributed.all_reduce(tensor)


def furthest(progress: float) -> float:
    """The largest of the processes' figures, so that all stop together."""
    if size() == 1:
        return progress
    largest = torch.tensor(progress, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return float(largest)


def first(value: Any) -> Any:
    """What the first process holds, in every process."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def wait() -> None:
    """Go on when every process is here."""
    if size() > 1:
        distributed.barrier()

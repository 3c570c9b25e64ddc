"""What a training step can concede to need less memory, and what each concession costs in time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.memory.footprint import stage_bytes

RECOMPUTING = {"none": 0.0, "widest": 0.10, "all": 0.28}
"""Stages that are recomputed in the backward pass → the time that this adds to a step, as a share of it.

The share is that of the stages' operations in a step of the U-Net, with a backward pass of twice the forward pass."""

TWO_PASSES = 0.33
"""Share of a step's time that micro-batches of any size add: one more forward pass, a third of a step."""

STATE_ON_HOST = 1.5
"""The time that moving the optimizer's state adds to a step, as a multiple of the time that one slice takes of a step.

An estimate for TransUNet on a small card: its moments take 0.28 s to the card and back, over PCIe 3 with 8 lanes at 6
GB/s, and a slice of 240 × 240 takes 0.2 s, for 0.2 TFLOP at 1 TFLOP/s. A U-Net has fewer parameters per operation."""


class Row(NamedTuple):
    """A combination of concessions."""

    recompute: str
    """A key of RECOMPUTING."""
    micro_batch: int
    """Slices on the device at once."""
    state_on_host: bool
    """Whether the optimizer's state lies in host memory."""
    relative_time: float
    """Estimated time of a step, relative to a step that concedes nothing."""


def training_rows(batch: int, micro_batches: bool) -> list[Row]:
    """All combinations of concessions, the fastest first.

    `batch`: slices per step; `micro_batches`: whether the batch may be cut into parts.
    """
    halvings = [math.ceil(batch / 2**i) for i in range(1, batch.bit_length() + 1)]
    smaller = sorted({size for size in halvings if size < batch}, reverse=True) if micro_batches else []
    rows = [
        Row(recompute, size, on_host, round(1 + cost + passes + on_host * STATE_ON_HOST / batch, 2))
        for on_host in (False, True)
        for passes, sizes in ((0.0, [batch]), (TWO_PASSES, smaller))
        for recompute, cost in RECOMPUTING.items()
        for size in sizes
    ]
    return sorted(rows, key=lambda row: row.relative_time)


def stages_to_recompute(
    network: NetworkConfig, size: tuple[int, ...], recompute: str, dtype: torch.dtype, device: torch.device
) -> tuple[str, ...]:
    """The stages that a key of RECOMPUTING stands for, in the network's order.

    `widest` are the largest ones that together spare at least half of what `all` spares. The last stage is in neither:
    its backward pass comes first, so everything that it would recompute is needed at once.
    """
    spared = stage_bytes(network, size, dtype, device)
    candidates = list(spared)[:-1]
    if recompute != "widest":
        return tuple(candidates) if recompute == "all" else ()
    chosen: set[str] = set()
    for name in sorted(candidates, key=lambda name: -spared[name]):
        if 2 * sum(spared[n] for n in chosen) >= sum(spared[n] for n in candidates):
            break
        chosen.add(name)
    return tuple(name for name in candidates if name in chosen)

"""What each of several worker processes on one machine may use: its threads and its memory budget."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from lowmem_brats.config import BRAIN_SHAPE, NetworkConfig
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.bank import plan_members
from lowmem_brats.memory.budget import MIB, MemoryBudget, format_budget, format_bytes, parse_budget
from lowmem_brats.memory.device import host_bytes
from lowmem_brats.networks import usual_size


def threads_of_worker(workers: int) -> int:
    """Threads for each of several workers, so that they do not fight for the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // workers, 1)


def vram_of_worker(
    vram: str, workers: int, device: torch.device, networks: Sequence[NetworkConfig], precision: str
) -> str:
    """The budget of each of several workers, as `--vram` takes it; `vram`: as the user gave it, for each worker.

    `max` of a card is divided among them; on the CPU it is no limit. Raises BudgetError, with the arithmetic, where the
    budgets of all are more than there is, or where a whole slice of BraTS does not fit one of them.
    """
    on_cpu = device.type == "cpu"
    total = host_bytes() if on_cpu else cuda.available_bytes(device)
    reserve = 0 if on_cpu else cuda.measure_context(device) + cuda.WORKSPACE
    shared = vram.strip().lower() == "max"
    if total is None or (on_cpu and shared):
        return vram
    each = total // workers // MIB * MIB if shared else parse_budget(vram, device.type, total, reserve).total_bytes or 0
    where = f"--workers {workers}"
    if workers * each > total:
        found = f"{workers} × {format_bytes(each)} = {format_bytes(workers * each)}"
        expected = f"at most {format_bytes(total)}, which {'this machine has' if on_cpu else 'the card has free'}"
        raise BudgetError(where, found, expected, f"Start at most {total // each}, or give each less with --vram.")
    try:
        # Strides are powers of two, so the largest size suits all.
        size = max(usual_size(network) for network in networks)
        arguments = MemoryBudget(each, reserve), str(device), precision
        plan_members(networks, size, *arguments, brain_ZHW=BRAIN_SHAPE[::-1])
    except BudgetError as error:
        found = f"{format_bytes(total)} / {workers} = {format_bytes(each)} for each" if shared else format_bytes(each)
        raise BudgetError(where, f"{found}: {error.found}", error.expected, "Start fewer workers.") from error
    return format_budget(each) if shared else vram

"""What only a CUDA card has: a context outside the allocator, a cap on the allocator, and what lies beyond tensors.

A process holds on a card: its context (code and libraries, a few hundred MiB, made on first use), what the caching
allocator reserved, and inside that what tensors have allocated. A budget is for all of it.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import torch

from lowmem_brats.memory.budget import CUDA_RESERVE, MIB

WORKSPACE = 64 * MIB
"""Kept for cuDNN's work space and the allocator's rounding, which no count without a card can see."""
ASSUMED_CONTEXT = CUDA_RESERVE - WORKSPACE
"""Context of a process where it cannot be measured."""
LEAST_CONTEXT = 64 * MIB
"""What the code and libraries of torch take at least."""


@cache
def measure_context(device: torch.device) -> int:
    """Bytes that this process's context and cuDNN take on a card; ASSUMED_CONTEXT where nvidia-smi cannot tell.

    Asked once per process, before anything else uses the card: later the context is there already.
    """
    before = _driver_used(device)
    # Forwards and backwards, in half: code is loaded when it is first used.
    slices_NCHW = torch.zeros(1, 1, 4, 4, device=device, dtype=torch.half, requires_grad=True)
    torch.nn.functional.conv2d(slices_NCHW, slices_NCHW[..., :3, :3]).sum().backward()
    del slices_NCHW
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    after = _driver_used(device)
    if before is None or after is None:
        return ASSUMED_CONTEXT
    # Less is no context: there was one already, or another program has given memory back meanwhile.
    taken = after - before - torch.cuda.memory_reserved(device)
    return taken if taken >= LEAST_CONTEXT else ASSUMED_CONTEXT


def _driver_used(device: torch.device) -> int | None:
    """Used bytes of a card as nvidia-smi reports them, without making a context; None where it cannot."""
    # By its name: nvidia-smi and CUDA may number the cards differently.
    name = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        return None if name is None else int(float(_ask_driver("memory.used", f"--id=GPU-{name}")) * MIB)
    except ValueError:
        return None


def driver_version() -> str:
    """The NVIDIA driver's version, or `unknown`."""
    return (_ask_driver("driver_version").splitlines() or ["unknown"])[0]


def _ask_driver(field: str, *flags: str) -> str:
    """What nvidia-smi answers for a field, a line per card; empty where it is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, *flags, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def available_bytes(device: torch.device) -> int:
    """What is free on a card now, after this process's context and all other processes."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def cap_allocator(device: torch.device, tensor_bytes: int) -> None:
    """Make the caching allocator raise torch.OutOfMemoryError rather than reserve more than `tensor_bytes`.

    Without it a Windows driver would quietly spill to host memory, ten times slower.
    """
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(tensor_bytes / total, 1.0), device)


def highest(so_far: dict[str, int] | None, device: str) -> dict[str, int] | None:
    """What goes beyond tensors, bytes, each the higher of `so_far` and now; None on the CPU.

    `reserved`: most that the caching allocator took; `driver`: used on the card by all processes, this one's context
    included.
    """
    where = torch.device(device)
    if where.type != "cuda":
        return so_far
    free, total = torch.cuda.mem_get_info(where)
    now = {
        "reserved": torch.cuda.max_memory_reserved(where),
        "driver": total - free,
    }
    return {name: max(value, (so_far or now)[name]) for name, value in now.items()}

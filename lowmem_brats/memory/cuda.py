"""Memory of a CUDA card beyond tensors: measure the context, cap the allocator, report what is used.

On a card a process holds its context (code and libraries, a few hundred MiB, created on first use) and what the caching
allocator has reserved. Tensors are allocated inside the latter. A budget is for both.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import torch

from lowmem_brats.memory.budget import CUDA_RESERVE, MIB

WORKSPACE = 64 * MIB
"""Bytes kept for cuDNN's work space and the allocator's rounding, which cannot be counted without a card."""
ASSUMED_CONTEXT = CUDA_RESERVE - WORKSPACE
"""Bytes of a process's context if it cannot be measured."""
LEAST_CONTEXT = 64 * MIB
"""Bytes that the code and libraries of torch take at least."""


@cache
def measure_context(device: torch.device) -> int:
    """Bytes that this process's context and cuDNN take on a card; ASSUMED_CONTEXT if nvidia-smi cannot tell.

    Must be called before anything else uses the card, because it measures what creating the context takes. The result
    is kept for the process.
    """
    before = _driver_used(device)
    # A forward and a backward pass in half precision, because code is loaded when it is first used.
    slices_NCHW = torch.zeros(1, 1, 4, 4, device=device, dtype=torch.half, requires_grad=True)
    torch.nn.functional.conv2d(slices_NCHW, slices_NCHW[..., :3, :3]).sum().backward()
    del slices_NCHW
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # what the allocator keeps is not the context's
    after = _driver_used(device)
    if before is None or after is None:
        return ASSUMED_CONTEXT
    # Less than LEAST_CONTEXT is no context: it existed already, or another program has freed memory meanwhile.
    taken = after - before - torch.cuda.memory_reserved(device)
    return taken if taken >= LEAST_CONTEXT else ASSUMED_CONTEXT


def _driver_used(device: torch.device) -> int | None:
    """Used bytes of a card as nvidia-smi reports them, without creating a context; None if it cannot tell."""
    # Asked by UUID, because nvidia-smi and CUDA may number the cards differently.
    name = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        return None if name is None else int(float(_ask_driver("memory.used", f"--id=GPU-{name}")) * MIB)
    except ValueError:
        return None


def driver_version() -> str:
    """The NVIDIA driver's version, or `unknown`."""
    return (_ask_driver("driver_version").splitlines() or ["unknown"])[0]


def _ask_driver(field: str, *flags: str) -> str:
    """The answer of nvidia-smi for a field, one line per card; empty if it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, *flags, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def available_bytes(device: torch.device) -> int:
    """Bytes that this process can still use on a card, after its context and all other processes."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def cap_allocator(device: torch.device, tensor_bytes: int) -> None:
    """Make the caching allocator raise torch.OutOfMemoryError instead of reserving more than `tensor_bytes`.

    Without the cap a Windows driver would silently spill to host memory, which is many times slower.
    """
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(tensor_bytes / total, 1.0), device)


def highest(so_far: dict[str, int] | None, device: str) -> dict[str, int] | None:
    """Peak bytes on a card beyond tensors: for each figure the higher of `so_far` and now; None on the CPU.

    `reserved`: the most that the caching allocator has taken; `driver`: in use on the card by all processes, including
    this one's context.
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

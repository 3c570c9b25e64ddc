"""Memory of a CUDA card beyond tensors: measure the context, cap the allocator, report what is used.

On a card a process holds its context (code and libraries, a few hundred MiB, created on first use) and what the caching
allocator has reserved. Tensors are allocated inside the latter. A budget is for both.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import torch

from lowmem_brats.engine import parallel
from lowmem_brats.memory.budget import CUDA_RESERVE, MIB, format_bytes

WORKSPACE = 64 * MIB
"""Bytes kept for cuDNN's work space and the allocator's rounding, which cannot be counted without a card."""
GROWTH = 16 * MIB
"""The part of WORKSPACE that the allocator may not take, since the context grows a little when more code is loaded."""
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
    _load_code(device)
    torch.cuda.synchronize(device)
    _clear_cublas()
    torch.cuda.empty_cache()  # what the allocator keeps is not the context's
    after = _driver_used(device)
    if before is None or after is None:
        return ASSUMED_CONTEXT
    # Less than LEAST_CONTEXT is no context: it existed already, or another program has freed memory meanwhile.
    taken = after - before - torch.cuda.memory_reserved(device)
    return taken if taken >= LEAST_CONTEXT else ASSUMED_CONTEXT


def _load_code(device: torch.device) -> None:
    """Do once what training does, in each format, because code is loaded into the context when it is first used.

    That is: convolutions and their gradients (cuDNN), a matrix product (cuBLAS), group norm, sampling from a grid, a
    fused optimizer's step, and, where several processes train together, a sum over them (NCCL).
    """
    network = torch.nn.Sequential(
        torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.GroupNorm(8, 16), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1)
    ).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=True)
    for dtype in (torch.float32, torch.float16):
        slices_NCHW = torch.zeros(2, 8, 32, 32, device=device)
        grid_NHW2 = torch.zeros(2, 32, 32, 2, device=device)
        slices_NCHW = torch.nn.functional.grid_sample(slices_NCHW, grid_NHW2, align_corners=False)
        with torch.autocast(device.type, dtype, enabled=dtype.itemsize < 4):
            maps_NCHW = network(slices_NCHW)
            total = (maps_NCHW[0, 0] @ maps_NCHW[0, 0]).sum() + maps_NCHW.sum()
        total.backward()
        optimizer.step()
    parallel.add_up(torch.zeros(1, device=device))


def _clear_cublas() -> None:
    """Free what cuBLAS keeps to work in: it lies in the allocator, and would be taken for a caller's own tensors.

    It is 32 MiB for each thread on a Hopper card, and the convolutions of a U-Net never need it again.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # not part of torch's public functions
    if clear:
        clear()


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
    """Bytes that this process can still use on a card, after its context, its own tensors and all other processes."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def cap_allocator(device: torch.device, tensor_bytes: int) -> None:
    """Make the caching allocator raise torch.OutOfMemoryError instead of reserving `tensor_bytes` more than now in use.

    Without the cap a Windows driver would silently spill to host memory, which is many times slower.
    """
    _, total = torch.cuda.mem_get_info(device)
    most = tensor_bytes + torch.cuda.memory_allocated(device)
    torch.cuda.set_per_process_memory_fraction(min(most / total, 1.0), device)


@cache
def other_programs(device: torch.device) -> int:
    """Bytes of a card in use that are not this process's, when this was first asked; must be before networks run.

    What its context takes later, when more code is loaded, then shows as this process's.
    """
    free, total = torch.cuda.mem_get_info(device)
    return max(total - free - measure_context(device) - torch.cuda.memory_reserved(device), 0)


def highest(so_far: dict[str, int] | None, device: str) -> dict[str, int] | None:
    """Peak bytes on a card beyond tensors: for each figure the higher of `so_far` and now; None on the CPU.

    `reserved`: the most that the caching allocator has taken; `process`: in use on the card, as the driver says, less
    `other_programs`.
    """
    where = torch.device(device)
    if where.type != "cuda":
        return so_far
    free, total = torch.cuda.mem_get_info(where)
    now = {
        "reserved": torch.cuda.max_memory_reserved(where),
        "process": max(total - free - other_programs(where), 0),
    }
    return {name: max(value, (so_far or now)[name]) for name, value in now.items()}


def beyond(peak: dict[str, int] | None, total_bytes: int | None) -> list[str]:
    """A note if a process has held more of a card than its budget; `peak`: from `highest`; None: no limit."""
    if peak is None or total_bytes is None or peak["process"] <= total_bytes:
        return []
    held, allowed = format_bytes(peak["process"]), format_bytes(total_bytes)
    return [f"the card held {held} for this program or for others that came later; --vram allowed {allowed}"]

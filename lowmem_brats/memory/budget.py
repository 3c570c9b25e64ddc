"""Memory budgets as the user writes them: `2G`, `1536M`, `75%` or `max`. G means GiB, 1024³ bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowmem_brats.errors import InputError

MIB = 1024**2
GIB = 1024**3
_UNITS = {"M": MIB, "G": GIB}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([MG])(?:i?B)?", re.IGNORECASE)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
EXPECTED = "a size such as 2G or 1536M, a share such as 75%, or max"

CUDA_RESERVE = 448 * MIB
"""Bytes kept free on a card for what no plan can count: 384 MiB for the CUDA context, 64 MiB for cuDNN's work space and
the allocator's rounding. This is an assumption, used where the context has not been measured."""


@dataclass(frozen=True)
class MemoryBudget:
    """A number of bytes, and the part of them that is not for tensors."""

    total_bytes: int | None
    """None: no limit."""
    reserve_bytes: int = 0
    """Kept for the CUDA context and cuDNN; 0 on the CPU."""

    @property
    def tensor_bytes(self) -> int | None:
        """The bytes left for tensors; None: no limit."""
        return None if self.total_bytes is None else max(self.total_bytes - self.reserve_bytes, 0)

    def allows(self, tensor_bytes: int) -> bool:
        """Whether `tensor_bytes` of tensors fit."""
        return self.tensor_bytes is None or tensor_bytes <= self.tensor_bytes


def parse_budget(
    text: str, device: str = "cpu", available_bytes: int | None = None, reserve_bytes: int | None = None
) -> MemoryBudget:
    """Read a budget: a size with M or G, a share up to 100 %, or `max`.

    `device`: `cpu` or `cuda`; `available_bytes`: the memory that shares and `max` refer to, None if unknown;
    `reserve_bytes`: kept for CUDA, None: CUDA_RESERVE. On the CPU nothing is kept, and `max` of an unknown amount is no
    limit. Raises InputError for any other text, and for a share or `max` of an unknown amount.
    """
    on_cpu = device == "cpu"
    reserve = 0 if on_cpu else CUDA_RESERVE if reserve_bytes is None else reserve_bytes
    text = text.strip()
    if size := _SIZE.fullmatch(text):
        return MemoryBudget(int(float(size[1]) * _UNITS[size[2].upper()]), reserve)
    share = _SHARE.fullmatch(text)
    if text.lower() == "max":
        percent = 100.0
    elif share and 0 < float(share[1]) <= 100:
        percent = float(share[1])
    else:
        raise InputError("--vram", repr(text), EXPECTED, "Write M or G after the number; 1G is 1024 MiB.")
    if available_bytes is None:
        if on_cpu and not share:
            return MemoryBudget(None, reserve)
        raise InputError("--vram", repr(text), "a size, because the total memory is unknown", "Give one, such as 2G.")
    return MemoryBudget(int(available_bytes * percent / 100), reserve)


def format_bytes(count: int) -> str:
    """Bytes for people to read: `31 MiB`, `2 GiB`, `1.5 GiB`; 0 only for 0 bytes."""
    if count >= GIB:
        return f"{count / GIB:.2f}".rstrip("0").rstrip(".") + " GiB"
    if count >= 10 * MIB or count == 0:
        return f"{count / MIB:.0f} MiB"
    return f"{count / MIB:.2g} MiB" if count >= MIB / 100 else f"{count} bytes"


def format_budget(count: int) -> str:
    """Bytes as `--vram` takes them, `512M` or `2G`, rounded up to whole MiB."""
    mebibytes = -(-count // MIB)
    return f"{mebibytes // 1024}G" if mebibytes and mebibytes % 1024 == 0 else f"{mebibytes}M"

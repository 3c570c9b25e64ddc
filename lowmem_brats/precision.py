"""Which floating-point format a network runs in."""

from __future__ import annotations

import torch

from lowmem_brats.config import PRECISIONS
from lowmem_brats.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(requested: str, device: torch.device) -> str:
    """Pick `fp32`, `fp16` or `bf16`; `auto` takes the format that the device computes fastest in.

    `auto`: on CUDA bf16 from Ampere on, else fp16 (a memory lever on older cards); on the CPU bf16 where the processor
    has instructions for it, else fp32. Raises InputError for an unknown name, or bf16 on a card that only emulates it.
    """
    if requested not in PRECISIONS:
        raise InputError("--precision", repr(requested), f"one of {', '.join(PRECISIONS)}", "Use auto.")
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() also answers yes where bf16 is only emulated.
        native_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
        if requested == "bf16" and not native_bf16:
            raise InputError("--precision bf16", "a card without bf16", "compute capability 8.0 or more", "Use fp16.")
        half = "bf16" if native_bf16 else "fp16"
    else:
        half = "bf16" if cpu_has_bf16() else "fp32"
    return half if requested == "auto" else requested


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX512-BF16, AMX), as torch reports it; False if unknown."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)

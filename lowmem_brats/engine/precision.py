"""Choose the floating-point format of a network, and decide when training changes to a safer one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from lowmem_brats.config import PRECISIONS
from lowmem_brats.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(requested: str, device: torch.device) -> str:
    """Return `fp32`, `fp16` or `bf16` for a `requested` one of PRECISIONS.

    `auto` on CUDA: bf16 from Ampere on, else fp16 (which on older cards saves memory rather than time). `auto` on the
    CPU: bf16 if the processor has instructions for it, else fp32. Raises InputError for an unknown name, and for bf16
    on a card that only emulates it.
    """
    if requested not in PRECISIONS:
        raise InputError("--precision", repr(requested), f"one of {', '.join(PRECISIONS)}", "Use auto.")
    if device.type == "cuda":
        _compute_in_full()
        # Not torch.cuda.is_bf16_supported(), which also says yes if bf16 is only emulated.
        native_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
        if requested == "bf16" and not native_bf16:
            raise InputError("--precision bf16", "a card without bf16", "compute capability 8.0 or more", "Use fp16.")
        half = "bf16" if native_bf16 else "fp16"
    else:
        half = "bf16" if cpu_has_bf16() else "fp32"
    return half if requested == "auto" else requested


def _compute_in_full() -> None:
    """Make fp32 on a card mean fp32: by default cuDNN computes with 10 of its 23 bits (TF32) from Ampere on."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def cpu_has_bf16() -> bool:
    """Whether torch reports that this processor computes bf16 in hardware (AVX512-BF16, AMX); False if unknown."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


WINDOW = 50  # steps whose median is the usual gradient, and the usual bend of the loss
OVERFLOWS = 3  # gradients in a row that are not finite; one or two are normal while fp16's loss scale finds its level
OUTLIER, OUTLIERS = 10.0, 2  # gradients so many times longer than usual, so many in a row; one alone is an odd batch
LAG, BEND = 15, 6.0  # the loss bends if its second difference over LAG steps is BEND times the usual one
SMOOTHING = 0.9  # decay of the loss's exponential mean, which is over about ten steps
HOLD = 100  # steps in the safer format after the first fallback; 100 more after each further one


class PrecisionController:
    """Assorted precision: uses the fast format while training is smooth, and the safer one for a while when it is not.

    Training counts as unstable if gradients are not finite, if they are far longer than usual, or if the smoothed loss
    bends upwards far more than usual (its curvature, measured as its second difference). Source: Pandya et al. 2026,
    "Enhanced 3D Brain Tumor Segmentation Using Assorted Precision Training", which names the three signs; the rules are
    this project's. `fast`, `safer`: names of formats; with None for `safer` it stays in `fast` whatever happens.
    """

    def __init__(self, fast: str, safer: str | None) -> None:
        self.fast, self.safer = fast, safer if safer != fast else None
        self.held = 0
        """Steps still to take in the safer format; 0 while in the fast one."""
        self.fallbacks = self.overflows = self.outliers = 0
        self.norms, self.smoothed, self.bends = list[float](), list[float](), list[float]()

    @property
    def precision(self) -> str:
        """The format of the next step."""
        return self.safer if self.held and self.safer else self.fast

    def observe(self, loss: float, norm: float) -> str | None:
        """Note the loss and gradient norm of a step; returns the reason if the next step changes format, else None."""
        trouble = self._trouble(loss, norm)
        if self.safer is None:
            return None
        if self.held:
            self.held = self.held - 1 if trouble is None else max(self.held, HOLD)
            return None if self.held else f"back to {self.fast}: training is smooth"
        if trouble is None:
            return None
        self.fallbacks += 1
        self.held = HOLD * self.fallbacks
        return f"{self.safer} for {self.held} steps: {trouble}"

    def _trouble(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.overflows += 1
            return f"{self.overflows} gradients in a row were not finite" if self.overflows >= OVERFLOWS else None
        self.overflows = 0
        usual_norm = median(self.norms) if len(self.norms) == WINDOW else math.inf
        self.norms = [*self.norms, norm][-WINDOW:]
        last = self.smoothed[-1] if self.smoothed else loss
        self.smoothed = [*self.smoothed, SMOOTHING * last + (1 - SMOOTHING) * loss][-2 * LAG - 1 :]
        self.outliers = self.outliers + 1 if norm > OUTLIER * usual_norm else 0
        trouble = f"gradients up to {norm:.3g}, usual is {usual_norm:.3g}" if self.outliers >= OUTLIERS else None
        if len(self.smoothed) <= 2 * LAG:
            return trouble
        before, middle, now = self.smoothed[::LAG]
        bend = now - 2 * middle + before
        usual_bend = median(self.bends) if len(self.bends) == WINDOW else math.inf
        self.bends = [*self.bends, abs(bend)][-WINDOW:]
        if now > middle and bend > BEND * usual_bend:
            trouble = trouble or f"the loss bends upwards by {bend:.3g}, usual is {usual_bend:.3g}"
        return trouble

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep: plain numbers and lists of them."""
        return {key: value for key, value in vars(self).items() if key not in ("fast", "safer")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, which may come from a training with another `fast` format."""
        vars(self).update(state)

"""One network over one stack of slices, from every side that it sees.

Shape suffixes: Z slices of a case, N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import step
from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork
from lowmem_brats.precision import DTYPES
from lowmem_brats.slices import views_of

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """What a network found in a stack of slices."""

    mask_KZHW: npt.NDArray[np.bool_]
    """False outside the brain and on slices that were not run."""
    peak_bytes: int
    """Most bytes on the device (live tensors on the CPU), weights included."""
    batch: int
    """Slices per forward pass at the end: the plan's, or less after the card ran out of memory."""
    run: int
    """Forward passes of a slice, over all views."""


def sound_precision(
    load: Callable[[], SliceNetwork], slice_CHW: npt.NDArray[np.float16], device: str, precision: str
) -> tuple[str, list[str]]:
    """The precision to run in, with a note where a card's half format fails `half_is_sound` and it is fp32 instead.

    `load` gives the network, fp32 on the CPU; it is called only where there is something to check.
    """
    plan = InferencePlan(device, precision, batch=1)
    if device == "cpu" or precision == "fp32" or half_is_sound(load(), slice_CHW, plan):
        return precision, []
    return "fp32", [f"{precision} gives NaN on this card: running in fp32"]


def half_is_sound(network: SliceNetwork, slice_CHW: npt.NDArray[np.float16], plan: InferencePlan) -> bool:
    """Whether the plan's half format gives finite logits for one slice where fp32 on the CPU does.

    GTX 16xx cards return NaN for some fp16 convolutions. `network`: fp32 on the CPU, moved to the plan's device and
    format by the check.
    """
    slice_1CHW = torch.from_numpy(slice_CHW[None])
    with torch.inference_mode():
        reference = network(slice_1CHW.float())
        logits = place(network, plan)(slice_1CHW.to(plan.device, DTYPES[plan.precision]))
    return bool(torch.isfinite(logits).all()) or not bool(torch.isfinite(reference).all())


def place(network: SliceNetwork, plan: InferencePlan) -> SliceNetwork:
    """Move a network (in place) to the plan's device and format, in evaluation mode.

    Raises BudgetError where it does not fit.
    """
    try:
        return step.place(network, torch.device(plan.device), DTYPES[plan.precision]).eval()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(plan.device) from error


def predict_stack(
    network: SliceNetwork,
    slices_ZCHW: npt.NDArray[np.float16],
    active_VN: Sequence[npt.NDArray[np.bool_]],
    plan: InferencePlan,
    mirror: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Prediction:
    """Segment the brain with a network that `place` has put where the plan wants it.

    `slices_ZCHW`: z-scored, on the host; `active_VN`: for each view to see it from, which slices to run; `mirror`: run
    each mirrored as well. The logits of a voxel are averaged. When the device runs out of memory all the same, the
    batch is halved and tried again. Raises BudgetError when a single slice does not fit.
    """
    shape_KZHW = (network.outputs, len(slices_ZCHW), *slices_ZCHW.shape[-2:])
    sum_KZHW = np.zeros(shape_KZHW, np.float32)
    views = len(active_VN)
    passes = list(zip(views_of(slices_ZCHW, views), views_of(sum_KZHW, views, axis=1), active_VN, strict=True))
    if mirror:
        passes += [(seen[..., ::-1], sums[..., ::-1], active) for seen, sums, active in passes]
    total, done, peak_bytes = sum(int(active.sum()) for *_, active in passes), 0, 0
    for seen_NCHW, sum_KNHW, active_N in passes:
        meter = PeakMeter(torch.device(plan.device), *network.parameters(), *network.buffers())
        run_N = np.flatnonzero(active_N)
        start = 0
        while start < len(run_N):
            n = run_N[start : start + plan.batch]
            slices_nCHW = torch.from_numpy(np.ascontiguousarray(seen_NCHW[n]))
            try:
                # All batches of a view have one shape and the first is never the smallest: its peak is the peak.
                with meter if start == 0 else nullcontext():
                    sum_KNHW[:, n] += step.predict_batch(network, slices_nCHW).numpy().swapaxes(0, 1)
                start += len(n)
                on_progress(done + start, total)
                continue
            except torch.OutOfMemoryError as error:
                if plan.batch == 1:
                    raise out_of_memory(plan.device) from error
            # Only here, outside the except block, has the failed pass let go of its tensors.
            plan = replace(plan, batch=plan.batch // 2)
            empty_cache()
        done += start
        peak_bytes = max(peak_bytes, meter.peak_bytes)
    return Prediction(sum_KZHW > 0, peak_bytes, plan.batch, total)


def empty_cache() -> None:
    """Give what no tensor holds back to the card."""
    gc.collect()
    torch.cuda.empty_cache()


def out_of_memory(device: str) -> BudgetError:
    """The error for a device that ran out of memory at the smallest batch."""
    advice = "Close other programs that use the card, or pass --device cpu."
    return BudgetError(device, "out of memory with one slice at a time", "what the plan predicted", advice)

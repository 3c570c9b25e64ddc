"""One network over one stack of slices.

Shape suffixes: Z slices of a case, N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import step
from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork
from lowmem_brats.precision import DTYPES

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


def predict_slices(
    network: SliceNetwork,
    slices_ZCHW: npt.NDArray[np.float16],
    active_Z: npt.NDArray[np.bool_],
    plan: InferencePlan,
    on_progress: OnProgress = lambda done, total: None,
) -> Prediction:
    """Segment the brain in the active slices with a network that `place` has put where the plan wants it.

    `slices_ZCHW`: z-scored, on the host; `active_Z`: which slices to run. When the device runs out of memory all the
    same, the batch is halved and tried again. Raises BudgetError when a single slice does not fit.
    """
    mask_KZHW = np.zeros((network.outputs, len(slices_ZCHW), *slices_ZCHW.shape[-2:]), np.bool_)
    run_Z = np.flatnonzero(active_Z)
    meter = PeakMeter(torch.device(plan.device), *network.parameters(), *network.buffers())
    done, batch = 0, plan.batch
    while done < len(run_Z):
        z = run_Z[done : done + batch]
        try:
            # All batches have one shape and the first is never the smallest: its peak is the peak.
            with meter if done == 0 else nullcontext():
                mask_KZHW[:, z] = step.predict_batch(network, torch.from_numpy(slices_ZCHW[z])).numpy().swapaxes(0, 1)
            done += len(z)
            on_progress(done, len(run_Z))
            continue
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise out_of_memory(plan.device) from error
        # Only here, outside the except block, has the failed pass let go of its tensors.
        batch //= 2
        empty_cache()
    return Prediction(mask_KZHW, meter.peak_bytes, batch)


def empty_cache() -> None:
    """Give what no tensor holds back to the card."""
    gc.collect()
    torch.cuda.empty_cache()


def out_of_memory(device: str) -> BudgetError:
    """The error for a device that ran out of memory at the smallest batch."""
    advice = "Close other programs that use the card, or pass --device cpu."
    return BudgetError(device, "out of memory with one slice at a time", "what the plan predicted", advice)

"""One region's network over one stack of slices.

Shape suffixes: Z slices of a case, N slices in a batch, C modalities, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork
from lowmem_brats.precision import DTYPES

OnProgress = Callable[[int, int], None]


def half_is_sound(network: SliceNetwork, slice_CHW: npt.NDArray[np.float16], plan: InferencePlan) -> bool:
    """Whether the plan's half format gives finite logits for one slice where fp32 on the CPU does.

    GTX 16xx cards return NaN for some fp16 convolutions. `network`: fp32 on the CPU, moved to the plan's device and
    format by the check.
    """
    slice_1CHW = torch.from_numpy(slice_CHW[None])
    with torch.inference_mode():
        reference = network(slice_1CHW.float())
        logits = place(network, plan)(_to_device(slice_1CHW, plan))
    return bool(torch.isfinite(logits).all()) or not bool(torch.isfinite(reference).all())


def place(network: SliceNetwork, plan: InferencePlan) -> SliceNetwork:
    """Move a network (in place) to the plan's device and format, channels last."""
    return network.to(plan.device, DTYPES[plan.precision], memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def _to_device(slices_NCHW: torch.Tensor, plan: InferencePlan) -> torch.Tensor:
    return slices_NCHW.to(plan.device, DTYPES[plan.precision], memory_format=torch.channels_last)


def predict_region(
    network: SliceNetwork,
    slices_ZCHW: npt.NDArray[np.float16],
    active_Z: npt.NDArray[np.bool_],
    plan: InferencePlan,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[npt.NDArray[np.bool_], int]:
    """Segment the brain in the active slices with a network that `place` has put where the plan wants it.

    `slices_ZCHW`: z-scored, on the host; `active_Z`: which slices to run. Returns `mask_ZHW` (False on slices that
    were not run) and the peak bytes on the device (live tensors on the CPU), weights included.
    """
    mask_ZHW = np.zeros((len(slices_ZCHW), *slices_ZCHW.shape[-2:]), np.bool_)
    run_Z = np.flatnonzero(active_Z)
    meter = PeakMeter(torch.device(plan.device), *network.parameters(), *network.buffers())
    with torch.inference_mode():
        for first in range(0, len(run_Z), plan.batch):
            z = run_Z[first : first + plan.batch]
            # All batches have one shape and the first is never the smallest: its peak is the peak.
            with meter if first == 0 else nullcontext():
                slices_NCHW = _to_device(torch.from_numpy(slices_ZCHW[z]), plan)
                brain_NHW = (slices_NCHW != 0).any(dim=1)  # there is no tumour outside it
                mask_ZHW[z] = ((network(slices_NCHW)[:, 0] > 0) & brain_NHW).cpu().numpy()
            on_progress(first + len(z), len(run_Z))
    return mask_ZHW, meter.peak_bytes

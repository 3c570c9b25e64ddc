"""Choose for each slice whether to skip it, or which member of a bank is to segment it.

Source: Wang et al. 2022, "Med-DANet: Dynamic Architecture Network for Efficient Medical Volumetric Segmentation",
equations 1 to 3. Differences: slices are chosen from each view; a voxel that one of the views has skipped is
background.
Shape suffixes: V views, N slices of a view, n slices in a batch, C modalities, H W in-plane, S choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.slices import views_of
from lowmem_brats.engine.step import memory_format, want_of_memory_named
from lowmem_brats.errors import WeightsError
from lowmem_brats.memory.device import PeakMeter, out_of_memory_told
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks.shufflenet import DecisionNetwork
from lowmem_brats.segment.stack import Prediction

Choices = npt.NDArray[np.int64]


def padded(slices_nCHW: npt.NDArray[np.float16], frame_HW: Sequence[int]) -> npt.NDArray[np.float16]:
    """Slices in the middle of a frame of zeros; a side that is longer than the frame's stays as it is."""
    missing = [max(side - had, 0) for side, had in zip(frame_HW, slices_nCHW.shape[2:], strict=True)]
    return np.pad(slices_nCHW, ((0, 0), (0, 0), *((less // 2, less - less // 2) for less in missing)))


@want_of_memory_named()
def choose_members(
    network: DecisionNetwork,
    frame_HW: Sequence[int],
    slices_ZCHW: npt.NDArray[np.float16],
    active_VN: Sequence[npt.NDArray[np.bool_]],
    plan: InferencePlan,
) -> tuple[list[Choices], int]:
    """For each view and slice 0, to skip it, or k, to let member k segment it; and peak bytes on the device.

    `network`: fp32, on the CPU; it runs in fp32 on the plan's device, since it is far smaller than any member;
    `frame_HW`: as `DecisionFile.frame_HW`; `slices_ZCHW`: z-scored, on the host; `active_VN`: for each view, the
    slices to look at: the others are skipped. Where their frame is larger than the slices, fewer of them than the plan
    says are on the device at once. Raises BudgetError where it does not fit, and WeightsError where scores are not
    finite.
    """
    choice_VN, device = [np.zeros(len(active_N), np.int64) for active_N in active_VN], torch.device(plan.device)
    with out_of_memory_told(plan.device), torch.inference_mode():
        network.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]
        meter = PeakMeter(device, *network.parameters(), *network.buffers())
        with meter:
            for seen_NCHW, active_N, choice_N in zip(
                views_of(slices_ZCHW, len(active_VN)), active_VN, choice_VN, strict=True
            ):
                active_n, seen_HW = np.flatnonzero(active_N), seen_NCHW.shape[2:]
                framed = int(np.prod(np.maximum(seen_HW, frame_HW)))
                batch = max(plan.batch * int(np.prod(seen_HW)) // framed, 1)
                for start in range(0, len(active_n), batch):
                    n = active_n[start : start + batch]
                    slices_nCHW = torch.from_numpy(padded(seen_NCHW[n, : len(MODALITIES)], frame_HW))
                    scores_nS = network(slices_nCHW.to(device).float()).cpu()
                    if not scores_nS.isfinite().all():  # they would skip the slice
                        found, advice = "scores that are NaN or infinite", "Train the bank again."
                        raise WeightsError("decision network", found, "finite ones", advice)
                    choice_N[n] = scores_nS.argmax(dim=1).numpy()
    return choice_VN, meter.peak_bytes


def put_together(parts: Sequence[Prediction]) -> Prediction:
    """One prediction of what several members found, each in other slices; 0 where not every view has looked."""
    whole = parts[0]
    for part in parts[1:]:
        np.add(whole.sum_KZHW, part.sum_KZHW, out=whole.sum_KZHW)
        whole = whole.after(part)
    whole.clear_unseen()
    return whole

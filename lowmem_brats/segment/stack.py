"""Run a network, or one for each view, over the slices of a case and add up the logits.

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
from torch import Tensor

from lowmem_brats.data.slices import VIEWS, occupied, views_of, with_context
from lowmem_brats.engine import step
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import WeightsError
from lowmem_brats.memory.device import PeakMeter, out_of_memory, out_of_memory_told
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import AnyNetwork, SliceNetwork
from lowmem_brats.segment.routing import beside, every_second

OnProgress = Callable[[int, int], None]


class NotFinite(ArithmeticError):  # noqa: N818 (the format's failure, not a mistake)
    """A network gave logits that are NaN or infinite."""


@dataclass(frozen=True)
class Prediction:
    """What a network found in a stack of slices."""

    sum_KZHW: npt.NDArray[np.float32]
    """Logits, added up over all views; 0 outside the brain and where no view, or if `narrow` not every one, was run."""
    peak_bytes: int
    """Most bytes on the device (live tensors on the CPU), weights included."""
    batch: int
    """Slices per forward pass at the end: the plan's, or less after the card ran out of memory."""
    ran_VN: list[npt.NDArray[np.bool_]]
    """For each view, the slices that were run, in whole or in part."""
    pixels: int
    """Of all forward passes together."""

    @property
    def mask_KZHW(self) -> npt.NDArray[np.bool_]:
        """Where the mean logit is positive."""
        return self.sum_KZHW > 0

    def clear_unseen(self) -> None:
        """Set the logits to 0 where not every view has looked, so that no one or two views decide there alone."""
        sum_VKNHW = views_of(self.sum_KZHW, len(self.ran_VN), axis=1)
        for sum_KNHW, ran_N in zip(sum_VKNHW, self.ran_VN, strict=True):
            sum_KNHW[:, ~ran_N] = 0

    def after(self, first: Prediction) -> Prediction:
        """This prediction, with what it took to make the first one, from the same views or fewer, counted in."""
        ran_VN = [ran_N.copy() for ran_N in self.ran_VN]
        for ran_N, before_N in zip(ran_VN, first.ran_VN, strict=False):
            ran_N |= before_N
        peak_bytes, batch = max(self.peak_bytes, first.peak_bytes), min(self.batch, first.batch)
        return Prediction(self.sum_KZHW, peak_bytes, batch, ran_VN, self.pixels + first.pixels)


def sound_precision(
    load: Callable[[], SliceNetwork], slices_NCHW: Tensor, device: str, precision: str
) -> tuple[str, list[str]]:
    """Return the precision to run in, and notes: fp32 with a note if a card's half format fails `half_is_sound`.

    `load()` returns the network in fp32 on the CPU; it is called only if there is something to check. `slices_NCHW`:
    z-scored, on the host, of the size that will be run, since the fault depends on it.
    """
    plan = InferencePlan(device, precision, batch=1)
    if device == "cpu" or precision == "fp32" or half_is_sound(load(), slices_NCHW, plan):
        return precision, []
    return "fp32", [f"{precision} gives NaN on this card: running in fp32"]


def half_is_sound(network: SliceNetwork, slices_NCHW: Tensor, plan: InferencePlan) -> bool:
    """Whether the plan's half format gives finite logits for some slices where fp32 on the CPU does.

    GTX 16xx cards return NaN for some fp16 convolutions. `network`: fp32 on the CPU, moved to the plan's device and
    format by the check.
    """
    with torch.inference_mode():
        reference = network(slices_NCHW.float())
        with out_of_memory_told(plan.device):
            logits = step.predict_batch(place(network, plan), slices_NCHW)
    return bool(torch.isfinite(logits).all()) or not bool(torch.isfinite(reference).all())


def place(network: AnyNetwork, plan: InferencePlan) -> AnyNetwork:
    """Move a network (in place) to the plan's device and format, in evaluation mode.

    Raises BudgetError where it does not fit.
    """
    with out_of_memory_told(plan.device):
        return step.place(network, torch.device(plan.device), DTYPES[plan.precision]).eval()


def count_passes(active_VN: Sequence[npt.NDArray[np.bool_]], mirror: bool) -> int:
    """Count the forward passes of single slices that it takes to run the active slices of each view.

    `mirror`: mirror images are run too, from views in whose plane left and right lie.
    """
    return sum(int(active_N.sum()) * _orientations(view, mirror) for view, active_N in enumerate(active_VN))


def _orientations(view: int, mirror: bool) -> int:
    return 2 if mirror and VIEWS[view].symmetric else 1


def predict_finite(
    run: Callable[[InferencePlan], Prediction], plan: InferencePlan, plan_fp32: Callable[[], InferencePlan]
) -> tuple[Prediction, InferencePlan]:
    """Call `run` with the plan and, where that raises NotFinite, once more with what `plan_fp32` returns.

    Returns the prediction and the plan that it was made with. Raises WeightsError where fp32 fails too.
    """
    while True:
        try:
            return run(plan), plan
        except NotFinite as error:
            if plan.precision == "fp32":
                advice = "Check the images for extreme intensities, or use other weights."
                raise WeightsError(
                    "weights", "logits that are NaN or infinite in fp32", "finite ones", advice
                ) from error
        # Outside the except block, because only here has the failed run released its tensors.
        empty_cache()
        plan = plan_fp32()


def predict_stack(
    network_of: Callable[[int], SliceNetwork],
    slices_ZCHW: npt.NDArray[np.float16],
    active_VN: Sequence[npt.NDArray[np.bool_]],
    plan: InferencePlan,
    mirror: bool = False,
    on_progress: OnProgress = lambda done, total: None,
    narrow: bool = False,
    flat: bool = False,
) -> Prediction:
    """Segment the brain with networks that `place` has put where the plan wants them.

    `network_of(view)` returns the network of a view; the last one is let go of before the next is asked for, so that
    one is in memory. `slices_ZCHW`: z-scored, on the host. `active_VN`: for each view, the slices that may be run.
    `mirror`: run mirror images too, as `count_passes` counts them. `narrow`: run only the active slices that `routing`
    chooses. `flat`: slices lie too far apart for a network to compare neighbours, so each is shown alone and all active
    ones are run.
    If the device runs out of memory although the plan fits, the batch is halved and tried again. Raises BudgetError if
    a single slice does not fit, and NotFinite at the first batch with logits that are NaN or infinite.
    """
    stack = _Stack(network_of, slices_ZCHW, active_VN, plan, mirror, on_progress, flat)
    if flat or not narrow:
        for view, active_N in enumerate(active_VN):
            stack.run(view, active_N)
        return stack.prediction()
    coarse_N = every_second(active_VN[0])
    stack.run(0, coarse_N)
    between_N = active_VN[0] & ~coarse_N
    stack.run(0, beside(between_N, stack.found_VN[0]), between_N)
    for view, found_N in enumerate(stack.found_VN[1:], 1):
        stack.run(view, active_VN[view] & found_N, active_VN[view])
    found = stack.prediction()
    found.clear_unseen()
    return found


class _Stack:
    """The slices of a case while networks run over them, and the logits added up so far."""

    def __init__(
        self,
        network_of: Callable[[int], SliceNetwork],
        slices_ZCHW: npt.NDArray[np.float16],
        active_VN: Sequence[npt.NDArray[np.bool_]],
        plan: InferencePlan,
        mirror: bool,
        on_progress: OnProgress,
        flat: bool,
    ) -> None:
        self._plan, self._mirror, self._on_progress, self._flat = plan, mirror, on_progress, flat
        self._network_of, self._network, self._looks_from = network_of, network_of(0), 0
        self._views, self._total = len(active_VN), count_passes(active_VN, mirror)
        self._seen_VNCHW = views_of(slices_ZCHW, self._views)
        self._sum_KZHW = np.zeros((self._network.outputs, len(slices_ZCHW), *slices_ZCHW.shape[-2:]), np.float32)
        self._sum_VKNHW = views_of(self._sum_KZHW, self._views, axis=1)
        self._ran_VN = [np.zeros_like(active_N) for active_N in active_VN]
        self._run = self._left_out = self._pixels = self._peak_bytes = 0

    @property
    def found_VN(self) -> list[npt.NDArray[np.bool_]]:
        """For each view, which of its slices hold any of the network's first region so far."""
        return occupied(self._sum_KZHW[0] > 0, self._views)

    def prediction(self) -> Prediction:
        """What was found."""
        return Prediction(self._sum_KZHW, self._peak_bytes, self._plan.batch, self._ran_VN, self._pixels)

    def run(self, view: int, chosen_N: npt.NDArray[np.bool_], among_N: npt.NDArray[np.bool_] | None = None) -> None:
        """Run the chosen slices of a view; the others in `among_N` are counted as left out, for the progress bar."""
        self._ran_VN[view] |= chosen_N
        if chosen_N.any() and view != self._looks_from:
            del self._network  # before the next is loaded: the plan has room for one
            self._network, self._looks_from = self._network_of(view), view
        for orientation in range(_orientations(view, self._mirror)):
            seen_NCHW, sum_KNHW = (
                each[view][..., :: (1, -1)[orientation]] for each in (self._seen_VNCHW, self._sum_VKNHW)
            )
            if among_N is not None:
                self._left_out += int((among_N & ~chosen_N).sum())
            self._add(seen_NCHW, sum_KNHW, np.flatnonzero(chosen_N))

    def _add(
        self, seen_NCHW: npt.NDArray[np.float16], sum_KNHW: npt.NDArray[np.float32], run_N: npt.NDArray[np.intp]
    ) -> None:
        """Run slices in batches and add their logits."""
        meter = PeakMeter(torch.device(self._plan.device), *self._network.parameters(), *self._network.buffers())
        start = 0
        while start < len(run_N):
            n = run_N[start : start + self._plan.batch]
            slices_nCHW = torch.from_numpy(with_context(seen_NCHW, n, self._network.context, self._flat))
            try:
                # Measuring slows a pass. The first batch of a view is its largest, so its peak is the peak of all.
                with meter if start == 0 else nullcontext():
                    logits_nKHW = step.predict_batch(self._network, slices_nCHW)
                if not logits_nKHW.sum().isfinite():  # the sum of any NaN or infinity is one
                    raise NotFinite
                sum_KNHW[:, n] += logits_nKHW.numpy().swapaxes(0, 1)
                start += len(n)
                self._run += len(n)
                self._pixels += slices_nCHW[:, 0].numel()
                self._on_progress(self._run + self._left_out, self._total)
                continue
            except torch.OutOfMemoryError as error:
                if self._plan.batch == 1:
                    raise out_of_memory(self._plan.device) from error
            # Only here, outside the except block, has the failed pass let go of its tensors.
            self._plan = replace(self._plan, batch=self._plan.batch // 2)
            empty_cache()
        self._peak_bytes = max(self._peak_bytes, meter.peak_bytes)


def empty_cache() -> None:
    """Give what no tensor holds back to the card."""
    gc.collect()
    torch.cuda.empty_cache()

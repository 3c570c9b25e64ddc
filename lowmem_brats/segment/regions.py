"""Find each region with its network, one network in memory at a time, each where its parent was found.

WT's network looks at the whole brain, TC's where WT was found, and ET's where TC was found; a network of all three
regions looks at the whole brain. This loses nothing, because fusion is nested: where there is no WT, there can be no TC
or ET, and islands of WT that will be dropped as doubtful are no WT.
The members of a bank run where its decision network sends them, and so do slices that it skips: nowhere.
Networks without norms run in boxes, since a part of a slice looks to them as it does in the whole: WT's looks at every
fourth axial slice of the brain and then, closely, at boxes around what it found; the others look at boxes around their
parents. Networks with norms see whole slices, which `routing` chooses.
Networks of patches see the volume as `patches` shows it to them.
Several sets share the views, so they take no longer than one; a flat stack has one view, and each set looks at it, as
each set of networks of patches looks at all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.labels import Mask, Region, of_tissues
from lowmem_brats.data.slices import VIEWS, SliceStack, in_volume, occupied, slice_sizes, to_voxels
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork, patches_of, stride_of
from lowmem_brats.networks.shufflenet import GMAC_PER_MEGAPIXEL
from lowmem_brats.segment.bank import choose_members, put_together
from lowmem_brats.segment.boxes import boxes_around, predict_boxes
from lowmem_brats.segment.cleanup import sure_islands
from lowmem_brats.segment.patches import predict_volume
from lowmem_brats.segment.result import SegmentReport
from lowmem_brats.segment.stack import Prediction, count_passes, place, predict_finite, predict_stack
from lowmem_brats.weights.decision import Bank, load_decision
from lowmem_brats.weights.file import load_network, load_patch_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.store import WeightsSet

Logits = npt.NDArray[np.float32]
NetworkOf = Callable[[int], SliceNetwork]
OnProgress = Callable[[str, int, int], None]

COARSE = 4
"""The coarse look sees every fourth axial slice."""
MARGIN = 8
"""Voxels that a box holds around what was found, so that a network sees what lies around it too; as in training."""


class RegionSearch:
    """The networks of a set on their way through the slices of one case; a report is told all that happens."""

    def __init__(
        self,
        weights: WeightsSet,
        stack: SliceStack,
        views: int,
        config: SegmentConfig,
        report: SegmentReport,
        plan_in: Callable[[str], InferencePlan],
        on_progress: OnProgress,
    ) -> None:
        """`views`: from how many sides to look.

        `plan_in(precision)` makes a new plan; it is called if a network gives NaN or infinity in the planned precision.
        """
        self._weights, self._stack, self._views, self._config = weights, stack, views, config
        self._report, self._plan_in, self._on_progress = report, plan_in, on_progress
        self._boxed = config.narrow and weights.network.norm == "none"
        self._patched = patches_of(weights.network) is not None

    def find(self) -> dict[Region, Logits]:
        """Run the networks: region → logits added up over the views, as `Prediction.sum_KZHW`."""
        network, stack, report = self._weights.network, self._stack, self._report
        if stack.flat and (network.views > 1 or network.context):
            report.warnings.append("slices too few, or too far apart, to tell of each other: axial slices only")
        look = self._look_at_boxes if self._boxed else self._look_at_slices
        if self._patched:
            look = self._look_at_patches
        elif self._weights.bank:
            look = partial(self._look_as_decided, self._weights.bank)
        brain_VN = occupied(stack.brain_ZHW, self._views)
        logit_ZHW, parent_ZHW = dict[Region, Logits](), stack.brain_ZHW
        for files in self._weights.by_region():
            name, regions = files[0].name, files[0].regions
            each_alone = self._patched or (stack.flat and not self._weights.bank)
            turns = [[file] for file in files] if each_alone else [files]
            with timed(report.seconds, name):
                found = [look(turn, parent_ZHW) for turn in turns]
            run = sum(count_passes(each.ran_VN, self._config.tta) for each in found)
            report.slices[name] = {"run": run, "skipped": len(turns) * count_passes(brain_VN, self._config.tta) - run}
            ran_VN = [np.logical_or.reduce(ran) for ran in zip(*(each.ran_VN for each in found), strict=True)]
            report.looked_at[name] = {
                view.name: in_volume(ran_N, view, stack) for view, ran_N in zip(VIEWS, ran_VN, strict=False)
            }
            report.pixels[name] = sum(each.pixels for each in found)
            sum_KZHW = sum((each.sum_KZHW for each in found[1:]), found[0].sum_KZHW)
            if network.tissues:
                sum_KZHW = of_tissues(sum_KZHW)
            logit_ZHW |= zip(regions, sum_KZHW, strict=True)
            parent_ZHW = parent_ZHW & self._found(regions[-1], logit_ZHW[regions[-1]])
        return logit_ZHW

    def _found(self, region: Region, sum_ZHW: Logits) -> Mask:
        """Where a region was found, in the stack's pixels; of WT without the islands that will be dropped."""
        least = self._report.min_confidence if region is Region.WT else 0.0
        sure_ZHW, _ = sure_islands(to_voxels(sum_ZHW[None], self._stack)[0], least)
        rows, columns = self._stack.stretch_HW
        return sure_ZHW.repeat(rows, axis=1).repeat(columns, axis=2)

    def _look_at_slices(self, files: Sequence[WeightsFile], parent_ZHW: Mask) -> Prediction:
        """Look at whole slices that hold some of the parent region."""
        return self._predict(files, occupied(parent_ZHW, self._views), files[0].name)

    def _look_as_decided(self, bank: Bank, files: Sequence[WeightsFile], parent_ZHW: Mask) -> Prediction:
        """Look at each slice with the member of a bank that the decision network chooses for it."""
        stack, report, found = self._stack, self._report, list[Prediction]()
        active_VN = occupied(parent_ZHW, self._views)
        began, frame_HW = time.perf_counter(), bank.decision.frame_HW
        network = load_decision(bank.decision)
        choice_VN, peak_bytes = choose_members(network, frame_HW, stack.slices_ZCHW, active_VN, report.plan)
        sizes_HW = [np.maximum(size_HW, frame_HW).prod() for size_HW in slice_sizes(stack.brain_ZHW.shape, self._views)]
        pixels = sum(int(active_N.sum() * size) for active_N, size in zip(active_VN, sizes_HW, strict=True))
        self._tell_member("decision", active_VN, pixels * GMAC_PER_MEGAPIXEL / 1e6, time.perf_counter() - began)
        del network
        report.peak_bytes = max(report.peak_bytes, peak_bytes)
        for number, (file, (name, cost)) in enumerate(zip(files, bank.gmac_per_megapixel.items(), strict=True), 1):
            began, chosen_VN = time.perf_counter(), [choice_N == number for choice_N in choice_VN]
            part = self._predict([file], chosen_VN, name, name)
            found.append(part)
            self._tell_member(name, chosen_VN, part.pixels * cost / 1e6, time.perf_counter() - began)
        return put_together(found)

    def _tell_member(self, name: str, chosen_VN: Sequence[Mask], gmac: float, seconds: float) -> None:
        """Report which slices the decision network or a member of a bank has seen, and what that took."""
        count = sum(int(chosen_N.sum()) for chosen_N in chosen_VN)
        self._report.members[name] = {"slices": count, "gmac": gmac, "seconds": seconds}
        if name != "decision":
            self._report.looked_at[name] = {
                view.name: in_volume(chosen_N, view, self._stack)
                for view, chosen_N in zip(VIEWS, chosen_VN, strict=False)
            }

    def _look_at_patches(self, files: Sequence[WeightsFile], parent_ZHW: Mask) -> Prediction:
        """Look at patches of the volume; `parent_ZHW` is the brain, since one network segments all regions."""
        (file,), stack, report = files, self._stack, self._report
        tell = partial(self._on_progress, file.name.upper())

        def run(plan: InferencePlan) -> Prediction:
            return predict_volume(place(load_patch_network(file), plan), stack, plan, tell)

        found = self._run(file.name, run)
        report.patches[file.name] = report.patches.get(file.name, 0) + found.pixels // math.prod(report.plan.patch_ZHW)
        return found

    def _look_at_boxes(self, files: Sequence[WeightsFile], parent_ZHW: Mask) -> Prediction:
        """Look at boxes around the parent region; for WT, whose parent is the brain, around what was found coarsely."""
        stack, name, mirror = self._stack, files[0].name, self._config.tta
        found_ZHW, coarse = parent_ZHW, None
        if Region.WT in files[0].regions and not stack.flat:
            found_ZHW, coarse = self._look_coarsely(files)
        boxes = boxes_around(found_ZHW, MARGIN, stride_of(files[0].network), stack.flat)
        self._report.boxes[name] = [box.in_volume(stack) for box in boxes]
        tell = partial(self._on_progress, name.upper())

        def run(plan: InferencePlan) -> Prediction:
            network_of = _network_of(files, plan)
            return predict_boxes(network_of, stack, boxes, parent_ZHW, self._views, plan, mirror, tell)

        fine = self._run(name, run)
        return fine if coarse is None else fine.after(coarse)

    def _look_coarsely(self, files: Sequence[WeightsFile]) -> tuple[Mask, Prediction]:
        """Look at every fourth axial slice; returns where something was found that is not doubtful, and the prediction.

        A finding stands for the slices between it and halfway to the next that was looked at. Where nothing is found,
        the whole brain is returned.
        """
        brain_ZHW = self._stack.brain_ZHW
        chosen_N = np.zeros(len(brain_ZHW), np.bool_)
        chosen_N[COARSE // 2 :: COARSE] = True
        prediction = self._predict(files, [chosen_N & occupied(brain_ZHW, 1)[0]], f"{files[0].name} coarsely")
        sure_ZHW, _ = sure_islands(prediction.sum_KZHW[0, chosen_N], self._report.min_confidence)
        if not sure_ZHW.any():
            found = f"{files[0].name.upper()}: nothing found at every fourth axial slice"
            self._report.warnings.append(f"{found}: the whole brain is looked at closely")
            return brain_ZHW, prediction
        nearest_N = np.minimum(np.arange(len(brain_ZHW)) // COARSE, len(sure_ZHW) - 1)
        return sure_ZHW[nearest_N], prediction

    def _predict(
        self, files: Sequence[WeightsFile], active_VN: Sequence[Mask], stage: str, member: str = ""
    ) -> Prediction:
        """Run networks over whole slices; `stage`: what the progress is of; `member`: of a bank, its name."""
        slices_ZCHW, config, tell = self._stack.slices_ZCHW, self._config, partial(self._on_progress, stage.upper())

        def run(plan: InferencePlan) -> Prediction:
            network_of = _network_of(files, plan)
            narrow = config.narrow and not self._boxed and not self._weights.bank
            return predict_stack(network_of, slices_ZCHW, active_VN, plan, config.tta, tell, narrow, self._stack.flat)

        return self._run(member or files[0].name, run)

    def _run(self, name: str, run: Callable[[InferencePlan], Prediction]) -> Prediction:
        """Load the networks of one region, each for its share of the views, run them, and report plan and peaks.

        `name`: of the region, or of a bank's member, for warnings.
        """
        report = self._report
        prediction, plan = predict_finite(run, report.plan, partial(self._plan_fp32, name))
        if prediction.batch < plan.batch:
            report.warnings.append(f"the card ran out of memory: batch {prediction.batch} instead of {plan.batch}")
            report.plan = replace(plan, batch=prediction.batch)
        report.peak_bytes = max(report.peak_bytes, prediction.peak_bytes)
        report.cuda_peak = cuda.highest(report.cuda_peak, plan.device)
        return prediction

    def _plan_fp32(self, name: str) -> InferencePlan:
        """Plan in fp32 for a network and those after it, and report why. Raises BudgetError where that does not fit."""
        why = f"{self._report.plan.precision} gives NaN or infinity in {name.upper()}"
        try:
            self._report.plan = self._plan_in("fp32")
        except BudgetError as error:
            raise BudgetError(error.where, f"{why}, and fp32 does not fit", error.expected, "Give more.") from error
        self._report.warnings.append(f"{why}: it is run again in fp32, and so is every network after it")
        return self._report.plan


def _network_of(files: Sequence[WeightsFile], plan: InferencePlan) -> NetworkOf:
    """A function from a view to its network. Several networks take turns; a single one is loaded once."""
    if len(files) == 1:
        network = place(load_network(files[0]), plan)
        return lambda view: network
    return lambda view: place(load_network(files[view % len(files)]), plan)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began

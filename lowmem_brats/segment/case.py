"""One case, from NIfTI to NIfTI.

A network of all regions looks at every slice with brain. Of three networks WT's does, TC's looks where WT was found and
ET's where TC was found, which is exact, because fusion is nested: a slice without WT can hold no TC or ET. On which of
these slices it runs `routing` decides. Several sets share the views, so they cost no time; a flat stack has one view,
and each set looks at it. One network is in memory at a time.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats import __version__
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case import Case, read_case
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.labels import CONVENTIONS, LabelConvention, Region, fuse_regions
from lowmem_brats.data.nifti import write_label_map
from lowmem_brats.data.slices import (
    SliceStack,
    active_slices,
    occupied,
    prepare,
    slice_sizes,
    to_volume,
    to_voxels,
    usable,
)
from lowmem_brats.engine.precision import choose_precision
from lowmem_brats.errors import BudgetError
from lowmem_brats.files import add_to_checksum
from lowmem_brats.memory import cuda
from lowmem_brats.memory.device import choose_device, open_budget, process_peak_bytes
from lowmem_brats.memory.footprint import warm_up
from lowmem_brats.memory.planner import InferencePlan, plan_inference
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.segment.cleanup import drop_doubtful
from lowmem_brats.segment.stack import Prediction, count_passes, place, predict_finite, predict_stack
from lowmem_brats.weights.store import WeightsFile, WeightsSet, load_network, open_set, versions

OnProgress = Callable[[str, int, int], None]


@dataclass
class SegmentReport:
    """Everything that happened to one case."""

    case_id: str
    output: str
    weights: str
    labels: str
    vram: str
    versions: dict[str, str]
    plan: InferencePlan
    """Made when the size of the brain is known."""
    seconds: dict[str, float]
    """Per stage, in order; `load` is reading and slicing, and loading torch's planning tools."""
    slices: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per network, named by its regions: `run` and `skipped`, of the slices that hold brain."""
    voxels: dict[str, int] = field(default_factory=dict)
    """Per tissue."""
    millilitres: dict[str, float] = field(default_factory=dict)
    """Per tissue."""
    doubtful_millilitres: dict[str, float] = field(default_factory=dict)
    """What the next took away: `wt`, islands that became background; `et`, which became core."""
    min_confidence: float = 0.0
    """The share that was used for `drop_doubtful`."""
    min_confidence_of: str = ""
    """Where it comes from: `--min-confidence`, or the name of the weights."""
    peak_bytes: int = 0
    """Most bytes of tensors on the device at once, to compare with `plan.predicted_bytes`."""
    cuda_peak: dict[str, int] | None = None
    """On a card: most bytes reserved, and used as the driver sees it."""
    process_peak_bytes: int | None = None
    """Most resident host memory of the whole process so far, torch itself included; None where unknown."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Segmentation:
    """A segmented case in memory, LPS order."""

    case: Case
    label_XYZ: npt.NDArray[np.uint8]
    report: SegmentReport


def origin(files: CaseFiles, config: SegmentConfig, weights: WeightsSet) -> str:
    """Checksum of all that a label map is made from: the bytes of images and weights, the settings, this version.

    Where it computes, and in how much memory, does not count. Raises InputError for a file that cannot be read.
    """
    settings = replace(config, weights=(), device="", vram="", min_confidence=least_confidence(config, weights))
    digest = hashlib.blake2b(repr((__version__, settings, list(files.images))).encode(), digest_size=8)
    images = [files.stacked] if files.stacked else files.images.values()
    for path in (*images, *(file.path for file in weights.files)):
        add_to_checksum(digest, path)
    return digest.hexdigest()


def least_confidence(config: SegmentConfig, weights: WeightsSet) -> float:
    """The share for `drop_doubtful`: as asked for, else as the weights say."""
    return weights.min_confidence if config.min_confidence is None else config.min_confidence


def segment_case(
    files: CaseFiles,
    output: Path,
    config: SegmentConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
    overwrite: bool = True,
) -> Segmentation:
    """Segment one case and write its label map to `output`, in the grid of its first image.

    `on_progress(regions, slices done, slices in all)`; `on_plan` is called before a network runs. Raises
    InputError, WeightsError or BudgetError before anything is written; without `overwrite` also where there is an
    `output` by then.
    """
    convention, seconds = CONVENTIONS[config.labels], dict[str, float]()
    weights = open_set(config.weights, alone=config.fast)
    device, warnings = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    budget = open_budget(config.vram, device)
    with _timed(seconds, "load"):
        warm_up()
        case = read_case(files)
        stack = prepare(case.images_CXYZ, stride_of(weights.network), case.spacing_mm)
    with _timed(seconds, "plan"):
        views = _views(weights, stack, config)
        size_HW = max(slice_sizes(stack.brain_ZHW.shape, views), key=math.prod)

        def plan_in(precision: str) -> InferencePlan:
            plan = plan_inference(weights.network, size_HW, budget, str(device), precision)
            on_plan(plan)
            return plan

        plan = plan_in(precision)
    report = SegmentReport(
        files.case_id, str(output), weights.name, convention.name, config.vram, versions(), plan, seconds
    )
    report.min_confidence = least_confidence(config, weights)
    report.min_confidence_of = weights.name if config.min_confidence is None else "--min-confidence"
    report.warnings = warnings + case.warnings + stack.notes
    found = _predict_regions(weights, stack, config, report, plan_in, on_progress)
    with _timed(seconds, "fuse"):
        logit_ZHW = {region: to_voxels(sum_ZHW[None], stack)[0] for region, sum_ZHW in found.items()}
        masks, gone = drop_doubtful(logit_ZHW, report.min_confidence)
        label_XYZ = to_volume(fuse_regions(masks, convention), stack)
        voxel_mm3 = float(np.prod(case.spacing_mm))
    with _timed(seconds, "write"):
        write_label_map(label_XYZ, case.reference, output, origin(files, config, weights), overwrite)
    report.doubtful_millilitres = {region.value: count * voxel_mm3 / 1000 for region, count in gone.items()}
    if gone[Region.ET]:
        doubtful = f"{1000 * report.doubtful_millilitres['et']:.0f} mm³ of enhancing tumour"
        rule = f"share {report.min_confidence:g} of {report.min_confidence_of}"
        report.warnings.append(f"{doubtful} are doubtful and counted as core ({rule}; --min-confidence 0 keeps them)")
    _count(report, label_XYZ, convention, voxel_mm3)
    return Segmentation(case, label_XYZ, report)


def _views(weights: WeightsSet, stack: SliceStack, config: SegmentConfig) -> int:
    """From how many sides the case is seen."""
    return usable(1 if config.fast else weights.network.views, stack.flat)


def _predict_regions(
    weights: WeightsSet,
    stack: SliceStack,
    config: SegmentConfig,
    report: SegmentReport,
    plan_in: Callable[[str], InferencePlan],
    on_progress: OnProgress,
) -> dict[Region, npt.NDArray[np.float32]]:
    """Run the networks, one in memory at a time: region → logits added up over the views, as `Prediction.sum_KZHW`.

    `plan_in`: precision → plan, for a network whose logits are not finite in the report's.
    """
    logit_ZHW: dict[Region, npt.NDArray[np.float32]] = {}
    views = _views(weights, stack, config)
    if stack.flat and (weights.network.views > 1 or weights.network.context):
        report.warnings.append("slices too few, or too far apart, to tell of each other: axial slices only")
    brain_VN = active_VN = occupied(stack.brain_ZHW, views)
    for files in weights.by_region():
        name, regions = files[0].name, files[0].regions
        turns = [[file] for file in files] if stack.flat else [files]
        report.slices[name] = {"run": 0, "skipped": len(turns) * count_passes(brain_VN, config.tta)}
        with _timed(report.seconds, name):
            sums = [_look(turn, stack, active_VN, config, report, plan_in, on_progress) for turn in turns]
        logit_ZHW |= zip(regions, sum(sums[1:], sums[0]), strict=True)
        active_VN = active_slices(active_VN, occupied(logit_ZHW[regions[-1]] > 0, views))
    return logit_ZHW


def _look(
    files: Sequence[WeightsFile],
    stack: SliceStack,
    active_VN: Sequence[npt.NDArray[np.bool_]],
    config: SegmentConfig,
    report: SegmentReport,
    plan_in: Callable[[str], InferencePlan],
    on_progress: OnProgress,
) -> npt.NDArray[np.float32]:
    """Run networks of one kind that share the views, and report it; returns `Prediction.sum_KZHW`."""
    name, slices_ZCHW = files[0].name, stack.slices_ZCHW
    how = config.tta, partial(on_progress, name.upper()), config.narrow, stack.flat

    def run(plan: InferencePlan) -> Prediction:
        return predict_stack(_network_of(files, plan), slices_ZCHW, active_VN, plan, *how)

    prediction, plan = predict_finite(run, report.plan, partial(_plan_fp32, name, report, plan_in))
    if prediction.batch < plan.batch:
        report.warnings.append(f"the card ran out of memory: batch {prediction.batch} instead of {plan.batch}")
        report.plan = replace(plan, batch=prediction.batch)
    report.peak_bytes = max(report.peak_bytes, prediction.peak_bytes)
    report.cuda_peak = cuda.highest(report.cuda_peak, plan.device)
    report.slices[name]["run"] += prediction.run
    report.slices[name]["skipped"] -= prediction.run
    return prediction.sum_KZHW


def _plan_fp32(name: str, report: SegmentReport, plan_in: Callable[[str], InferencePlan]) -> InferencePlan:
    """Plan in fp32 for this network and those after it, and report why. Raises BudgetError where that does not fit."""
    why = f"{report.plan.precision} gives NaN or infinity in {name.upper()}"
    try:
        report.plan = plan_in("fp32")
    except BudgetError as error:
        raise BudgetError(error.where, f"{why}, and fp32 does not fit", error.expected, "Give more.") from error
    report.warnings.append(f"{why}: it is run again in fp32, and so is every network after it")
    return report.plan


def _network_of(files: Sequence[WeightsFile], plan: InferencePlan) -> Callable[[int], SliceNetwork]:
    """View → the network that looks from there. Several take turns; one is loaded once."""
    if len(files) == 1:
        network = place(load_network(files[0]), plan)
        return lambda view: network
    return lambda view: place(load_network(files[view % len(files)]), plan)


def _count(
    report: SegmentReport, label_XYZ: npt.NDArray[np.uint8], convention: LabelConvention, voxel_mm3: float
) -> None:
    for tissue, label in convention.tissues.items():
        report.voxels[tissue] = int((label_XYZ == label).sum())
        report.millilitres[tissue] = report.voxels[tissue] * voxel_mm3 / 1000
    report.process_peak_bytes = process_peak_bytes()


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began

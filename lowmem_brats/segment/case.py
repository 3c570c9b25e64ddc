"""One case, from its files or images to its label map: read, segment in memory, write."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats import __version__
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case import Case, read_case
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.labels import LabelConvention, Region, convention_of, fuse_regions
from lowmem_brats.data.slices import (
    SliceStack,
    prepare,
    slice_sizes,
    to_volume,
    to_voxels,
    usable,
)
from lowmem_brats.data.whole import box_of, prepare_whole
from lowmem_brats.engine.precision import choose_precision
from lowmem_brats.errors import InputError
from lowmem_brats.files import add_to_checksum
from lowmem_brats.memory import cuda
from lowmem_brats.memory.bank import plan_members
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import choose_device, open_budget, process_peak_bytes
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import patches_of
from lowmem_brats.segment.cleanup import drop_doubtful
from lowmem_brats.segment.expected import expect, warnings_of
from lowmem_brats.segment.regions import OnProgress, RegionSearch, timed
from lowmem_brats.segment.result import Segmentation, SegmentReport
from lowmem_brats.weights.foreign import NOTES
from lowmem_brats.weights.store import WeightsSet, open_set, versions


@dataclass(frozen=True)
class _Setup:
    """The settings of a configuration, with the weights opened and the device chosen."""

    config: SegmentConfig
    weights: WeightsSet
    convention: LabelConvention
    device: torch.device
    precision: str
    """`fp32`, `fp16` or `bf16`."""
    budget: MemoryBudget
    notes: list[str]
    """Why the device is not the best one."""


def segment_case(
    files: CaseFiles,
    output: Path,
    config: SegmentConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
    overwrite: bool = True,
) -> Segmentation:
    """Segment one case from files and write its label map to `output`, in the grid of its first image.

    Otherwise as `segment_files`. Raises InputError too where `output` cannot be written, or, without `overwrite`,
    exists by then; all other errors are raised before anything is written.
    """
    result = segment_files(files, config, on_progress, on_plan)
    with timed(result.report.seconds, "write"):
        result.save(output, overwrite)
    return result


def segment_files(
    files: CaseFiles,
    config: SegmentConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
) -> Segmentation:
    """Read one case and segment it, as `segment_images`.

    Raises InputError for files that cannot be used, as `read_case`.
    """
    setup, seconds = _set_up(config), dict[str, float]()
    with timed(seconds, "load"):
        case = read_case(files)
        made_from = origin(files, config, setup.weights)
    return replace(_segment(case, setup, seconds, on_progress, on_plan), origin=made_from)


def segment_images(
    case: Case,
    config: SegmentConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_plan: Callable[[InferencePlan], None] = lambda plan: None,
) -> Segmentation:
    """Segment a case that is in memory.

    `on_progress(regions, slices done, slices in all)` is called after each batch, and `on_plan(plan)` before the first
    network runs and again where the plan changes. Raises InputError for settings that cannot be used, WeightsError for
    weights, and BudgetError where the budget is too small.
    """
    return _segment(case, _set_up(config), {}, on_progress, on_plan)


def origin(files: CaseFiles, config: SegmentConfig, weights: WeightsSet | None = None) -> str:
    """Checksum of all that a label map is made from: the bytes of images and weights, the settings, this version.

    `weights`: those of `config`, if they are open already. The device does not count, nor does the budget, unless the
    network sees patches, whose size it decides. Raises InputError for a file that cannot be read.
    """
    weights = weights or open_weights(config)
    vram = config.vram if patches_of(weights.network) else ""
    settings = replace(config, weights=(), device="", vram=vram, min_confidence=least_confidence(config, weights))
    digest = hashlib.blake2b(repr((__version__, settings, list(files.images))).encode(), digest_size=8)
    images = [files.stacked] if files.stacked else files.images.values()
    for path in (*images, *weights.paths):
        add_to_checksum(digest, path)
    return digest.hexdigest()


def least_confidence(config: SegmentConfig, weights: WeightsSet) -> float:
    """The share for `drop_doubtful`: as asked for, else as the weights say."""
    return weights.min_confidence if config.min_confidence is None else config.min_confidence


def open_weights(config: SegmentConfig) -> WeightsSet:
    """Open the weights that the settings name. Raises WeightsError as `open_set`, and InputError for settings."""
    weights = open_set(config.weights, alone=config.fast, member=config.member)
    if weights.bank and not config.narrow:
        found = f"{weights.name}, whose decision network chooses the slices"
        raise InputError("--every-slice", found, "a network to see them all", "Name a member of it with --member.")
    return weights


def _set_up(config: SegmentConfig) -> _Setup:
    """Find everything that may be wrong with the settings, before an image is read."""
    convention, weights = convention_of(config.labels), open_weights(config)
    device, notes = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    return _Setup(config, weights, convention, device, precision, open_budget(config.vram, device), notes)


def _segment(
    case: Case,
    setup: _Setup,
    seconds: dict[str, float],
    on_progress: OnProgress,
    on_plan: Callable[[InferencePlan], None],
) -> Segmentation:
    """Segment a case; `seconds`: the time that reading it took, to which each stage adds its own."""
    config, weights, convention = setup.config, setup.weights, setup.convention
    with timed(seconds, "load"):
        stack = _seen_by(weights, case)
    with timed(seconds, "plan"):
        views = usable(1 if config.fast else weights.network.views, stack.flat)
        size, brain_ZHW = _to_plan_for(weights, stack, views)

        def plan_in(precision: str) -> InferencePlan:
            arguments = weights.networks, size, setup.budget, str(setup.device), precision
            plan = plan_members(*arguments, brain_ZHW=brain_ZHW)
            on_plan(plan)
            return plan

        plan = plan_in(setup.precision)
    report = SegmentReport(
        case.case_id, weights.name, convention.name, weights.checksums, config.vram, versions(), plan, seconds
    )
    report.min_confidence = least_confidence(config, weights)
    report.min_confidence_of = weights.name if config.min_confidence is None else "--min-confidence"
    report.warnings = setup.notes + case.warnings + stack.notes + _patch_notes(weights, config, plan)
    found = RegionSearch(weights, stack, views, config, report, plan_in, on_progress).find()
    report.warnings += cuda.beyond(report.cuda_peak, setup.budget.total_bytes)
    with timed(seconds, "fuse"):
        logit_ZHW = {region: to_voxels(sum_ZHW[None], stack)[0] for region, sum_ZHW in found.items()}
        masks, gone = drop_doubtful(logit_ZHW, report.min_confidence)
        _tell_expected(report, setup, logit_ZHW, masks, stack, case)
        nested = weights.files[0].fusion == "nested"
        label_XYZ = to_volume(fuse_regions(masks, convention, nested), stack)
    _count(report, label_XYZ, gone, convention, float(np.prod(case.spacing_mm)))
    return Segmentation(case, label_XYZ, report)


def _seen_by(weights: WeightsSet, case: Case) -> SliceStack:
    """A case as the networks of a set see it: the brain, prepared as for a training here, or the whole volume.

    The whole volume is for imported networks of patches, as their authors prepare it.
    """
    if patches_of(weights.network) is None or weights.network.cropped:
        return prepare(case.images_CXYZ, weights.stride, case.spacing_mm)
    file = weights.files[0]
    return prepare_whole(case.stored_CXYZ, file.preprocessing, file.modalities)


def _to_plan_for(weights: WeightsSet, stack: SliceStack, views: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The size of the largest slice, and nothing; or that of the volume, and of the brain's bounding box."""
    if patches_of(weights.network) is None:
        return max(slice_sizes(stack.brain_ZHW.shape, views), key=math.prod), ()
    return stack.brain_ZHW.shape, tuple(side.stop - side.start for side in box_of(stack.brain_ZHW))


def _patch_notes(weights: WeightsSet, config: SegmentConfig, plan: InferencePlan) -> list[str]:
    """What differs from how the authors of a network of patches run it."""
    network = patches_of(weights.network)
    if network is None:
        return []
    shown = tuple(" × ".join(map(str, sides)) for sides in (plan.patch_ZHW, network.window_ZHW))
    notes = ["mirror images are not run for networks of patches: --tta is ignored"] if config.tta else []
    notes += [str(each) for each in weights.files[0].training.get(NOTES, [])]
    if plan.patch_ZHW != network.window_ZHW or plan.cropped == network.whole:
        where = "of the brain's box " if network.whole else ""
        notes.append(
            f"to fit the budget, patches {where}of {shown[0]} voxels in place of its authors' {shown[1]}: the norms "
            "see another part of the case, and Dice can fall: in the one set that was tried by 0.1 and more"
        )
    return notes


def _tell_expected(
    report: SegmentReport,
    setup: _Setup,
    logit_ZHW: Mapping[Region, npt.NDArray[np.float32]],
    masks: Mapping[Region, npt.NDArray[np.bool_]],
    stack: SliceStack,
    case: Case,
) -> None:
    """Report the Dice that is expected of each region, where the weights tell; `logit_ZHW`: added up over the views."""
    config, models, views = setup.config, setup.weights.expected, setup.weights.network.views
    if not models:
        return
    usual = config.narrow and not config.tta and not config.fast and config.min_confidence is None
    if not usual or stack.flat or case.missing:
        fitted_on = "volumes with all modalities, all views and the usual options"
        report.warnings.append(f"no Dice is expected: the estimate was fitted on {fitted_on}")
        return
    mean_ZHW = {region: sum_ZHW / np.float32(views) for region, sum_ZHW in logit_ZHW.items()}
    brain = int(stack.brain_ZHW.sum()) // math.prod(stack.stretch_HW)
    expected = expect(models, mean_ZHW, masks, brain, float(np.prod(case.spacing_mm)))
    report.warnings += warnings_of(expected, models)
    report.expected_dice = {
        region.value: {"dice": each.dice, "low": each.low, "high": each.high} for region, each in expected.items()
    }


def _count(
    report: SegmentReport,
    label_XYZ: npt.NDArray[np.uint8],
    gone: Mapping[Region, int],
    convention: LabelConvention,
    voxel_mm3: float,
) -> None:
    """Report volumes: of each tissue, and of what `drop_doubtful` took away, in voxels `gone` per region."""
    report.doubtful_millilitres = {region.value: count * voxel_mm3 / 1000 for region, count in gone.items()}
    if gone[Region.ET]:
        doubtful = f"{1000 * report.doubtful_millilitres['et']:.0f} mm³ of enhancing tumour"
        rule = f"share {report.min_confidence:g} of {report.min_confidence_of}"
        report.warnings.append(f"{doubtful} are doubtful and counted as core ({rule}; --min-confidence 0 keeps them)")
    for tissue, label in convention.tissues.items():
        report.voxels[tissue] = int((label_XYZ == label).sum())
        report.millilitres[tissue] = report.voxels[tissue] * voxel_mm3 / 1000
    report.process_peak_bytes = process_peak_bytes()

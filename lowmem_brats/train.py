"""Train the three networks of a set, one region after another.

Each network learns from the slices that it will see (WT from all brain slices, TC from slices with WT, ET from slices
with TC) and starts from its parent's weights.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from lowmem_brats.case_files import CaseFiles, find_labelled_cases
from lowmem_brats.config import TrainConfig
from lowmem_brats.dataset import build_cache, frame_of, split_cases
from lowmem_brats.files import replace_when_complete
from lowmem_brats.fit import Epoch, OnProgress, RegionTraining
from lowmem_brats.labels import CONVENTIONS, Region
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import choose_device, open_budget
from lowmem_brats.memory.planner import TrainPlan, plan_train
from lowmem_brats.memory.step import place
from lowmem_brats.networks import build_network, stride_of
from lowmem_brats.precision import choose_precision
from lowmem_brats.predict import sound_precision
from lowmem_brats.weights import WeightsFile, save_network, versions, write_index


@dataclass
class TrainReport:
    """What a training did; written to `run.json`."""

    config: dict[str, object]
    versions: dict[str, str]
    device: str
    precision: str
    training_cases: list[str]
    validation_cases: list[str]
    epochs: list[Epoch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plan: TrainPlan | None = None
    peak_bytes: int = 0
    """Most bytes of tensors on the device in a step, to compare with the plan's `predicted_bytes`."""
    cuda_peak: dict[str, int] | None = None
    """On a card: most bytes allocated, reserved and used as the driver sees it."""


def train_set(
    data: Path,
    out: Path,
    config: TrainConfig,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_plan: Callable[[TrainPlan], None] = lambda plan: None,
) -> TrainReport:
    """Train WT, TC and ET on a folder of labelled cases; `out` becomes a weights set with `run.json` beside it.

    Raises InputError for unusable cases or options.
    """
    device, notes = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    budget = open_budget(config.vram, device)
    labelled, unlabelled = find_labelled_cases(data)
    notes += [f"{folder} has no label map: left out" for folder in unlabelled]
    split = split_cases(labelled, config.validation, config.seed)
    training_ids, validation_ids = ([case.case_id for case in part] for part in split)
    report = TrainReport(asdict(config), versions(), str(device), precision, training_ids, validation_ids, notes=notes)
    out.mkdir(parents=True, exist_ok=True)
    # Everything grows in a folder of its own and is moved at the end: an older set stays whole until then.
    with tempfile.TemporaryDirectory(prefix=".training-", dir=out, ignore_cleanup_errors=True) as scratch:
        _train_regions(Path(scratch), split, budget, config, report, Callbacks(on_progress, on_epoch, on_plan))
        paths = {region: out / f"{region.value}.safetensors" for region in Region}
        for path in paths.values():
            os.replace(Path(scratch) / path.name, path)
        write_index(out, out.resolve().name, paths)
    with replace_when_complete(out / "run.json") as partial:
        partial.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


@dataclass(frozen=True)
class Callbacks:
    """Who is told of what happens."""

    on_progress: OnProgress
    on_epoch: Callable[[Epoch], None]
    on_plan: Callable[[TrainPlan], None]


def _train_regions(
    scratch: Path,
    split: tuple[list[CaseFiles], list[CaseFiles]],
    budget: MemoryBudget,
    config: TrainConfig,
    report: TrainReport,
    tell: Callbacks,
) -> None:
    """Read the cases, plan, and train one region after another; their weights are written to `scratch`."""
    device, convention = torch.device(report.device), CONVENTIONS[config.labels]
    files = [*split[0], *split[1]]
    cases = build_cache(
        files,
        scratch / "cache",
        stride_of(config.network),
        convention,
        lambda done, total: tell.on_progress("reading cases", done, total),
    )
    report.notes += [f"{case.case_id}: {text}" for case in cases for text in case.warnings]
    training, validation = cases[: len(split[0])], cases[len(split[0]) :]
    torch.manual_seed(config.seed)
    # One network for all: each region continues from its parent's weights, the same anatomy and a nested target.
    network = build_network(config.network)
    middle_CHW = training[0].slices_ZCHW[len(training[0].slices_ZCHW) // 2]
    load = partial(copy.deepcopy, network)
    report.precision, notes = sound_precision(load, middle_CHW, report.device, report.precision)
    report.notes += notes
    frame_HW = frame_of(training)
    plan = plan_train(config.network, frame_HW, config.batch, budget, report.device, report.precision)
    report.plan = plan
    tell.on_plan(plan)
    place(network, device)
    for region in Region:
        _train_region(RegionTraining(region, network, training, validation, config, plan), scratch, report, tell)


def _train_region(run: RegionTraining, scratch: Path, report: TrainReport, tell: Callbacks) -> None:
    """Train one region, note it in the report and write its weights."""
    best = run.run(tell.on_progress, tell.on_epoch)
    report.epochs += run.epochs
    report.notes += run.notes
    report.peak_bytes = max(report.peak_bytes, run.peak_bytes)
    report.cuda_peak = cuda.highest(report.cuda_peak, run.plan.device)
    path = scratch / f"{run.region.value}.safetensors"
    header = WeightsFile(path, run.region, run.config.network, _summary(report, best), _metrics(best))
    save_network(run.network, header)


def _summary(report: TrainReport, best: Epoch) -> dict[str, object]:
    return {
        "training_cases": len(report.training_cases),
        "steps": best.steps,
        "seconds": round(best.seconds),
        "precision": report.precision,
        "versions": report.versions,
    }


def _metrics(best: Epoch) -> dict[str, object]:
    return {"validation_dice": round(best.mean_dice, 4), "validation_cases": len(best.validation_dice)}

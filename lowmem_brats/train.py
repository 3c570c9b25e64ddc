"""Train the three networks of a set, one region after another.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation":
Adam, batches of 10 slices, batch Dice. Each network learns from the slices that it will see: WT from all brain slices,
TC from slices with WT, ET from slices with TC; and it starts from its parent's weights.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowmem_brats import __version__
from lowmem_brats.augment import apply_warp, sample_warp
from lowmem_brats.case_files import find_labelled_cases
from lowmem_brats.config import TrainConfig
from lowmem_brats.dataset import CachedCase, build_cache, frame_of, gather, split_cases, training_rows
from lowmem_brats.files import replace_when_complete
from lowmem_brats.labels import CONVENTIONS, Region
from lowmem_brats.memory import cuda
from lowmem_brats.memory.device import PeakMeter, choose_device, open_budget
from lowmem_brats.memory.footprint import treats_slices_apart
from lowmem_brats.memory.planner import InferencePlan, TrainPlan, plan_train
from lowmem_brats.memory.step import build_optimizer, split_batch, training_step
from lowmem_brats.memory.step import place as place_for_training
from lowmem_brats.metrics import dice
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.precision import DTYPES, choose_precision
from lowmem_brats.predict import empty_cache, out_of_memory, place, predict_region
from lowmem_brats.weights import WeightsFile, save_network, write_index

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training slices gave."""

    region: str
    number: int
    steps: int
    loss: float
    """Mean batch Dice loss."""
    validation_dice: dict[str, float]
    """Per validation patient, on the slices that hold the region's parent in the reference."""
    seconds: float
    """Since the region's training began."""
    skipped_steps: int
    """Steps left out because the gradient was not finite."""

    @property
    def mean_dice(self) -> float:
        """Mean over the validation patients."""
        return float(np.mean(list(self.validation_dice.values())))


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
    training_files, validation_files = split_cases(find_labelled_cases(data), config.validation, config.seed)
    report = TrainReport(
        asdict(config),
        {"lowmem-brats": __version__, "torch": torch.__version__, "python": platform.python_version()},
        str(device),
        precision,
        [case.case_id for case in training_files],
        [case.case_id for case in validation_files],
        notes=notes,
    )
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    # One network for all: each region continues from its parent's weights, the same anatomy and a nested target.
    network = place_for_training(build_network(config.network), device)
    try:
        cases = build_cache(
            [*training_files, *validation_files],
            out / "cache",
            network.stride,
            CONVENTIONS[config.labels],
            lambda done, total: on_progress("reading cases", done, total),
        )
        training, validation = cases[: len(training_files)], cases[len(training_files) :]
        # Whoever leaves the format to us gets a plan that holds in fp32 too.
        widest = "fp32" if config.precision == "auto" else precision
        frame_HW = frame_of(training)
        plan = plan_train(config.network, frame_HW, config.batch, budget, str(device), precision, widest)
        report.plan = plan
        on_plan(plan)
        runs = (RegionTraining(region, network, training, validation, config, plan) for region in Region)
        paths = {run.region: _train_region(run, out, report, on_progress, on_epoch) for run in runs}
    finally:
        shutil.rmtree(out / "cache", ignore_errors=True)
    write_index(out, out.resolve().name, paths)
    with replace_when_complete(out / "run.json") as partial:
        partial.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report


def _train_region(
    run: RegionTraining, out: Path, report: TrainReport, on_progress: OnProgress, on_epoch: Callable[[Epoch], None]
) -> Path:
    """Train one region, note it in the report and write its weights; returns their path."""
    best = run.run(on_progress, on_epoch)
    report.epochs += run.epochs
    report.notes += run.notes
    report.peak_bytes = max(report.peak_bytes, run.peak_bytes)
    report.cuda_peak = cuda.highest(report.cuda_peak, run.plan.device)
    path = out / f"{run.region.value}.safetensors"
    header = WeightsFile(path, run.region, run.config.network, _summary(report, best), _metrics(best))
    save_network(run.network, header)
    return path


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


class RegionTraining:
    """The training of one region's network, in place; afterwards it holds the best epoch's weights."""

    def __init__(
        self,
        region: Region,
        network: SliceNetwork,
        training: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        config: TrainConfig,
        plan: TrainPlan,
    ) -> None:
        self.region, self.network, self.config, self.plan = region, network, config, plan
        self.training, self.validation = training, validation
        self.epochs: list[Epoch] = []
        self._frame_HW = frame_of(training)
        self._rows = np.array(training_rows(training, region))
        self._rng = np.random.default_rng([config.seed, region.depth])
        self._optimizer = build_optimizer(network, config.learning_rate)
        self._scaler = torch.amp.GradScaler("cuda", enabled=plan.precision == "fp16")
        self._began = time.monotonic()
        self._steps = self._skipped = 0
        self.peak_bytes = 0
        """Most bytes of tensors in a step."""
        self.notes: list[str] = []

    def run(self, on_progress: OnProgress, on_epoch: Callable[[Epoch], None]) -> Epoch:
        """Train until the epochs or the time are used up, and return the best epoch by validation Dice."""
        best, best_state = None, {}
        while self._progress() < 1:
            losses = self._run_epoch(on_progress)
            if not losses:  # the time ran out just now
                break
            plan = InferencePlan(self.plan.device, self.plan.precision, 1)
            scores = validate(self.network, self.validation, self.region, plan)
            epoch = Epoch(
                self.region.value,
                len(self.epochs) + 1,
                self._steps,
                float(np.mean(losses)),
                scores,
                time.monotonic() - self._began,
                self._skipped,
            )
            self.epochs.append(epoch)
            on_epoch(epoch)
            if best is None or epoch.mean_dice >= best.mean_dice:
                best, best_state = epoch, {k: v.cpu().clone() for k, v in self.network.state_dict().items()}
        if best is None:
            raise RuntimeError("the time limit left no step")
        self.network.load_state_dict(best_state)
        return best

    @property
    def _steps_per_epoch(self) -> int:
        return max(len(self._rows) // self.config.batch, 1)

    def _progress(self) -> float:
        """How much of the training is over, 0 to 1, by steps or by time, whichever is further."""
        by_steps = self._steps / (self._steps_per_epoch * self.config.epochs)
        if self.config.max_minutes is None or self._steps == 0:
            return by_steps
        share = self.config.max_minutes * 60 / len(Region)
        return max(by_steps, (time.monotonic() - self._began) / share)

    def _run_epoch(self, on_progress: OnProgress) -> list[float]:
        self.network.train()
        order = self._rng.permutation(len(self._rows))
        losses = []
        for number in range(self._steps_per_epoch):
            progress = self._progress()
            if progress >= 1:
                break
            self._optimizer.param_groups[0]["lr"] = self.config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
            losses.append(self._step(order[number * self.config.batch : (number + 1) * self.config.batch]))
            on_progress(f"{self.region.name} epoch {len(self.epochs) + 1}", number + 1, self._steps_per_epoch)
        return losses

    def _step(self, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        """One optimisation step on the chosen rows; returns the loss."""
        slices_NCHW, target_N1HW = gather(self.training, self._rows[chosen].tolist(), self.region, self._frame_HW)
        if self.config.augment:
            warp = sample_warp(self._rng, slices_NCHW.shape)
            slices_NCHW, target_N1HW = apply_warp(warp, slices_NCHW, target_N1HW)
        micro_batches = split_batch(slices_NCHW, target_N1HW, self.plan.micro_batch)
        if self._steps == 1:
            # Adam's state exists now, and from here on every step is alike: its peak is the peak.
            moments = (moment for state in self._optimizer.state.values() for moment in state.values())
            resident = (*self.network.parameters(), *self.network.buffers(), *moments)
            with PeakMeter(torch.device(self.plan.device), *resident) as meter:
                loss, stepped = self._optimise(micro_batches)
            self.peak_bytes = meter.peak_bytes
        else:
            loss, stepped = self._optimise(micro_batches)
        self._steps += 1
        self._skipped += not stepped
        return loss

    def _optimise(self, micro_batches: list[tuple[Tensor, Tensor]]) -> tuple[float, bool]:
        """`step.training_step`, with smaller micro-batches where the card runs out of memory all the same."""
        while True:
            dtype, stages = DTYPES[self.plan.precision], self.plan.stages
            try:
                return training_step(self.network, self._optimizer, self._scaler, micro_batches, dtype, stages)
            except torch.OutOfMemoryError as error:
                if self.plan.micro_batch == 1 or not treats_slices_apart(self.config.network):
                    raise out_of_memory(self.plan.device) from error
            # Only here, outside the except block, has the failed step let go of its tensors.
            self._optimizer.zero_grad(set_to_none=True)
            empty_cache()
            before, smaller = self.plan.micro_batch, self.plan.micro_batch // 2
            self.notes.append(f"the card ran out of memory: {smaller} slices at once instead of {before}")
            self.plan = replace(self.plan, micro_batch=smaller)
            micro_batches = [part for pair in micro_batches for part in split_batch(*pair, smaller)]


def validate(
    network: SliceNetwork, cases: Sequence[CachedCase], region: Region, plan: InferencePlan
) -> dict[str, float]:
    """Dice of a region per patient (TP, FP, FN summed over slices), on slices where the reference holds its parent."""
    placed = place(copy.deepcopy(network), plan)
    scores = {}
    for case in cases:
        mask_ZHW = predict_region(placed, case.slices_ZCHW, case.seen_by(region), plan).mask_ZHW
        truth_ZHW = case.depth_ZHW >= region.depth
        hits = int((mask_ZHW & truth_ZHW).sum())
        scores[case.case_id] = dice(hits, int(mask_ZHW.sum()) - hits, int(truth_ZHW.sum()) - hits)
    return scores

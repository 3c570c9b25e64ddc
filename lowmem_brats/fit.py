"""Fit one region's network: batches, steps, epochs, validation by patient.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation":
Adam, batches of 10 slices, batch Dice. Shape suffixes: N slices in a batch, Z slices of a case, C modalities, H W
in-plane.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowmem_brats.augment import apply_warp, sample_warp
from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.dataset import CachedCase, frame_of, gather, training_rows
from lowmem_brats.errors import InputError
from lowmem_brats.labels import Region
from lowmem_brats.memory.device import PeakMeter, storage_bytes
from lowmem_brats.memory.footprint import treats_slices_apart
from lowmem_brats.memory.planner import InferencePlan, TrainPlan
from lowmem_brats.memory.step import build_optimizer, build_scaler, moments, split_batch, training_step
from lowmem_brats.metrics import dice
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.precision import DTYPES
from lowmem_brats.predict import empty_cache, out_of_memory, place, predict_region

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
        self._scaler = build_scaler(torch.device(plan.device), DTYPES[plan.precision])
        self._began = time.monotonic()
        self._steps = self._skipped = 0
        self.peak_bytes = 0
        """Most bytes of tensors in a step or in validation; 0 before the second step."""
        self.notes: list[str] = []

    def run(self, on_progress: OnProgress, on_epoch: Callable[[Epoch], None]) -> Epoch:
        """Train until the epochs or the time are used up, and return the best epoch by validation Dice."""
        while self._progress() < 1:
            losses = self._run_epoch(on_progress)
            if not losses:  # the time ran out just now
                break
            if self._skipped == self._steps:
                found = f"no gradient of {self._steps} steps was finite"
                advice = "Pass --precision fp32, or a smaller --learning-rate."
                raise InputError(f"training {self.region.name}", found, "finite gradients", advice)
            self._optimizer.zero_grad(set_to_none=True)  # validation needs the room
            scores, peak_bytes = validate(self.network, self.config.network, self.validation, self.region, self.plan)
            self.peak_bytes = self.peak_bytes and max(self.peak_bytes, peak_bytes + self._resident_bytes())
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
            best = max(self.epochs, key=lambda each: (each.mean_dice, each.number))
            if epoch is best:
                best_state = {key: value.cpu().clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(best_state)
        return best

    def _resident(self) -> list[Tensor]:
        """What stays on the device between steps: weights and Adam's state."""
        return [*self.network.parameters(), *self.network.buffers(), *moments(self._optimizer)]

    def _resident_bytes(self) -> int:
        """What a meter of the validation does not see: CUDA's allocator knows all, the count on the CPU nothing."""
        return sum(map(storage_bytes, self._resident())) if self.plan.device == "cpu" else 0

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
        if self._optimizer.state and not self.peak_bytes:
            # Adam's state exists now, and from here on every step is alike: its peak is the peak.
            with PeakMeter(torch.device(self.plan.device), *self._resident()) as meter:
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
    network: SliceNetwork, config: NetworkConfig, cases: Sequence[CachedCase], region: Region, plan: TrainPlan
) -> tuple[dict[str, float], int]:
    """Dice of a region per patient (TP, FP, FN summed over slices), on slices where the reference holds its parent.

    In the plan's format, as `segment` will run: in place for fp32, else in a half copy. Returns the scores and the
    peak bytes of prediction.
    """
    one_slice = InferencePlan(plan.device, plan.precision, batch=1)
    placed = network.eval()
    if plan.precision != "fp32":
        with torch.device("meta"):
            placed = build_network(config)
        state = network.state_dict().items()
        halves = {key: value.to(DTYPES[plan.precision]) if value.is_floating_point() else value for key, value in state}
        placed.load_state_dict(halves, assign=True)
        placed = place(placed, one_slice)
    scores, peak_bytes = {}, 0
    for case in cases:
        prediction = predict_region(placed, case.slices_ZCHW, case.seen_by(region), one_slice)
        truth_ZHW = case.depth_ZHW >= region.depth
        hits = int((prediction.mask_ZHW & truth_ZHW).sum())
        found, present = int(prediction.mask_ZHW.sum()), int(truth_ZHW.sum())
        scores[case.case_id] = dice(hits, found - hits, present - hits)
        peak_bytes = max(peak_bytes, prediction.peak_bytes)
    return scores, peak_bytes

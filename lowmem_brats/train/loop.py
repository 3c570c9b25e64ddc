"""Train one network: steps, epochs, and validation by patient.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation":
Adam, batches of 10 slices, batch Dice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.labels import Region, names_of
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.precision import DTYPES, PrecisionController
from lowmem_brats.engine.step import Outcome, TrainingStep
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory.device import PeakMeter, out_of_memory, storage_bytes
from lowmem_brats.memory.planner import TrainPlan, leaner_plan
from lowmem_brats.networks import Network
from lowmem_brats.networks.drop import set_rates
from lowmem_brats.segment.stack import empty_cache
from lowmem_brats.train.batches import Batch
from lowmem_brats.train.crops import batches_of
from lowmem_brats.train.schedule import WeightAverage, learning_rate, stops_early
from lowmem_brats.train.state import Epoch, History, TrainingState
from lowmem_brats.train.validate import Validation, best_thresholds, validate

CHECKPOINT_SECONDS = 600.0
CURVE_STEPS = 10  # steps averaged in each point of the loss curve


@dataclass(frozen=True)
class Listener:
    """Functions to call while a training runs."""

    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    on_epoch: Callable[[Epoch, Validation], None] = lambda epoch, validation: None
    on_checkpoint: Callable[[], None] = lambda: None
    """Called after every epoch and every ten minutes, between two steps."""


class NetworkTraining:
    """Trains one network in place.

    `regions`: those that the network segments, one or all three; `network`: placed by `engine.step.place`; `training`,
    `validation`: prepared cases; `plans`: how to take a step, first in the format to train in, then in the safer format
    to fall back to, if there is one.
    """

    def __init__(
        self,
        regions: tuple[Region, ...],
        network: Network,
        training: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        config: TrainConfig,
        plans: Sequence[TrainPlan],
    ) -> None:
        self.regions, self.network, self.config = regions, network, config
        self.validation, self.batches = validation, batches_of(training, regions, config)
        self.name = names_of(regions)
        self.plans = {plan.precision: plan for plan in plans}
        self.state = TrainingState(
            network,
            TrainingStep(network, find_loss(config.loss), config.weight_decay, config.clip_norm, config.optimizer),
            WeightAverage(network, config.average),
            PrecisionController(plans[0].precision, plans[-1].precision),
        )
        set_rates(network, config.stochastic_depth, config.spatial_dropout)
        # Before a checkpoint is loaded, which the device might have no room for.
        self.state.step.optimizer.keep_state(plans[0].state_on_host)
        self._counted = time.monotonic()

    @property
    def history(self) -> History:
        """What has happened so far."""
        return self.state.history

    def run(self, tell: Listener) -> Epoch:
        """Train until epochs, time or patience are used up; returns the epoch with the best validation Dice.

        Raises BudgetError if the device runs out of memory with the smallest plan, InputError if no gradient was
        finite.
        """
        self._counted = saved = time.monotonic()
        # A resumed training may be out of time already and still have its first epoch to validate.
        while not self.history.epochs or (self._progress() < 1 and not stops_early(self.config, self.history.scores)):
            epoch = len(self.history.epochs)
            for batch in self.batches.read(epoch, len(self.history.losses)):
                if (progress := self._progress()) >= 1:
                    break
                self._take(batch, progress)
                done = len(self.history.losses)
                tell.on_progress(f"{self.name.upper()} epoch {epoch + 1}", done, self.batches.per_epoch)
                if time.monotonic() - saved > CHECKPOINT_SECONDS and done < self.batches.per_epoch:
                    self._count_time()
                    tell.on_checkpoint()
                    saved = time.monotonic()
            self._end_epoch(tell)
            saved = time.monotonic()
        return self.history.best

    def _progress(self) -> float:
        """How much of the training is over, 0 to 1: by steps or by time, whichever is further on."""
        progress = self.history.steps / (self.batches.per_epoch * self.config.epochs)
        if self.config.max_seconds is not None and self.history.steps:
            share = self.config.max_seconds * len(self.regions) / len(self.config.regions)
            progress = max(progress, self._count_time() / share)
        return parallel.furthest(progress)

    def _count_time(self) -> float:
        """Add the time since this was called last to the history; returns the seconds of the whole training."""
        self._counted, before = time.monotonic(), self._counted
        self.history.seconds += self._counted - before
        return self.history.seconds

    def _take(self, batch: Batch, progress: float) -> None:
        """Take one optimisation step, and note its loss, its gradient and the format of the next step."""
        history, controller = self.history, self.state.controller
        precision = controller.precision
        rate = learning_rate(self.config, history.steps, progress, history.scores)
        outcome = self._optimise(batch, precision, rate)
        history.steps += 1
        history.skipped_steps += not outcome.stepped
        history.fallback_steps += precision != controller.fast
        history.losses.append(outcome.loss)
        if len(history.losses) % CURVE_STEPS == 0:
            history.add_point(CURVE_STEPS)
        self.state.average.follow(self.network, history.steps)
        if why := controller.observe(outcome.loss, outcome.norm):
            history.switches.append((history.steps, why))

    def _optimise(self, batch: Batch, precision: str, rate: float) -> Outcome:
        """Call `TrainingStep.take`; if the card runs out of memory all the same, retry with a plan that needs less."""
        while True:
            plan = self.plans[precision]
            try:
                self.state.step.optimizer.keep_state(plan.state_on_host)
                parts = batch.micro_batches(plan.micro_batch, plan.device)
                with self._metered(plan):
                    return self.state.step.take(parts, rate, DTYPES[precision], plan.stages, batch.seeds)
            except torch.OutOfMemoryError as error:
                # With several processes there is no second try: the others wait for the sums of this step.
                leaner = self._leaner(plan) if parallel.size() == 1 else None
                if leaner is None:
                    raise out_of_memory(plan.device) from error
            # Outside the except block, because only here has the failed step released its tensors.
            self.network.zero_grad(set_to_none=True)
            empty_cache()
            self.history.notes.append(f"the card ran out of memory: from now on {leaner.conceded}")
            self.plans[precision] = leaner

    def _leaner(self, plan: TrainPlan) -> TrainPlan | None:
        """The fastest plan that needs less than this one, or None."""
        try:
            return leaner_plan(plan, self.config.network, self.batches.size, self.config.objective)
        except BudgetError:
            return None

    @contextmanager
    def _metered(self, plan: TrainPlan) -> Iterator[None]:
        """Measure the peak of a step once per format, when Adam's state exists; all later steps are alike."""
        if not self.state.step.moments() or plan.precision in self.history.peaks:
            yield
            return
        step = self.state.step
        with PeakMeter(torch.device(plan.device), *step.resident(), on_host=step.on_host()) as meter:
            yield
        self.history.peaks[plan.precision] = meter.peak_bytes

    def _end_epoch(self, tell: Listener) -> None:
        """Validate, keep the weights if they are the best so far, and call the listener."""
        history = self.history
        if not history.losses:  # the time ran out before the first step of the epoch
            return
        if history.skipped_steps == history.steps:
            found = f"no gradient of {history.steps} steps was finite"
            advice = "Pass --precision fp32, or a smaller --learning-rate."
            raise InputError(f"training {self.name.upper()}", found, "finite gradients", advice)
        history.add_point(len(history.losses) % CURVE_STEPS)
        self.network.zero_grad(set_to_none=True)  # validation needs the memory
        average = self.state.average
        # In fewer steps than the average takes to move once, it is still what the training began with.
        state = average.state if average.decay and average.updates else self.network.state_dict()
        plan = self.plans[self.state.controller.fast]
        result = parallel.first(
            None
            if parallel.rank()
            else validate(state, self.config.network, self.validation, self.regions, plan.device, plan.precision)
        )
        if result.precision != plan.precision:
            history.notes.append(f"validated in {result.precision}: {plan.precision} gives NaN or infinity")
        if plan.precision in history.peaks:
            # On the CPU the validation's meter does not see the training's tensors; CUDA's allocator sees them all.
            resident = sum(map(storage_bytes, self.state.step.resident())) if plan.device == "cpu" else 0
            history.peaks[plan.precision] = max(history.peaks[plan.precision], result.peak_bytes + resident)
        seconds = self._count_time()
        took = max(seconds - (history.epochs[-1].seconds if history.epochs else 0.0), 1e-9)
        epoch = Epoch(
            self.name,
            len(history.epochs) + 1,
            history.steps,
            seconds,
            history.skipped_steps,
            history.fallback_steps,
            len(history.losses) * self.config.batch / took,
            float(np.nanmean(history.losses)),
            result.dice,
        )
        history.epochs.append(epoch)
        history.losses = []
        if history.best is epoch:
            self.state.best_weights = {key: value.detach().cpu().clone() for key, value in state.items()}
        tell.on_epoch(epoch, result)
        tell.on_checkpoint()

    def finish(self) -> dict[str, tuple[float, float]]:
        """Load the best weights, and shift their last bias so that masks are taken where validation Dice is best.

        Returns region → (the logit that is 0 from now on, the Dice there); empty without validation patients.
        """
        self.network.load_state_dict(self.state.best_weights)
        plan = self.plans[self.state.controller.fast]
        if not self.validation:
            return {}
        found: dict[str, tuple[float, float]] = parallel.first(
            None
            if parallel.rank()
            else best_thresholds(
                self.state.best_weights, self.config.network, self.validation, self.regions, plan.device, plan.precision
            )
        )
        self.network.take_masks_at([found[region.value][0] for region in self.regions])
        return found

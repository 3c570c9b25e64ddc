"""Train one network: steps, epochs, validation by patient, and the contents of its checkpoint.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation":
Adam, batches of 10 slices, batch Dice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.labels import Region, names_of
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.precision import DTYPES, PrecisionController
from lowmem_brats.engine.step import Outcome, TrainingStep
from lowmem_brats.errors import InputError
from lowmem_brats.memory.device import PeakMeter, out_of_memory, storage_bytes
from lowmem_brats.memory.footprint import treats_slices_apart
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.networks import SliceNetwork
from lowmem_brats.segment.stack import empty_cache
from lowmem_brats.train.batches import Batch, Batches
from lowmem_brats.train.schedule import WeightAverage, learning_rate, stops_early
from lowmem_brats.train.validate import Validation, best_thresholds, validate

CHECKPOINT_SECONDS = 600.0
CURVE_STEPS = 10  # steps averaged in each point of the loss curve
_PLAIN = ("curve", "notes", "switches", "peaks", "steps", "_skipped", "_fallback_steps", "_epoch_began", "_losses")


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the training slices."""

    network: str
    number: int
    steps: int
    """Steps since the training began. The next three figures count from there too."""
    seconds: float
    skipped_steps: int
    """Steps that changed nothing because the gradient was not finite."""
    fallback_steps: int
    """Steps taken in the safer format."""
    slices_per_second: float
    loss: float
    """Mean over the epoch's steps."""
    validation_dice: dict[str, dict[str, float]]
    """Region → patient → Dice, on the slices where the reference holds the region's parent."""

    @property
    def region_dice(self) -> dict[str, float]:
        """Region → mean Dice over the validation patients; empty without validation patients."""
        return {key: float(np.mean(list(scores.values()))) for key, scores in self.validation_dice.items() if scores}

    @property
    def mean_dice(self) -> float:
        """Mean Dice over regions and validation patients; 0 without patients, which makes the last epoch the best."""
        return float(np.mean(list(self.region_dice.values()) or [0.0]))


@dataclass(frozen=True)
class Listener:
    """Functions to call while a training runs."""

    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    on_epoch: Callable[[Epoch, Validation], None] = lambda epoch, validation: None
    on_checkpoint: Callable[[], None] = lambda: None
    """Called after every epoch and every ten minutes, between two steps."""


class NetworkTraining:
    """Trains one network in place.

    `regions`: those that the network segments, one or all three; `network`: placed by `memory.step.place`; `training`,
    `validation`: prepared cases; `plans`: how to take a step, first in the format to train in, then in the safer format
    to fall back to, if there is one.
    """

    def __init__(
        self,
        regions: tuple[Region, ...],
        network: SliceNetwork,
        training: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        config: TrainConfig,
        plans: Sequence[TrainPlan],
    ) -> None:
        self.regions, self.network, self.config = regions, network, config
        self.validation, self.batches = validation, Batches(training, regions, config)
        self.name = names_of(regions)
        self.plans = {plan.precision: plan for plan in plans}
        self.controller = PrecisionController(plans[0].precision, plans[-1].precision)
        self.epochs: list[Epoch] = []
        self.curve: list[tuple[int, float]] = []
        """(step, mean loss of the steps since the point before)."""
        self.notes: list[str] = []
        self.switches: list[tuple[int, str]] = []
        """(step, why the format changed)."""
        self.peaks: dict[str, int] = {}
        """Format → peak bytes of tensors in a step or in validation, from the second step on."""
        self.best_state: dict[str, Tensor] = {}
        """Weights of the best epoch, fp32 on the host."""
        self._step = TrainingStep(network, find_loss(config.loss), config.weight_decay, config.clip_norm)
        self._average = WeightAverage(network, config.average)
        self.steps = 0
        """Steps taken so far, including those that changed nothing because the gradient was not finite."""
        self._skipped = self._fallback_steps = self._epoch_began = 0
        self._losses: list[float] = []
        self._seconds_before, self._began = 0.0, time.monotonic()

    def run(self, tell: Listener) -> Epoch:
        """Train until epochs, time or patience are used up; returns the epoch with the best validation Dice.

        Raises BudgetError if the device runs out of memory with one slice at a time, InputError if no gradient was
        finite.
        """
        self._began = saved = time.monotonic()
        # A resumed training may be out of time already and still have its first epoch to validate.
        while not self.epochs or (self._progress() < 1 and not stops_early(self.config, self._scores)):
            for batch in self.batches.read(len(self.epochs), self.steps - self._epoch_began):
                if (progress := self._progress()) >= 1:
                    break
                self._take(batch, progress)
                done = self.steps - self._epoch_began
                tell.on_progress(f"{self.name.upper()} epoch {len(self.epochs) + 1}", done, self.batches.per_epoch)
                if time.monotonic() - saved > CHECKPOINT_SECONDS and done < self.batches.per_epoch:
                    tell.on_checkpoint()
                    saved = time.monotonic()
            self._end_epoch(tell)
            saved = time.monotonic()
        return self.best

    def finish(self) -> dict[str, tuple[float, float]]:
        """Load the best weights, and shift their last bias so that masks are taken where validation Dice is best.

        Returns region → (the logit that is 0 from now on, the Dice there); empty without validation patients.
        """
        self.network.load_state_dict(self.best_state)
        plan = self.plans[self.controller.fast]
        if not self.validation:
            return {}
        found: dict[str, tuple[float, float]] = parallel.first(
            None
            if parallel.rank()
            else best_thresholds(
                self.best_state, self.config.network, self.validation, self.regions, plan.device, plan.precision
            )
        )
        self.network.take_masks_at([found[region.value][0] for region in self.regions])
        return found

    @property
    def best(self) -> Epoch:
        """The epoch with the highest mean validation Dice; of equal ones the last."""
        return max(self.epochs, key=lambda epoch: (epoch.mean_dice, epoch.number))

    @property
    def _scores(self) -> list[float]:
        return [epoch.mean_dice for epoch in self.epochs]

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _progress(self) -> float:
        """How much of the training is over, 0 to 1: by steps or by time, whichever is further on."""
        progress = self.steps / (self.batches.per_epoch * self.config.epochs)
        if self.config.max_seconds is not None and self.steps:
            share = self.config.max_seconds * len(self.regions) / len(self.config.regions)
            progress = max(progress, self._seconds / share)
        return parallel.furthest(progress)

    def _take(self, batch: Batch, progress: float) -> None:
        """Take one optimisation step, and note its loss, its gradient and the format of the next step."""
        precision = self.controller.precision
        rate = learning_rate(self.config, self.steps, progress, self._scores)
        outcome = self._optimise(batch, precision, rate)
        self.steps += 1
        self._skipped += not outcome.stepped
        self._fallback_steps += precision != self.controller.fast
        self._losses.append(outcome.loss)
        if self.steps % CURVE_STEPS == 0:
            self.curve.append((self.steps, float(np.mean(self._losses[-CURVE_STEPS:]))))
        self._average.follow(self.network, self.steps)
        if why := self.controller.observe(outcome.loss, outcome.norm):
            self.switches.append((self.steps, why))

    def _optimise(self, batch: Batch, precision: str, rate: float) -> Outcome:
        """Call `TrainingStep.take`; if the card runs out of memory all the same, halve the micro-batches and retry."""
        while True:
            plan = self.plans[precision]
            try:
                parts = batch.micro_batches(plan.micro_batch, plan.device)
                with self._metered(plan):
                    return self._step.take(parts, rate, DTYPES[precision], plan.stages)
            except torch.OutOfMemoryError as error:
                # With several processes there is no second try: the others wait for the sums of this step.
                if plan.micro_batch == 1 or not treats_slices_apart(self.config.network) or parallel.size() > 1:
                    raise out_of_memory(plan.device) from error
            # Outside the except block, because only here has the failed step released its tensors.
            self.network.zero_grad(set_to_none=True)
            empty_cache()
            smaller = plan.micro_batch // 2
            self.notes.append(f"the card ran out of memory: {smaller} slices at once instead of {plan.micro_batch}")
            self.plans[precision] = replace(plan, micro_batch=smaller)

    @contextmanager
    def _metered(self, plan: TrainPlan) -> Iterator[None]:
        """Measure the peak of a step once per format, when Adam's state exists; all later steps are alike."""
        if not self._step.moments() or plan.precision in self.peaks:
            yield
            return
        with PeakMeter(torch.device(plan.device), *self._step.resident()) as meter:
            yield
        self.peaks[plan.precision] = meter.peak_bytes

    def _end_epoch(self, tell: Listener) -> None:
        """Validate, keep the weights if they are the best so far, and call the listener."""
        if not self._losses:  # the time ran out before the first step of the epoch
            return
        if self._skipped == self.steps:
            found = f"no gradient of {self.steps} steps was finite"
            advice = "Pass --precision fp32, or a smaller --learning-rate."
            raise InputError(f"training {self.name.upper()}", found, "finite gradients", advice)
        self.network.zero_grad(set_to_none=True)  # validation needs the memory
        state = self._average.state if self.config.average else self.network.state_dict()
        plan = self.plans[self.controller.fast]
        result = parallel.first(
            None
            if parallel.rank()
            else validate(state, self.config.network, self.validation, self.regions, plan.device, plan.precision)
        )
        if result.precision != plan.precision:
            self.notes.append(f"validated in {result.precision}: {plan.precision} gives NaN or infinity")
        if plan.precision in self.peaks:
            # On the CPU the validation's meter does not see the training's tensors; CUDA's allocator sees them all.
            resident = sum(map(storage_bytes, self._step.resident())) if plan.device == "cpu" else 0
            self.peaks[plan.precision] = max(self.peaks[plan.precision], result.peak_bytes + resident)
        seconds = self._seconds
        took = max(seconds - (self.epochs[-1].seconds if self.epochs else 0.0), 1e-9)
        epoch = Epoch(
            self.name,
            len(self.epochs) + 1,
            self.steps,
            seconds,
            self._skipped,
            self._fallback_steps,
            len(self._losses) * self.config.batch / took,
            float(np.nanmean(self._losses)),
            result.dice,
        )
        self.epochs.append(epoch)
        self._epoch_began, self._losses = self.steps, []
        if self.best is epoch:
            self.best_state = {key: value.detach().cpu().clone() for key, value in state.items()}
        tell.on_epoch(epoch, result)
        tell.on_checkpoint()

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs besides the best weights: tensors by name, and values that JSON can hold."""
        tensors = {f"network {key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"average {key}": value for key, value in self._average.state.items()}
        for name, parameter in self.network.named_parameters():
            moments = self._step.optimizer.state.get(parameter, {})
            tensors |= {f"{kind} {name}": value for kind, value in moments.items()}
        state = {key: getattr(self, key) for key in _PLAIN}
        state |= {"epochs": [asdict(epoch) for epoch in self.epochs], "seconds": self._seconds}
        state |= {"updates": self._average.updates, "controller": self.controller.state()}
        return tensors, state | {"scaler": self._step.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Continue from what `checkpoint` returned; `best`: the best weights until then."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(" ")
            parts.setdefault(kind, {})[name] = tensor
        self.network.load_state_dict(parts.pop("network"))
        self._average.load(parts.pop("average"), state["updates"])
        for name, parameter in self.network.named_parameters():
            for kind, values in parts.items():
                like = parameter.detach() if values[name].ndim else values[name].to(parameter.device)
                self._step.optimizer.state[parameter][kind] = torch.empty_like(like).copy_(values[name])
        for key in _PLAIN:
            setattr(self, key, state[key])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self._seconds_before, self.best_state = state["seconds"], dict(best)
        self.controller.restore(state["controller"])
        self._step.scaler.load_state_dict(state["scaler"])

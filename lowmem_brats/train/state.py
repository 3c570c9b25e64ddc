"""What changes while a network is trained, and how a checkpoint holds it: `save` and `restore` stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from torch import Tensor

from lowmem_brats.engine.precision import PrecisionController
from lowmem_brats.engine.step import TrainingStep
from lowmem_brats.networks import Network
from lowmem_brats.train.schedule import WeightAverage


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


@dataclass
class History:
    """What has happened so far, in values that JSON can hold. A checkpoint holds every field."""

    epochs: list[Epoch] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss of the steps since the point before)."""
    switches: list[tuple[int, str]] = field(default_factory=list)
    """(step, why the format changed)."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Format → peak bytes of tensors in a step or in validation, from the second step on."""
    notes: list[str] = field(default_factory=list)
    steps: int = 0
    """Steps taken so far, including those that changed nothing because the gradient was not finite."""
    skipped_steps: int = 0
    fallback_steps: int = 0
    losses: list[float] = field(default_factory=list)
    """One per step of the epoch under way."""
    seconds: float = 0.0
    """How long the training has taken, interruptions left out."""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> History:
        """The history that was stored as a dict. Raises ValueError or TypeError for one of other fields."""
        if stored.keys() != {each.name for each in fields(cls)}:
            raise ValueError("a history of other fields")
        return cls(**{**stored, "epochs": [Epoch(**epoch) for epoch in stored["epochs"]]})

    def add_point(self, steps: int) -> None:
        """Add to the curve the mean loss of the epoch's last `steps` steps, of those whose loss is finite."""
        losses = [loss for loss in self.losses[len(self.losses) - steps :] if np.isfinite(loss)]
        if losses:
            self.curve.append((self.steps, float(np.mean(losses))))

    @property
    def best(self) -> Epoch:
        """The epoch with the highest mean validation Dice; of equal ones the last."""
        return max(self.epochs, key=lambda epoch: (epoch.mean_dice, epoch.number))

    @property
    def scores(self) -> list[float]:
        """The mean validation Dice of each epoch."""
        return [epoch.mean_dice for epoch in self.epochs]


@dataclass
class TrainingState:
    """All that changes while a network is trained."""

    network: Network
    step: TrainingStep
    average: WeightAverage
    controller: PrecisionController
    history: History = field(default_factory=History)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best epoch, fp32 on the host. They have a checkpoint of their own."""

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs: tensors by name, and values that JSON can hold."""
        parts = {"network": self.network.state_dict(), "average": self.average.state}
        for name, parameter in self.network.named_parameters():
            for kind, moment in self.step.optimizer.state.get(parameter, {}).items():
                parts.setdefault(kind, {})[name] = moment
        return {f"{part} {name}": tensor for part, held in parts.items() for name, tensor in held.items()}, {
            "history": asdict(self.history),
            "updates": self.average.updates,
            "controller": self.controller.state(),
            "scaler": self.step.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(" ")
            parts.setdefault(part, {})[name] = tensor
        self.network.load_state_dict(parts.pop("network"))
        self.average.load(parts.pop("average"), values["updates"])
        for name, parameter in self.network.named_parameters():
            for kind, moments in parts.items():
                self.step.optimizer.load(parameter, kind, moments[name])
        self.history = History.of(values["history"])
        self.controller.restore(values["controller"])
        self.step.scaler.load_state_dict(values["scaler"])

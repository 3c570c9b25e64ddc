"""How the weights follow the gradients: learning rate, early stopping, moving average.

All but the average follow from the steps and scores so far, so nothing of it has to be kept in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowmem_brats.config import TrainConfig

PLATEAU_EPOCHS = 5  # without a better score, until the learning rate is halved
AVERAGE_EVERY = 10  # steps; the average lies on the host, and bringing it the weights takes time


def learning_rate(config: TrainConfig, steps: int, progress: float, scores: Sequence[float]) -> float:
    """The learning rate of the next step.

    `steps`: taken so far; `progress`: how much of the training is over, 0 to 1; `scores`: per epoch, higher is better.
    """
    rate = config.learning_rate * min(1.0, (steps + 1) / max(config.warmup, 1))
    if config.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * progress)) / 2
    best, waited, halvings = -math.inf, 0, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == PLATEAU_EPOCHS:
            waited, halvings = 0, halvings + 1
    return rate * 0.5**halvings


def stops_early(config: TrainConfig, scores: Sequence[float]) -> bool:
    """Whether as many epochs as the configured patience have passed since the best score."""
    if config.patience is None or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= config.patience


class WeightAverage:
    """Exponential moving average of a network's weights, fp32, on the host: no memory of the device is needed.

    Source: Polyak and Juditsky 1992; early on it forgets faster, so that the first weights do not linger.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def follow(self, network: nn.Module, steps: int) -> None:
        """Move towards the network's weights if `steps`, those taken so far, is a multiple of AVERAGE_EVERY."""
        if steps % AVERAGE_EVERY:
            return
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    self.state[key].lerp_(value.cpu(), 1 - decay)
                else:
                    self.state[key].copy_(value)

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on from what `state` and `updates` were."""
        self.state, self.updates = state, updates

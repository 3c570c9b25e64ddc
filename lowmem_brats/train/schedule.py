"""Learning rate, early stopping, and the moving average of the weights.

Learning rate and early stopping are computed from the steps and scores so far, so a checkpoint need not keep them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowmem_brats.config import TrainConfig

PLATEAU_EPOCHS = 5  # after so many epochs without a better score the learning rate is halved
CYCLES = 3  # of the learning rate with warm restarts; each is twice as long as the one before
AVERAGE_EVERY = 10  # steps; the average lies on the host, and copying the weights there takes time


def learning_rate(config: TrainConfig, steps: int, progress: float, scores: Sequence[float]) -> float:
    """The learning rate of the next step.

    With restarts it falls along CYCLES half cosines, after Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient
    Descent with Warm Restarts", so that the last one ends with the training: it restarts after 1/7 and 3/7 of it.

    `steps`: steps taken so far; `progress`: share of the training that is over, 0 to 1; `scores`: one per epoch, higher
    is better.
    """
    rate = config.learning_rate * min(1.0, (steps + 1) / max(config.warmup, 1))
    if config.schedule == "restarts":
        place = 1 + progress * (2**CYCLES - 1)  # cycle k lasts from 2^k to 2^(k+1)
        cycle = min(int(math.log2(place)), CYCLES - 1)
        progress = place / 2**cycle - 1
    if config.schedule in ("cosine", "restarts"):
        return rate * (1 + math.cos(math.pi * progress)) / 2
    best, waited, halvings = -math.inf, 0, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == PLATEAU_EPOCHS:
            waited, halvings = 0, halvings + 1
    return rate * 0.5**halvings


def stops_early(config: TrainConfig, scores: Sequence[float]) -> bool:
    """Whether `config.patience` epochs have passed since the best score; never if it is None."""
    if config.patience is None or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= config.patience


class WeightAverage:
    """Exponential moving average of a network's weights in fp32, kept on the host to spare the device's memory.

    Source: Polyak and Juditsky 1992. Over the first steps the decay is smaller, so that the initial weights are
    forgotten soon.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def follow(self, network: nn.Module, steps: int) -> None:
        """Move the average towards the network's weights if `steps` (taken so far) is a multiple of AVERAGE_EVERY."""
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
        """Continue from an earlier `state` after so many `updates`."""
        self.state, self.updates = state, updates

"""What a set of weights knows of its own mistakes: for each region, how Dice depended on what the networks say.

It is a linear model of the log-odds of Dice, fitted on patients that the networks had not learnt from, and lies beside
the set in the index. benchmarks/fit_expected.py fits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_brats.data.labels import Region

EXPECTED_DICE = "expected_dice"
"""Beside a set's regions in the index: region → the fields of a `DiceModel`."""
FEATURES = ("agreement", "volume", "share")
"""What Dice is told from, as `segment.expected.features_of` measures it."""
SURE = 0.995
"""Dice is taken for no more than this, and for no less than 1 less this: the log-odds of 0 and 1 are infinite."""


@dataclass(frozen=True)
class Expected:
    """An estimate of a region's Dice."""

    dice: float
    low: float
    """Of five patients one lies below this or above `high`."""
    high: float
    strange: tuple[str, ...] = ()
    """The features that lie outside what the model was fitted on."""


@dataclass(frozen=True)
class DiceModel:
    """How Dice of one region depends on its features."""

    intercept: float
    slopes: Mapping[str, float]
    """Feature → how much the log-odds of Dice grow with it."""
    interval: tuple[float, float]
    """Log-odds that are added at the lower and the upper end of the interval that holds four patients of five."""
    seen: Mapping[str, tuple[float, float]]
    """Feature → its smallest and largest value among the patients that the model was fitted on."""

    def expect(self, features: Mapping[str, float]) -> Expected:
        """The Dice of a region with these features."""
        odds = self.intercept + sum(slope * features[name] for name, slope in self.slopes.items())
        dice, low, high = (_share(odds + step) for step in (0.0, *self.interval))
        strange = [name for name, (least, most) in self.seen.items() if not least <= features[name] <= most]
        return Expected(dice, low, high, tuple(strange))


def log_odds(dice: float) -> float:
    """Of a Dice that is moved away from 0 and 1, as SURE says."""
    inside = min(max(dice, 1 - SURE), SURE)
    return math.log(inside / (1 - inside))


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -50.0), 50.0)))


def read_models(stored: Any) -> dict[Region, DiceModel]:
    """The models of an index. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    models = {}
    for name, row in stored.items():
        slopes = {key: _number(value) for key, value in row["slopes"].items()}
        seen = {key: _pair(value) for key, value in row["seen"].items()}
        if slopes.keys() != set(FEATURES) or seen.keys() != set(FEATURES):
            raise ValueError(f"features {', '.join(slopes)}")
        models[Region(name)] = DiceModel(_number(row["intercept"]), slopes, _pair(row["interval"]), seen)
    return models


def _pair(values: Sequence[Any]) -> tuple[float, float]:
    low, high = map(_number, values)
    if low > high:
        raise ValueError(f"{low} > {high}")
    return low, high


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(repr(value))
    return float(value)

"""Settings that cannot work are refused where they are made, with what to use instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lowmem_brats.config import NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.errors import InputError


@pytest.mark.parametrize(
    ("make", "settings", "where", "found"),
    [
        (NetworkConfig, {"width": 0}, "network width", "0"),
        (NetworkConfig, {"width": -8}, "network width", "-8"),
        (NetworkConfig, {"width": 4}, "network width", "4"),
        (NetworkConfig, {"width": 20}, "network width", "20"),
        (NetworkConfig, {"depth": 0}, "network depth", "0"),
        (NetworkConfig, {"depth": 6}, "network depth", "6"),
        (NetworkConfig, {"norm": "layer"}, "network norm", "'layer'"),
        (SegmentConfig, {"min_component": -0.5}, "--min-component", "-0.5 mm³"),
        (TrainConfig, {"epochs": 0}, "training", "0 epochs of batch 10"),
        (TrainConfig, {"epochs": 5, "batch": 0}, "training", "5 epochs of batch 0"),
        (TrainConfig, {"validation": 0.0}, "--validation", "0.0"),
        (TrainConfig, {"validation": 1.0}, "--validation", "1.0"),
        (TrainConfig, {"max_minutes": 0.0}, "--max-minutes", "0.0"),
        (TrainConfig, {"max_minutes": -1.0}, "--max-minutes", "-1.0"),
    ],
)
def test_unusable_setting(make: Any, settings: dict[str, object], where: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**settings)
    assert (caught.value.where, caught.value.found) == (where, found)
    assert caught.value.expected
    assert caught.value.advice


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        *((NetworkConfig, {"width": width}) for width in (8, 24, 64)),
        *((NetworkConfig, {"depth": depth}) for depth in (1, 5)),
        (NetworkConfig, {"norm": "batch"}),
        (SegmentConfig, {"min_component": 0.0}),
        (TrainConfig, {"epochs": 1, "batch": 1, "validation": 0.99, "max_minutes": 0.01}),
    ],
)
def test_the_last_usable_setting_is_accepted(make: Any, settings: dict[str, object]) -> None:
    config = make(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("make", [NetworkConfig, SegmentConfig, TrainConfig])
def test_settings_are_named_and_frozen(make: Any) -> None:
    config = make()
    first = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, first, None)
    with pytest.raises(TypeError):
        make(getattr(config, first))


def test_the_papers_training_is_the_default() -> None:
    config = TrainConfig()
    assert (config.epochs, config.batch, config.network.depth) == (80, 10, 4)

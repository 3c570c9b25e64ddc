"""Settings that cannot work are refused where they are made, with what to use instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lowmem_brats.config import (
    LABELS,
    NETWORKS,
    PRESETS,
    CohortConfig,
    NetworkConfig,
    SegmentConfig,
    TrainConfig,
)
from lowmem_brats.config.names import REGIONS
from lowmem_brats.config.setting import settings_of
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.engine.losses import LOSSES
from lowmem_brats.errors import InputError
from lowmem_brats.networks import NETWORKS as BUILDERS

WATCHED = "--patience or --schedule plateau with --validation 0"


@pytest.mark.parametrize(
    ("make", "settings", "where", "found"),
    [
        (NetworkConfig, {"width": 0}, "network width", "0"),
        (NetworkConfig, {"width": -8}, "network width", "-8"),
        (NetworkConfig, {"width": 4}, "network width", "4"),
        (NetworkConfig, {"width": 20}, "network width", "20"),
        (NetworkConfig, {"depth": 0}, "network depth", "0"),
        (NetworkConfig, {"depth": 6}, "network depth", "6"),
        (NetworkConfig, {"norm": "layer"}, "network norm", "layer"),
        (CohortConfig, {"workers": 0}, "--workers", "0"),
        (CohortConfig, {"part": (3, 2)}, "--part", "3/2"),
        (SegmentConfig, {"min_confidence": 1.1}, "--min-confidence", "1.1"),
        (NetworkConfig, {"outputs": 2}, "network outputs", "2"),
        (NetworkConfig, {"views": 4}, "network views", "4"),
        (NetworkConfig, {"context": -1}, "network context", "-1"),
        (NetworkConfig, {"context": 4}, "network context", "4"),
        (TrainConfig, {"epochs": 0}, "--epochs", "0"),
        (TrainConfig, {"batch": 0}, "--batch", "0"),
        (TrainConfig, {"validation": -0.1}, "--validation", "-0.1"),
        (TrainConfig, {"validation": 0.0, "patience": 3}, "--validation", WATCHED),
        (TrainConfig, {"validation": 0.0, "schedule": "plateau"}, "--validation", WATCHED),
        (TrainConfig, {"validation": 1.0}, "--validation", "1.0"),
        (TrainConfig, {"test": 1.0}, "--test", "1.0"),
        (TrainConfig, {"test": -0.1}, "--test", "-0.1"),
        (TrainConfig, {"validation": 0.5, "test": 0.5}, "split", "--validation 0.5 and --test 0.5"),
        (TrainConfig, {"fold": (0, 5)}, "--fold", "0/5"),
        (TrainConfig, {"fold": (6, 5)}, "--fold", "6/5"),
        (TrainConfig, {"fold": (1, 1)}, "--fold", "1/1"),
        (TrainConfig, {"max_seconds": 0.0}, "--max-time", "0.0"),
        (TrainConfig, {"patience": 0}, "--patience", "0"),
        (TrainConfig, {"learning_rate": 0.0}, "--learning-rate", "0.0"),
        (TrainConfig, {"learning_rate": float("nan")}, "--learning-rate", "nan"),
        (TrainConfig, {"schedule": "step"}, "--schedule", "step"),
        (TrainConfig, {"warmup": -1}, "--warmup", "-1"),
        (TrainConfig, {"weight_decay": -0.1}, "--weight-decay", "-0.1"),
        (TrainConfig, {"clip_norm": 0.0}, "--clip", "0.0"),
        (TrainConfig, {"average": 1.0}, "--average", "1.0"),
        (TrainConfig, {"modality_dropout": 1.1}, "--modality-dropout", "1.1"),
        (TrainConfig, {"regions": ()}, "--region", "none"),
        (SegmentConfig, {"precision": "fp8"}, "--precision", "fp8"),
        (SegmentConfig, {"labels": "brats1999"}, "--labels", "brats1999"),
        (TrainConfig, {"seed": -1}, "--seed", "-1"),
        (TrainConfig, {"regions": ("et",), "network": NetworkConfig(outputs=3)}, "--region", "et"),
        (TrainConfig, {"regions": ("wt", "ed")}, "--region", "wt ed"),
        (TrainConfig, {"allow_missing": ("t1ce", "pd")}, "--allow-missing", "t1ce pd"),
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
        (SegmentConfig, {"min_confidence": 0.0}),
        (NetworkConfig, {"outputs": 3}),
        (TrainConfig, {"validation": 0.0}),
        (TrainConfig, {"epochs": 1, "batch": 1, "validation": 0.99, "test": 0.0, "max_seconds": 0.01}),
        (TrainConfig, {"fold": (1, 2), "patience": 1, "warmup": 0, "average": 0.0, "modality_dropout": 1.0}),
        (TrainConfig, {"fold": (5, 5), "weight_decay": 0.0, "clip_norm": 0.1, "regions": ("et",)}),
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


def test_the_names_are_those_of_the_tables() -> None:
    """The configuration must not import the tables, which need torch or stand above it."""
    assert list(NETWORKS) == list(BUILDERS)
    assert list(LABELS) == list(CONVENTIONS)
    assert [region.value for region in Region] == list(REGIONS)
    assert [name for name in LOSSES if name not in settings_of(TrainConfig)["loss"].help] == []


def test_two_configurations_share_no_name_of_a_field() -> None:
    """`train` takes the options of both, and each option's parameter is called like its field."""
    assert not settings_of(NetworkConfig).keys() & settings_of(TrainConfig).keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_options_that_exist_to_values_that_are_valid(name: str) -> None:
    preset = PRESETS[name]
    for make, values in ((NetworkConfig, preset.network), (TrainConfig, preset.training)):
        described = settings_of(make)
        assert all(described[key].option for key in values)
        assert vars(make(**values)) == vars(make()) | values
        assert all(getattr(make(), key) != value for key, value in values.items()), "what is the default is not said"
    assert preset.help

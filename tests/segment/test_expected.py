"""The features are what they are said to be, and a doubtful region is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny_weights import SMALL_SHAPE, write_pointwise_set

from lowmem_brats.config import MODALITIES, SegmentConfig
from lowmem_brats.data.case import case_of
from lowmem_brats.data.labels import Region
from lowmem_brats.data.phantom import make_phantom
from lowmem_brats.segment.case import segment_images
from lowmem_brats.segment.expected import expect, features_of, warnings_of
from lowmem_brats.segment.result import Segmentation
from lowmem_brats.weights.expected import EXPECTED_DICE, DiceModel, Expected, read_models
from lowmem_brats.weights.index import INDEX

ZERO = {"agreement": 0.0, "volume": 0.0, "share": 0.0}
WIDE = dict.fromkeys(ZERO, (-9.0, 9.0))


def test_features_by_hand() -> None:
    """Probabilities of 3/4 and 1/4 in two voxels that were looked at; the first is the mask."""
    logit_ZHW = np.zeros((1, 2, 2), np.float32)
    logit_ZHW[0, 0] = math.log(3), -math.log(3)
    features = features_of(logit_ZHW, logit_ZHW > 0, parent=10, voxel_mm3=100.0)
    agreement = 2 * 0.75 / (1 + 1)
    assert features["agreement"] == pytest.approx(math.log(agreement / (1 - agreement)), rel=1e-6)
    assert features["volume"] == pytest.approx(-1)
    assert features["share"] == pytest.approx(-1)


def test_each_region_is_judged_inside_its_parent() -> None:
    logits = {region: np.full((1, 2, 4), 2.0, np.float32) for region in Region}
    masks = {region: np.zeros((1, 2, 4), np.bool_) for region in Region}
    masks[Region.WT][0, 0], masks[Region.TC][0, :, 0], masks[Region.ET][0, 1] = True, True, True
    share = DiceModel(0.0, ZERO | {"share": 1.0}, (0.0, 0.0), WIDE)
    found = expect(dict.fromkeys(Region, share), logits, masks, brain=8, voxel_mm3=1.0)
    odds = {region: math.log(each.dice / (1 - each.dice)) for region, each in found.items()}
    assert odds == pytest.approx({Region.WT: math.log10(4 / 8), Region.TC: math.log10(1 / 4)})


def test_what_a_person_should_look_at_is_said() -> None:
    models = dict.fromkeys(Region, DiceModel(0.0, ZERO, (-1.0, 1.0), WIDE))
    expected = {Region.WT: Expected(0.9, 0.8, 0.95), Region.TC: Expected(0.62, 0.4, 0.79, ("volume", "share"))}
    assert warnings_of(expected, models) == [
        "TC: expected Dice 0.62 (0.40 to 0.79 in four cases of five): look at it",
        "TC: volume and share unlike any that the estimate was fitted on",
        "ET: nothing found, so nothing tells how sure that is: look for it",
    ]
    assert warnings_of({Region.WT: Expected(0.7, 0.5, 0.8)}, {Region.WT: models[Region.WT]}) == []


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judging(tmp_path_factory.mktemp("weights") / "pointwise", views=3)


def write_judging(folder: Path, views: int) -> Path:
    """Write a set that states that the log-odds of Dice are 1 plus half of the agreement's."""
    write_pointwise_set(folder, views)
    index = json.loads((folder / INDEX).read_text())
    row = {"intercept": 1.0, "slopes": ZERO | {"agreement": 0.5}, "interval": [-1, 1], "seen": WIDE}
    index["sets"]["pointwise"][EXPECTED_DICE] = {region.value: row for region in Region}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def run(weights: Path, missing: str = "", slices: slice = slice(None), **settings: Any) -> Segmentation:
    phantom = make_phantom(1, SMALL_SHAPE)
    images = {
        modality: nibabel.Nifti1Image(image_XYZ[..., slices], phantom.affine)
        for modality, image_XYZ in zip(MODALITIES, phantom.images_CXYZ, strict=True)
        if modality != missing
    }
    case = case_of(images, allow_missing=[missing] if missing else [])
    return segment_images(case, SegmentConfig(weights=str(weights), device="cpu", precision="fp32", **settings))


def test_the_report_holds_the_estimate(judging: Path) -> None:
    report = run(judging).report
    assert list(report.expected_dice) == ["wt", "tc", "et"]
    for row in report.expected_dice.values():
        assert 0 < row["low"] < row["dice"] < row["high"] < 1
    told = [text for text in report.warnings if "expected Dice" in text]
    assert len(told) == sum(row["dice"] < 0.7 for row in report.expected_dice.values())


@pytest.mark.parametrize("settings", [{"tta": True}, {"fast": True}, {"narrow": False}, {"min_confidence": 0.3}])
def test_other_options_have_no_estimate(judging: Path, settings: dict[str, Any]) -> None:
    report = run(judging, **settings).report
    assert report.expected_dice == {}
    assert any("no Dice is expected" in text for text in report.warnings)


def test_a_case_without_a_modality_has_no_estimate(judging: Path) -> None:
    """The patients that the estimate was fitted on had all four."""
    result = run(judging, missing="t2")
    assert result.report.expected_dice == {}
    assert any("no Dice is expected" in text for text in result.report.warnings)


@pytest.mark.parametrize("views", [1, 3])
def test_a_flat_stack_has_no_estimate(tmp_path: Path, views: int) -> None:
    """Not even of networks that see axial slices only."""
    result = run(write_judging(tmp_path / "weights", views), slices=slice(18, 22))
    assert any("no Dice is expected" in text for text in result.report.warnings)
    assert result.report.expected_dice == {}


def test_models_are_read_as_they_are_stored(judging: Path) -> None:
    row = json.loads((judging / INDEX).read_text())["sets"]["pointwise"][EXPECTED_DICE]
    assert read_models(row)[Region.WT].seen["volume"] == (-9.0, 9.0)

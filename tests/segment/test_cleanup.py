"""Doubtful findings go, sure ones stay, and contact at a corner is contact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.data.labels import Region
from lowmem_brats.segment.cleanup import drop_doubtful

Logits = dict[Region, npt.NDArray[np.float32]]


@pytest.fixture
def logits() -> Logits:
    """A main tumour of 27 voxels with mean logit 6; islands of 2, 3 and 1 voxels with 3, 3.5 and 9; core; ET."""
    logit_ZHW = {region: np.full((9, 9, 9), -5, np.float32) for region in Region}
    whole, core, enhancing = (logit_ZHW[region] for region in Region)
    whole[:3, :3, :3] = np.linspace(4, 8, 27).reshape(3, 3, 3)
    whole[6, 6, 6:8], whole[6, 2, 4:7], whole[8, 8, 0] = 3, 3.5, 9
    core[:2, :2, :2] = core[6, 6, 6] = 1
    enhancing[0, 0, :2] = 2, 4
    enhancing[6, 6, 6] = 7
    enhancing[8, 8, 8] = 50  # outside core and tumour: counts for nothing
    return logit_ZHW


@pytest.mark.parametrize(
    ("least", "islands", "enhancing_gone"),
    [
        (0.0, [True, True, True], 0),
        (0.49, [True, True, True], 0),  # ET with the voxel on the first island: mean 13 / 3
        (0.5, [True, True, True], 0),  # exactly 0.5 · 6
        (0.51, [False, True, True], 2),  # without that voxel ET has a mean of 3, less than 0.51 · 6
        (0.58, [False, True, True], 2),
        (0.59, [False, False, True], 2),
        (1.0, [False, False, True], 2),
    ],
)
def test_what_is_less_sure_than_the_main_tumour_goes(
    logits: Logits, least: float, islands: list[bool], enhancing_gone: int
) -> None:
    before = {region: logit_ZHW.copy() for region, logit_ZHW in logits.items()}
    masks, gone = drop_doubtful(logits, least)
    assert [bool(masks[Region.WT][at]) for at in ((6, 6, 6), (6, 2, 5), (8, 8, 0))] == islands
    assert masks[Region.WT][:3, :3, :3].all()
    assert gone == {Region.WT: 2 * (not islands[0]) + 3 * (not islands[1]), Region.ET: enhancing_gone}
    assert masks[Region.ET].any() == (enhancing_gone == 0)
    np.testing.assert_array_equal(masks[Region.TC], logits[Region.TC] > 0)
    for region in Region:
        np.testing.assert_array_equal(logits[region], before[region])


def test_the_main_tumour_always_stays(logits: Logits) -> None:
    for scale in (1e-3, 1.0, 1e3):  # only shares matter
        masks, gone = drop_doubtful({region: scale * logit_ZHW for region, logit_ZHW in logits.items()}, 1.0)
        assert masks[Region.WT].sum() == 28
        assert gone == {Region.WT: 5, Region.ET: 2}


def test_what_touches_the_main_tumour_at_a_corner_belongs_to_it(logits: Logits) -> None:
    logits[Region.WT][3, 3, 3] = 0.1
    masks, gone = drop_doubtful(logits, 0.5)
    assert masks[Region.WT][3, 3, 3]
    assert gone[Region.WT] == 0


def test_a_tumour_without_enhancing_tumour_keeps_the_rest(logits: Logits) -> None:
    logits[Region.ET][:] = -5
    masks, gone = drop_doubtful(logits, 0.55)
    assert not masks[Region.ET].any()
    assert gone == {Region.WT: 2, Region.ET: 0}


def test_enhancing_tumour_as_sure_as_the_main_tumour_stays(logits: Logits) -> None:
    """Also where sums in fp32 would lose the last bits of one of the two."""
    whole, _, enhancing = (logits[region] for region in Region)
    whole[:3, :3, :3] = 1
    whole[0, 0, 0] = 2**24
    logits[Region.TC][:3, :3, :3] = 1
    enhancing[...] = np.where(logits[Region.TC] > 0, whole, -5)
    enhancing[6, 6, 6] = -5
    masks, gone = drop_doubtful(logits, 1.0)
    assert masks[Region.ET].sum() == 27
    assert gone[Region.ET] == 0


def test_nothing_found_is_nothing_doubtful(logits: Logits) -> None:
    masks, gone = drop_doubtful({region: np.zeros_like(logit_ZHW) for region, logit_ZHW in logits.items()}, 0.55)
    assert not any(mask.any() for mask in masks.values())
    assert gone == {Region.WT: 0, Region.ET: 0}

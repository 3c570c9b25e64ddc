"""The synthetic case is shaped, labelled and contrasted like BraTS, at every seed."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_brats.config import BRATS_SHAPE, MODALITIES
from lowmem_brats.data.phantom import Phantom, make_phantom
from lowmem_brats.errors import InputError

SMALL = (48, 56, 40)
NCR, ED, ET = 1, 2, 4


@pytest.fixture(scope="module", params=[0, 7])
def full(request: pytest.FixtureRequest) -> Phantom:
    """A case on the BraTS grid."""
    return make_phantom(request.param)


@pytest.fixture(scope="module")
def small_cases() -> list[Phantom]:
    """Twenty cases on a small grid."""
    return [make_phantom(seed, SMALL) for seed in range(20)]


def channel(case: Phantom, modality: str) -> np.ndarray:
    """Return one modality as float64."""
    return case.images_CXYZ[MODALITIES.index(modality)].astype(np.float64)


def test_same_seed_same_case() -> None:
    one, two = make_phantom(3, SMALL), make_phantom(3, SMALL)
    np.testing.assert_array_equal(one.images_CXYZ, two.images_CXYZ)
    np.testing.assert_array_equal(one.label_XYZ, two.label_XYZ)
    assert one.case_id == "phantom_003"


def test_other_seed_other_brain_and_other_tumour(small_cases: list[Phantom]) -> None:
    first, second = small_cases[:2]
    assert ((first.images_CXYZ[0] > 0) != (second.images_CXYZ[0] > 0)).any()
    assert (first.label_XYZ != second.label_XYZ).any()


def test_every_seed_has_all_tissues_inside_the_brain(small_cases: list[Phantom]) -> None:
    for case in small_cases:
        assert set(np.unique(case.label_XYZ)) == {0, NCR, ED, ET}, case.case_id
        brain = case.images_CXYZ > 0
        assert (brain == brain[0]).all(), f"{case.case_id}: the modalities disagree where brain is"
        assert not case.label_XYZ[~brain[0]].any(), case.case_id
        assert case.images_CXYZ.min() == 0, case.case_id


def test_tumours_on_either_side_but_never_on_both(small_cases: list[Phantom]) -> None:
    middle = round(SMALL[0] * 118.5 / 240)
    sides = set()
    for case in small_cases:
        x = np.flatnonzero(case.label_XYZ.any((1, 2)))
        assert x.max() <= middle or x.min() >= middle - 1, case.case_id
        sides.add(bool(x.mean() > middle))
    assert sides == {True, False}


def test_smallest_shape_has_all_tissues() -> None:
    case = make_phantom(0, (32, 32, 32))
    assert set(np.unique(case.label_XYZ)) == {0, NCR, ED, ET}


def test_types_and_affine(full: Phantom) -> None:
    assert full.images_CXYZ.shape == (4, *BRATS_SHAPE)
    assert full.images_CXYZ.dtype == np.int16
    assert full.label_XYZ.shape == BRATS_SHAPE
    assert full.label_XYZ.dtype == np.uint8
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(full.affine, expected)
    assert full.affine.dtype == np.float64


def test_small_grid_holds_the_same_head(full: Phantom) -> None:
    small = make_phantom(int(full.case_id[-3:]), SMALL)
    assert small.affine[1, 3] == SMALL[1] - 1
    share, small_share = (case.images_CXYZ[0].astype(bool).mean() for case in (full, small))
    assert small_share == pytest.approx(share, abs=0.01)


def test_brain_has_the_size_of_a_brain(full: Phantom) -> None:
    brain = full.images_CXYZ[0] > 0
    assert 0.11 < brain.mean() < 0.19
    extent = [np.ptp(np.flatnonzero(brain.any(axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    assert 125 < extent[0] < 150
    assert 160 < extent[1] < 190
    assert 125 < extent[2] < 150
    assert not brain[[0, -1]].any()
    assert not brain[:, [0, -1]].any()


def test_tumour_sizes_are_realistic(full: Phantom) -> None:
    whole_ml = np.count_nonzero(full.label_XYZ) / 1000
    core_ml = np.isin(full.label_XYZ, (NCR, ET)).sum() / 1000
    assert 25 < whole_ml < 130
    assert 0.15 < core_ml / whole_ml < 0.48


def test_necrosis_lies_within_the_rim_and_the_core_within_oedema(full: Phantom) -> None:
    """Seen from the core's centre: mean distances grow from necrosis to rim to oedema."""
    centre = np.argwhere(np.isin(full.label_XYZ, (NCR, ET))).mean(0)
    ncr, et, ed = (np.linalg.norm(np.argwhere(full.label_XYZ == k) - centre, axis=1).mean() for k in (NCR, ET, ED))
    assert ncr < et < ed


def test_tumour_contrast_has_the_right_signs(full: Phantom) -> None:
    normal = (full.images_CXYZ[0] > 0) & (full.label_XYZ == 0)
    mean = {
        modality: {k: channel(full, modality)[full.label_XYZ == k].mean() for k in (NCR, ED, ET)}
        for modality in MODALITIES
    }
    bright = {m: np.percentile(channel(full, m)[normal], 75) for m in MODALITIES}
    assert mean["t1"][NCR] < mean["t1"][ED] < bright["t1"]
    assert mean["t1ce"][ET] > bright["t1ce"] > mean["t1ce"][ED] > mean["t1ce"][NCR]
    assert min(mean["t2"][NCR], mean["t2"][ED]) > bright["t2"]
    assert mean["flair"][ED] > mean["flair"][ET] > mean["flair"][NCR] > bright["flair"]


def test_normal_tissue_contrast_has_the_right_signs(full: Phantom) -> None:
    """CSF is what shines on T2 outside the tumour; white matter is what shines on T1; grey matter lies between."""
    normal = (full.images_CXYZ[0] > 0) & (full.label_XYZ == 0)
    t1, t1ce, t2, flair = (channel(full, m)[normal] for m in MODALITIES)
    csf = t2 > np.percentile(t2, 96)
    white = t1 > np.percentile(t1, 75)
    grey = ~csf & (t1 > np.percentile(t1, 25)) & (t1 < np.percentile(t1, 45))
    assert t1[csf].mean() < t1[grey].mean() < t1[white].mean()
    assert t1ce[csf].mean() < t1ce[grey].mean() < t1ce[white].mean()
    assert t2[white].mean() < t2[grey].mean() < t2[csf].mean()
    assert flair[csf].mean() < flair[white].mean() < flair[grey].mean()


@pytest.mark.parametrize(("seed", "shape"), [(-1, SMALL), (0, (48, 56, 31))])
def test_impossible_requests_are_refused(seed: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"phantom.*Use (0|48 56 40)\."):
        make_phantom(seed, shape)

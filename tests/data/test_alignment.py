"""Whether modalities lie on each other, judged on phantoms."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.alignment import SMALLEST_BRAIN_ML, measure_alignment
from lowmem_brats.data.phantom import make_phantom

SHAPE, SPACING_MM = (96, 96, 62), (2.5, 2.5, 2.5)


@pytest.fixture(scope="module")
def images_CXYZ() -> np.ndarray:
    return make_phantom(0, SHAPE).images_CXYZ.astype(np.float32)


def test_modalities_that_lie_on_each_other(images_CXYZ: np.ndarray) -> None:
    found = measure_alignment(images_CXYZ, [], SPACING_MM)
    assert list(found) == ["t1", "t2", "flair"]
    assert not [modality for modality, fit in found.items() if fit.apart]
    assert all(fit.over_mean > 1.5 and fit.over_best > 1.2 for fit in found.values())


@pytest.mark.parametrize("modality", ["t1", "t2", "flair"])
@pytest.mark.parametrize("axis", range(3))
def test_one_that_was_moved_is_noticed_and_no_other(images_CXYZ: np.ndarray, modality: str, axis: int) -> None:
    moved_CXYZ = images_CXYZ.copy()
    channel = MODALITIES.index(modality)
    moved_CXYZ[channel] = np.roll(moved_CXYZ[channel], 3, axis)  # 7.5 mm
    found = measure_alignment(moved_CXYZ, [], SPACING_MM)
    assert [name for name, fit in found.items() if fit.apart] == [modality]
    assert not [name for name, fit in found.items() if fit.mirrored]
    assert found[modality].over_best < 1


@pytest.mark.parametrize("modality", ["t1", "t2", "flair"])
def test_one_that_was_mirrored_is_noticed_and_no_other(images_CXYZ: np.ndarray, modality: str) -> None:
    mirrored_CXYZ = images_CXYZ.copy()
    channel = MODALITIES.index(modality)
    mirrored_CXYZ[channel] = mirrored_CXYZ[channel, ::-1]
    for given_CXYZ, wrong in ((images_CXYZ, []), (mirrored_CXYZ, [modality])):
        found = measure_alignment(given_CXYZ, [], SPACING_MM)
        assert [name for name, fit in found.items() if fit.mirrored] == wrong


def test_without_t1ce_the_first_image_is_what_the_others_lie_on(images_CXYZ: np.ndarray) -> None:
    images_CXYZ = images_CXYZ.copy()
    images_CXYZ[MODALITIES.index("t1ce")] = 0
    assert list(measure_alignment(images_CXYZ, ["t1ce"], SPACING_MM)) == ["t2", "flair"]


def test_what_is_too_small_for_a_brain_is_not_judged(images_CXYZ: np.ndarray) -> None:
    voxels = int(images_CXYZ.any(0).sum())
    edge_mm = (1000 * SMALLEST_BRAIN_ML / voxels) ** (1 / 3)
    assert measure_alignment(images_CXYZ, [], (0.99 * edge_mm,) * 3) == {}
    assert measure_alignment(images_CXYZ, [], (1.01 * edge_mm,) * 3) != {}


def test_images_of_different_places_share_nothing(images_CXYZ: np.ndarray) -> None:
    apart_CXYZ = images_CXYZ.copy()
    apart_CXYZ[0, :48], apart_CXYZ[1:, 48:] = 0, 0
    apart_CXYZ[1, :40] = 0
    fit = measure_alignment(apart_CXYZ, [], SPACING_MM)["t1"]
    assert fit.apart
    assert not fit.mirrored

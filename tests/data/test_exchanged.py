"""Whether two modalities that were given for each other are noticed, on phantoms and on real cases."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from lowmem_brats.config import MODALITIES
from lowmem_brats.data import exchanged
from lowmem_brats.data.alignment import SMALLEST_BRAIN_ML
from lowmem_brats.data.case import case_of, read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.exchanged import agent_in_second, find_exchanged, fluid_in_first
from lowmem_brats.data.phantom import make_phantom

SHAPE, SPACING_MM = (96, 96, 62), (2.5, 2.5, 2.5)
PAIRS = [("t1", "t1ce"), ("t2", "flair")]


@pytest.fixture(scope="module")
def images_CXYZ() -> np.ndarray:
    return make_phantom(0, SHAPE).images_CXYZ.astype(np.float32)


def exchange(images_CXYZ: np.ndarray, *pairs: tuple[str, str]) -> np.ndarray:
    order = list(MODALITIES)
    for first, second in pairs:
        i, j = order.index(first), order.index(second)
        order[i], order[j] = order[j], order[i]
    return images_CXYZ[[MODALITIES.index(modality) for modality in order]]


@pytest.mark.parametrize("pairs", [[], PAIRS[:1], PAIRS[1:], PAIRS])
@pytest.mark.parametrize("seed", range(3))
def test_exchanged_images_are_noticed_and_no_others(pairs: list[tuple[str, str]], seed: int) -> None:
    images_CXYZ = make_phantom(seed, SHAPE).images_CXYZ.astype(np.float32)
    assert find_exchanged(exchange(images_CXYZ, *pairs), [], SPACING_MM) == pairs


def test_units_do_not_matter(images_CXYZ: np.ndarray) -> None:
    other_CXYZ = np.where(images_CXYZ != 0, 0.01 * images_CXYZ - 30, 0).astype(np.float32)
    assert find_exchanged(other_CXYZ, [], SPACING_MM) == []
    assert find_exchanged(exchange(other_CXYZ, *PAIRS), [], SPACING_MM) == PAIRS


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_pair_is_judged_where_both_are_there(images_CXYZ: np.ndarray, missing: str) -> None:
    exchanged_CXYZ = exchange(images_CXYZ, *PAIRS)
    exchanged_CXYZ[MODALITIES.index(missing)] = 0
    expected = [pair for pair in PAIRS if missing not in pair]
    assert find_exchanged(exchanged_CXYZ, [missing], SPACING_MM) == expected


def test_what_is_too_small_for_a_brain_is_not_judged(images_CXYZ: np.ndarray) -> None:
    exchanged_CXYZ = exchange(images_CXYZ, *PAIRS)
    edge_mm = (1000 * SMALLEST_BRAIN_ML / int(images_CXYZ.any(0).sum())) ** (1 / 3)
    assert find_exchanged(exchanged_CXYZ, [], (0.99 * edge_mm,) * 3) == []
    assert find_exchanged(exchanged_CXYZ, [], (1.01 * edge_mm,) * 3) == PAIRS


def test_fine_grids_are_looked_at_in_steps(images_CXYZ: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    monkeypatch.setattr(exchanged, "fluid_in_first", lambda first_V, second_V: seen.append(first_V.size) or 1.0)
    find_exchanged(images_CXYZ, [], SPACING_MM)
    find_exchanged(images_CXYZ.repeat(2, axis=1).repeat(3, axis=3), [], (1.25, 2.5, 0.7))
    assert seen == [int(images_CXYZ.any(0).sum())] * 2


def test_how_far_fluid_reaches() -> None:
    first_V = np.repeat(np.float32([0, 1]), [90, 10])
    flat_V = np.ones(100, np.float32)
    assert fluid_in_first(first_V, flat_V) == pytest.approx(1)
    assert fluid_in_first(flat_V, first_V) == pytest.approx(-1)
    assert fluid_in_first(flat_V, flat_V) == 0


def test_what_an_agent_adds_is_judged_among_voxels_that_were_alike() -> None:
    levels_V = np.arange(exchanged.LEVELS, dtype=np.float32).repeat(1000)  # known, and alike in blocks
    bright_V = levels_V * 10
    bright_V[::100] += 7  # 1 in 100, unforeseen
    up = exchanged._skew(exchanged._added(bright_V, levels_V), 0.1)
    assert up == pytest.approx(1)
    assert agent_in_second(levels_V, bright_V) > 0 > agent_in_second(bright_V, levels_V)
    assert agent_in_second(levels_V, bright_V) == -agent_in_second(bright_V, levels_V)


def test_the_rim_is_left_out() -> None:
    brain_XYZ = np.zeros((20, 20, 20), bool)
    brain_XYZ[2:18, 2:18, 2:18] = True
    inside_XYZ = exchanged._without_rim(brain_XYZ, (2.0, 3.0, 6.0))
    assert [tuple(np.flatnonzero(inside_XYZ.any(axis))[[0, -1]]) for axis in ((1, 2), (0, 2), (0, 1))] == [
        (5, 14),
        (4, 15),
        (3, 16),
    ]
    thin_XYZ = np.zeros((20, 20, 20), bool)
    thin_XYZ[5] = True
    assert exchanged._without_rim(thin_XYZ, (2.0, 2.0, 2.0)) is thin_XYZ


@pytest.mark.real
def test_real_cases_are_told_apart(real_cases: Path) -> None:
    for folder in sorted(each for each in real_cases.iterdir() if each.is_dir()):
        case = read_case(find_case(folder))
        assert not [warning for warning in case.warnings if "each were the other" in warning]
        assert find_exchanged(exchange(case.images_CXYZ, *PAIRS), [], case.spacing_mm) == PAIRS


def test_a_case_warns(images_CXYZ: np.ndarray) -> None:
    affine = np.diag([-2.5, -2.5, 2.5, 1])
    given = {
        modality: nibabel.Nifti1Image(image_XYZ, affine)
        for modality, image_XYZ in zip(MODALITIES, exchange(images_CXYZ, *PAIRS), strict=True)
    }
    found = [warning for warning in case_of(given).warnings if "each were the other" in warning]
    assert [warning.split(" look")[0] for warning in found] == ["t1 and t1ce", "t2 and flair"]
    assert found[0].endswith("check which file is which, and name them with --t1 and --t1ce")

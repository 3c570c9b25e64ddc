"""Metrics against hand counts and against a brute-force HD95."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.evaluate.metrics import HD95_ONE_EMPTY_MM, RegionScore, dice, mask_dice, score_region

Mask = npt.NDArray[np.bool_]
UNIT_MM = (1.0, 1.0, 1.0)
PERFECT = RegionScore(dice=1.0, hd95_mm=0.0, sensitivity=1.0, specificity=1.0)


def voxels(shape: tuple[int, int, int], *at: tuple[int, int, int] | tuple[slice, slice, slice]) -> Mask:
    mask_XYZ = np.zeros(shape, np.bool_)
    for index in at:
        mask_XYZ[index] = True
    return mask_XYZ


@st.composite
def two_masks(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two non-empty random masks of one small shape."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.1, 0.5, 0.9]))
    masks = rng.random((2, *shape)) < density
    masks[:, 0, 0, 0] |= ~masks.any(axis=(1, 2, 3))
    return masks[0], masks[1]


spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.2, 3.0])] * 3)


def surface_points(mask_XYZ: Mask) -> npt.NDArray[np.int_]:
    """Voxels with at least one of six neighbours outside the mask or outside the array, one by one."""
    points = []
    for point in np.argwhere(mask_XYZ):
        neighbours = [point + sign * step for step in np.eye(3, dtype=int) for sign in (-1, 1)]
        inside = [bool(((n >= 0) & (n < mask_XYZ.shape)).all()) and bool(mask_XYZ[tuple(n)]) for n in neighbours]
        if not all(inside):
            points.append(point)
    return np.array(points)


def brute_force_hd95(a_XYZ: Mask, b_XYZ: Mask, spacing_mm: tuple[float, ...]) -> float:
    a, b = surface_points(a_XYZ) * spacing_mm, surface_points(b_XYZ) * spacing_mm
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    return float(np.percentile(np.concatenate((distance.min(axis=1), distance.min(axis=0))), 95))


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected"),
    [(0, 0, 0, 1.0), (0, 3, 0, 0.0), (0, 0, 3, 0.0), (5, 0, 0, 1.0), (2, 1, 3, 0.5), (1, 1, 0, 2 / 3)],
)
def test_dice(tp: int, fp: int, fn: int, expected: float) -> None:
    assert dice(tp, fp, fn) == expected


@given(two_masks())
def test_dice_of_masks_is_that_of_their_voxels(masks: tuple[Mask, Mask]) -> None:
    predicted, reference = masks
    counts = ((predicted & reference).sum(), (predicted & ~reference).sum(), (~predicted & reference).sum())
    assert mask_dice(predicted, reference) == dice(*map(int, counts))
    assert mask_dice(predicted & False, reference) == 0
    assert mask_dice(predicted & False, reference & False) == 1


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (slice(1, 6), (6 / 9, 3 / 4, 4 / 6)),  # TP 3, FP 2, FN 1, TN 4
        (slice(2, 7), (4 / 9, 2 / 4, 3 / 6)),  # TP 2, FP 3, FN 2, TN 3
    ],
)
def test_measures_by_hand(predicted: slice, expected: tuple[float, float, float]) -> None:
    reference_XYZ = voxels((10, 1, 1), (slice(0, 4), slice(None), slice(None)))
    predicted_XYZ = voxels((10, 1, 1), (predicted, slice(None), slice(None)))
    score = score_region(predicted_XYZ, reference_XYZ, UNIT_MM)
    assert (score.dice, score.sensitivity, score.specificity) == expected


def test_both_empty() -> None:
    empty_XYZ = voxels((3, 3, 3))
    assert score_region(empty_XYZ, empty_XYZ, UNIT_MM) == PERFECT


def test_only_reference_empty() -> None:
    score = score_region(voxels((2, 2, 2), (0, 0, 0)), voxels((2, 2, 2)), UNIT_MM)
    assert score == RegionScore(dice=0.0, hd95_mm=373.13, sensitivity=0.0, specificity=7 / 8)


def test_only_prediction_empty() -> None:
    score = score_region(voxels((2, 2, 2)), voxels((2, 2, 2), (0, 0, 0)), UNIT_MM)
    assert score == RegionScore(dice=0.0, hd95_mm=373.13, sensitivity=0.0, specificity=1.0)


def test_penalty_is_the_diagonal_of_the_brats_grid() -> None:
    assert round(math.hypot(240, 240, 155), 2) == HD95_ONE_EMPTY_MM


def test_reference_that_fills_the_volume() -> None:
    full_XYZ = np.ones((3, 3, 3), np.bool_)
    assert score_region(full_XYZ, full_XYZ, UNIT_MM) == PERFECT


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 1.5), (1, 4.0), (2, 9.0)])
def test_hd95_uses_the_spacing_of_each_axis(axis: int, expected_mm: float) -> None:
    there = tuple(3 if i == axis else 0 for i in range(3))
    a_XYZ, b_XYZ = voxels((4, 4, 4), (0, 0, 0)), voxels((4, 4, 4), (there[0], there[1], there[2]))
    assert score_region(a_XYZ, b_XYZ, (0.5, 4 / 3, 3.0)).hd95_mm == pytest.approx(expected_mm)


def test_hd95_of_two_voxels_across_axes() -> None:
    a_XYZ, b_XYZ = voxels((9, 9, 9), (1, 2, 3)), voxels((9, 9, 9), (4, 6, 3))
    assert score_region(a_XYZ, b_XYZ, UNIT_MM).hd95_mm == 5.0
    assert score_region(a_XYZ, b_XYZ, (2.0, 2.0, 1.0)).hd95_mm == 10.0


def test_hd95_of_shifted_cubes() -> None:
    """A 4-cube moved by 2: its far 4 × 4 face lies 2 away, 16 of 56 surface voxels, so the percentile is 2."""
    block = slice(2, 6)
    a_XYZ, b_XYZ = voxels((12, 8, 8), (block, block, block)), voxels((12, 8, 8), (slice(4, 8), block, block))
    assert score_region(a_XYZ, b_XYZ, UNIT_MM).hd95_mm == 2.0
    assert score_region(a_XYZ, b_XYZ, (1.25, 1.0, 1.0)).hd95_mm == 2.5


def test_hd95_ignores_the_farthest_five_percent() -> None:
    row = (slice(0, 40), slice(None), slice(None))
    a_XYZ, b_XYZ = voxels((100, 1, 1), row), voxels((100, 1, 1), row, (99, 0, 0))
    assert score_region(a_XYZ, b_XYZ, UNIT_MM).hd95_mm == 0.0


def test_hd95_takes_both_directions_together() -> None:
    """Distances {0} and {0, 4}: the percentile of 0, 0, 4 is 3.6; the larger of the two directions would be 3.8."""
    a_XYZ, b_XYZ = voxels((5, 1, 1), (0, 0, 0)), voxels((5, 1, 1), (0, 0, 0), (4, 0, 0))
    assert score_region(a_XYZ, b_XYZ, UNIT_MM).hd95_mm == pytest.approx(3.6)


@settings(deadline=None)
@given(masks=two_masks(), spacing_mm=spacings)
def test_hd95_equals_brute_force(masks: tuple[Mask, Mask], spacing_mm: tuple[float, float, float]) -> None:
    expected = brute_force_hd95(*masks, spacing_mm)
    assert score_region(*masks, spacing_mm).hd95_mm == pytest.approx(expected)


@settings(deadline=None)
@given(masks=two_masks(), spacing_mm=spacings, pads=st.tuples(*[st.integers(0, 4)] * 6))
def test_hd95_does_not_depend_on_the_field_of_view(
    masks: tuple[Mask, Mask], spacing_mm: tuple[float, float, float], pads: tuple[int, ...]
) -> None:
    around = [(pads[0], pads[1]), (pads[2], pads[3]), (pads[4], pads[5])]
    larger = [np.pad(mask_XYZ, around) for mask_XYZ in masks]
    alone = score_region(*masks, spacing_mm)
    assert score_region(larger[0], larger[1], spacing_mm).hd95_mm == alone.hd95_mm


@settings(deadline=None)
@given(masks=two_masks(), spacing_mm=spacings)
def test_dice_and_hd95_are_symmetric(masks: tuple[Mask, Mask], spacing_mm: tuple[float, float, float]) -> None:
    there, back = score_region(masks[0], masks[1], spacing_mm), score_region(masks[1], masks[0], spacing_mm)
    assert (there.dice, there.hd95_mm) == (back.dice, back.hd95_mm)
    assert score_region(masks[0], masks[0], spacing_mm) == PERFECT

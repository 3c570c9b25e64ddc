"""Diameters of shapes whose size is known, and of small masks against a search of all segments in exact arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from lowmem_brats.measure import diameters
from lowmem_brats.measure.diameters import Diameters, longest_in_space, measure_slice

Mask = npt.NDArray[np.bool_]
Point = tuple[Fraction, Fraction]
UNIT_MM = (1.0, 1.0)


def drawn(*rows: str) -> Mask:
    """A mask as it is drawn, with X along the text and Y down."""
    return np.array([[each == "#" for each in row] for row in rows]).T


def ellipse(radii_mm: tuple[float, float], degrees: float, spacing_mm: tuple[float, float]) -> Mask:
    """The pixels whose centre lies in an ellipse around the middle of a slice of 80 × 80 mm, turned from X to Y."""
    axes = [np.arange(spacing / 2, 80, spacing) - 40.3 for spacing in spacing_mm]
    x_mm, y_mm = np.meshgrid(*axes, indexing="ij")
    turn = math.radians(degrees)
    along, across = x_mm * math.cos(turn) + y_mm * math.sin(turn), y_mm * math.cos(turn) - x_mm * math.sin(turn)
    inside: Mask = (along / radii_mm[0]) ** 2 + (across / radii_mm[1]) ** 2 <= 1
    return inside


# --- in exact arithmetic, one by one ---


def is_inside(mask_XY: Mask, x: Fraction, y: Fraction) -> bool:
    """Whether a point lies in a pixel of the mask or on its edge."""
    columns = {math.floor(x), math.ceil(x) - 1}
    rows = {math.floor(y), math.ceil(y) - 1}
    return any(
        0 <= i < mask_XY.shape[0] and 0 <= j < mask_XY.shape[1] and mask_XY[i, j]
        for i, j in itertools.product(columns, rows)
    )


def parts(mask_XY: Mask, start: Point, step: Point) -> list[tuple[Fraction, bool]]:
    """The stretches between a segment's crossings from pixel to pixel: share of its length, and whether inside."""
    crossings = {Fraction(0), Fraction(1)}
    for axis in (0, 1):
        if step[axis]:
            crossings |= {(line - start[axis]) / step[axis] for line in range(mask_XY.shape[axis] + 1)}
    cuts = sorted(cut for cut in crossings if 0 <= cut <= 1)
    found = []
    for low, high in itertools.pairwise(cuts):
        middle = (low + high) / 2
        x, y = (start[axis] + middle * step[axis] for axis in (0, 1))
        found.append((high - low, is_inside(mask_XY, x, y)))
    return found


def edge_middles(mask_XY: Mask) -> list[Point]:
    half = Fraction(1, 2)
    found = []
    for i, j in np.argwhere(mask_XY).tolist():
        for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            outside = not (0 <= i + di < mask_XY.shape[0] and 0 <= j + dj < mask_XY.shape[1])
            if outside or not mask_XY[i + di, j + dj]:
                found.append((i + half + di * half, j + half + dj * half))
    return found


def length_mm(step: Point, spacing_mm: tuple[int, int]) -> Fraction:
    """The square of a length in mm."""
    return (step[0] * spacing_mm[0]) ** 2 + (step[1] * spacing_mm[1]) ** 2


def longest_chord_mm(mask_XY: Mask, points: list[Point], along: Point, spacing_mm: tuple[int, int]) -> float:
    """The longest stretch inside on the lines through the points that are perpendicular in mm to `along` in pixels."""
    across = -along[1] * spacing_mm[1] / spacing_mm[0], along[0] * spacing_mm[0] / Fraction(spacing_mm[1])
    steps = 1000 / max(abs(across[0]), abs(across[1]))
    across = across[0] * steps, across[1] * steps
    longest = Fraction(0)
    for x, y in points:
        start, step = (x - across[0], y - across[1]), (2 * across[0], 2 * across[1])
        run = Fraction(0)
        for share, inside in parts(mask_XY, start, step):
            run = run + share if inside else Fraction(0)
            longest = max(longest, run)
    return 2 * float(longest) * math.sqrt(length_mm(across, spacing_mm))


def by_brute_force(mask_XY: Mask, spacing_mm: tuple[int, int]) -> tuple[float, float]:
    """The two diameters with the largest product, of all pieces."""
    found = [(0.0, 0.0)]
    numbers, count = ndimage.label(mask_XY, np.ones((3, 3)))
    for number in range(1, count + 1):
        piece_XY = numbers == number
        points = edge_middles(piece_XY)
        steps = [
            (b[0] - a[0], b[1] - a[1])
            for a, b in itertools.combinations(points, 2)
            if all(inside for _, inside in parts(piece_XY, a, (b[0] - a[0], b[1] - a[1])))
        ]
        squared = max(length_mm(step, spacing_mm) for step in steps)
        longest = [step for step in steps if length_mm(step, spacing_mm) == squared]
        chord = max(longest_chord_mm(piece_XY, points, step, spacing_mm) for step in longest)
        found.append((math.sqrt(squared), min(math.sqrt(squared), chord)))
    return max(found, key=lambda pair: pair[0] * pair[1])


masks = arrays.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 5)))


@settings(max_examples=150)
@given(masks, st.sampled_from([(1, 1), (1, 2), (3, 1)]))
def test_diameters_equal_a_search_of_all_segments(mask_XY: Mask, spacing_mm: tuple[int, int]) -> None:
    longest, perpendicular = by_brute_force(mask_XY, spacing_mm)
    found = measure_slice(mask_XY, spacing_mm) or Diameters(0, 0)
    assert found.product_mm2 == pytest.approx(longest * perpendicular)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_diameters_do_not_depend_on_how_the_slice_lies(mask_XY: Mask) -> None:
    found = measure_slice(mask_XY, UNIT_MM)
    for turned in (mask_XY[::-1], mask_XY[:, ::-1], mask_XY.T, np.pad(mask_XY, 3)):
        again = measure_slice(turned, UNIT_MM)
        assert (again is None) == (found is None)
        if found and again:
            assert again.product_mm2 == pytest.approx(found.product_mm2)


# --- known answers ---


@pytest.mark.parametrize(
    ("size", "spacing_mm", "longest", "perpendicular"),
    [
        ((1, 1), UNIT_MM, 1, 1),
        ((10, 1), UNIT_MM, 10, 1),
        ((1, 10), (1.0, 0.5), 5, 1),
        ((10, 4), UNIT_MM, math.hypot(10, 3), 4 * math.hypot(10, 3) / 10),  # from edge to edge, off the corners
        ((10, 4), (2.0, 2.0), 2 * math.hypot(10, 3), 8 * math.hypot(10, 3) / 10),
    ],
)
def test_rectangles(
    size: tuple[int, int], spacing_mm: tuple[float, float], longest: float, perpendicular: float
) -> None:
    found = measure_slice(np.ones(size, np.bool_), spacing_mm)
    assert found
    assert (found.longest_mm, found.perpendicular_mm) == pytest.approx((longest, perpendicular))
    assert found.product_mm2 == pytest.approx(longest * perpendicular)


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 123])
@pytest.mark.parametrize("spacing_mm", [UNIT_MM, (0.5, 0.5), (0.5, 1.5), (2.0, 1.0)])
@pytest.mark.parametrize("radii_mm", [(30.0, 10.0), (20.0, 16.0)])
def test_ellipses_however_they_are_turned(
    radii_mm: tuple[float, float], spacing_mm: tuple[float, float], degrees: float
) -> None:
    found = measure_slice(ellipse(radii_mm, degrees, spacing_mm), spacing_mm)
    assert found
    pixel_mm = max(spacing_mm)
    assert found.longest_mm == pytest.approx(2 * radii_mm[0], abs=pixel_mm)
    assert found.perpendicular_mm == pytest.approx(2 * radii_mm[1], abs=pixel_mm)


def test_a_diameter_stays_inside_a_bent_lesion() -> None:
    """Tip to tip is 11.3 mm, but outside. Inside, the longest runs along an arm, past the corner (2, 2)."""
    bent = drawn("########", "########", "##......", "##......", "##......", "##......", "##......", "##......")
    found = measure_slice(bent, UNIT_MM)
    assert found
    assert found.longest_mm == pytest.approx(math.hypot(8, 2))
    assert found.perpendicular_mm == pytest.approx(math.hypot(7.5, 7.5 / 4))


def test_a_perpendicular_stays_inside_too() -> None:
    """Two bars across a gap: no line may jump the gap."""
    bars = drawn("####################", "#..................#", "####################")
    found = measure_slice(bars, UNIT_MM)
    assert found
    assert (found.longest_mm, found.perpendicular_mm) == pytest.approx((20, 3))
    bars[[0, -1], 1] = False  # now two pieces
    found = measure_slice(bars, UNIT_MM)
    assert found
    assert (found.longest_mm, found.perpendicular_mm) == pytest.approx((20, 1))


def test_each_piece_of_a_slice_is_measured_by_itself() -> None:
    """A thread of 12 × 1 is longer than a square of 5 × 5, whose product is larger."""
    pieces = drawn("############......", "..................", "#####.............", *["#####............."] * 4)
    found = measure_slice(pieces, UNIT_MM)
    alone = measure_slice(np.ones((5, 5), np.bool_), UNIT_MM)
    assert found
    assert found == alone
    assert found.product_mm2 == pytest.approx(41)  # 5² + 4²: both diagonals end off the corners


def test_pixels_that_share_a_corner_are_one_piece() -> None:
    found = measure_slice(np.eye(2, dtype=np.bool_), UNIT_MM)
    assert found
    assert found.longest_mm == pytest.approx(math.hypot(1, 2))  # from edge to edge through the corner


def test_nothing_is_returned_unless_it_is_larger() -> None:
    square = np.ones((3, 3), np.bool_)
    assert measure_slice(square, UNIT_MM, 12.9)
    assert measure_slice(square, UNIT_MM, 13.0) is None
    assert measure_slice(square & False, UNIT_MM) is None


def test_of_a_mask_of_noise_only_some_ends_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.ones((30, 1), np.bool_)
    monkeypatch.setattr(diameters, "MOST_ENDS", 2)
    found = measure_slice(row, UNIT_MM)
    assert found
    assert found.longest_mm == 30  # the two ends are the farthest from the middle


# --- in space ---


@given(
    arrays.arrays(np.bool_, st.tuples(*[st.integers(1, 4)] * 3)).filter(np.any),
    st.sampled_from([(1.0, 1.0, 1.0), (0.5, 1.2, 3.0)]),
)
def test_the_longest_diameter_in_space_is_that_of_all_pairs(
    mask_XYZ: Mask, spacing_mm: tuple[float, float, float]
) -> None:
    faces = [voxel + sign * step / 2 for voxel in np.argwhere(mask_XYZ) for step in np.eye(3) for sign in (-1, 1)]
    mm = np.array(faces) * spacing_mm
    expected = np.sqrt(((mm[:, None] - mm[None]) ** 2).sum(axis=2)).max()
    assert longest_in_space(mask_XYZ, spacing_mm) == pytest.approx(expected)


def test_the_longest_diameter_in_space_may_leave_the_lesion() -> None:
    corners = np.zeros((5, 1, 4), np.bool_)
    corners[0] = corners[:, :, 0] = True
    assert longest_in_space(corners, (1.0, 1.0, 1.0)) == pytest.approx(math.hypot(5, 3))

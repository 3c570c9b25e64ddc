"""Windows lie around what the parent network finds, hold what the slice holds, and leave nothing of a slice unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from easy_cases import SIDE
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase, store_case
from lowmem_brats.train.windows import AROUND, MARGIN, centred, cut, draw_corners, window_of

BOXES = {1: ((10, 30), (8, 28), (16, 32)), 2: ((12, 28), (10, 20), (18, 30)), 3: ((15, 20), (12, 16), (20, 24))}
"""Nested regions: along Z, H and W, first voxel and the one after the last."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CachedCase:
    """A cube of 48 voxels of brain with three nested boxes."""
    depth_ZHW = np.zeros((48, 48, 48), np.uint8)
    for depth, box in BOXES.items():
        depth_ZHW[tuple(slice(*span) for span in box)] = depth
    path = tmp_path_factory.mktemp("cache") / "case.json"
    return store_case(path, "case", np.ones((48, 4, 48, 48), np.float16), depth_ZHW, False)


def rows(view: int, number: int, times: int = 1000) -> npt.NDArray[np.int64]:
    return np.tile(np.array([[0, view, number]], np.int64), (times, 1))


def test_a_case_knows_where_its_regions_are(case: CachedCase) -> None:
    for region in Region:
        z, h, w = BOXES[region.depth]
        assert case.box_of(region) == [z, h, w]
        assert case.box_of(region, 1) == [h, z, w]
        assert case.box_of(region, 2) == [w, h, z]


def test_a_region_that_a_case_has_none_of_has_no_box(tmp_path: Path) -> None:
    depth_ZHW = np.zeros((4, SIDE, SIDE), np.uint8)
    depth_ZHW[1, 2, 3] = 2
    case = store_case(tmp_path / "case.json", "case", np.ones((4, 4, SIDE, SIDE), np.float16), depth_ZHW, True)
    assert case.box_of(Region.TC) == [(1, 2), (2, 3), (3, 4)]
    assert case.box_of(Region.ET) is None


@pytest.mark.parametrize("view", [0, 1, 2])
@pytest.mark.parametrize(("region", "around"), [(Region.TC, Region.WT), (Region.ET, Region.TC)])
def test_windows_hold_the_parent_and_a_margin(case: CachedCase, region: Region, around: Region, view: int) -> None:
    """Where the window is large enough: 36 pixels for at most 20 and two margins of 8."""
    (first, last), *spans = case.box_of(around, view) or []
    corners_N2 = draw_corners(np.random.default_rng(0), [case], rows(view, (first + last) // 2), region, (36, 36))
    held = np.ones(len(corners_N2), np.bool_)
    for axis, span in enumerate(spans):
        starts = corners_N2[:, axis]
        held &= (starts <= span[0] - MARGIN) & (starts + 36 >= span[1] + MARGIN)
    assert held.mean() > AROUND - 0.05
    assert not held.all(), "some lie anywhere"
    assert len(np.unique(corners_N2[held], axis=0)) == np.prod([37 - 2 * MARGIN - (b - a) for a, b in spans])


def test_windows_smaller_than_the_parent_stay_inside_its_margin(case: CachedCase) -> None:
    corners_N2 = draw_corners(np.random.default_rng(0), [case], rows(0, 20), Region.WT, (16, 16))
    _, *spans = BOXES[1]
    inside = [
        (first - MARGIN <= c) & (c + 16 <= last + MARGIN) for c, (first, last) in zip(corners_N2.T, spans, strict=True)
    ]
    assert np.logical_and(*inside).mean() > AROUND - 0.1


def test_windows_without_tumour_lie_anywhere(case: CachedCase) -> None:
    corners_N2 = draw_corners(np.random.default_rng(0), [case], rows(0, 2), Region.WT, (32, 32))
    for axis in (0, 1):
        assert set(corners_N2[:, axis].tolist()) == set(range(-MARGIN, 48 + MARGIN - 32 + 1))


@given(st.integers(-9, 12), st.integers(-9, 12), st.integers(1, 9), st.integers(1, 9))
def test_a_window_is_what_a_padded_slice_holds_there(row: int, column: int, height: int, width: int) -> None:
    array = np.arange(1, 1 + 2 * 7 * 5).reshape(2, 7, 5)
    padded = np.pad(array, ((0, 0), (10, 22), (10, 22)))
    expected = padded[:, 10 + row : 10 + row + height, 10 + column : 10 + column + width]
    np.testing.assert_array_equal(cut(array, (row, column), (height, width)), expected)


def test_whole_slices_lie_in_the_middle_of_their_frame(case: CachedCase) -> None:
    assert centred([case], rows(0, 0, 1), (48, 48)).tolist() == [[0, 0]]
    assert centred([case], rows(2, 0, 1), (51, 60)).tolist() == [[-1, -6]], "the odd row comes last"


def test_a_window_is_no_larger_than_the_frame() -> None:
    assert window_of((176, 144), 112) == (112, 112)
    assert window_of((176, 96), 112) == (112, 96)
    assert window_of((176, 144), 0) == (176, 144)

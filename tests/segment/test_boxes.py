"""Boxes hold all that was found and a margin, fit the network, and never overlap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.segment.boxes import Box, boxes_around

SHAPE = (32, 48, 40)
MULTIPLES = (8, 8, 8)


def found(*places: tuple[slice, slice, slice]) -> npt.NDArray[np.bool_]:
    mask_ZHW = np.zeros(SHAPE, np.bool_)
    for place in places:
        mask_ZHW[place] = True
    return mask_ZHW


def test_a_box_by_hand() -> None:
    """Along Z 10 to 13 with a margin of 2 is 8 to 15, 7 voxels; the box begins there, and has 8."""
    (box,) = boxes_around(found(np.s_[10:13, 20:29, 0:3]), 2, MULTIPLES)
    assert box == Box((8, 17, 0), (16, 33, 8))
    assert box.shape_ZHW == (8, 16, 8)
    assert box.inside == np.s_[8:16, 17:33, 0:8]


def test_nothing_found_has_no_box() -> None:
    assert boxes_around(found(), 4, MULTIPLES) == []


def test_what_lies_apart_has_boxes_of_its_own() -> None:
    first, second = np.s_[2:4, 2:4, 2:4], np.s_[25:28, 40:44, 30:33]
    assert len(boxes_around(found(first, second), 2, MULTIPLES)) == 2


def test_boxes_that_would_overlap_are_one() -> None:
    (box,) = boxes_around(found(np.s_[2:4, 2:4, 2:4], np.s_[8:9, 8:9, 8:9]), 2, MULTIPLES)
    assert box == Box((0, 0, 0), (16, 16, 16))


def test_a_joined_box_that_reaches_a_third_is_joined_with_it() -> None:
    """Two corners of one large box leave a third component, that touches neither, inside it."""
    places = [np.s_[2:4, 2:4, 2:4], np.s_[20:22, 2:4, 2:4], np.s_[8:14, 4:12, 2:4]]
    boxes = boxes_around(found(*places), 0, (16, 16, 8))
    assert len(boxes) == 1


def test_axes_that_need_no_multiple_are_as_long_as_the_margin_says() -> None:
    (box,) = boxes_around(found(np.s_[10:13, 20:21, 20:21]), 2, (1, 8, 8))
    assert (box.start_ZHW[0], box.stop_ZHW[0]) == (8, 15)


@given(
    st.lists(st.tuples(*(st.integers(0, side - 1) for side in SHAPE)), max_size=12),
    st.integers(0, 6),
    st.sampled_from([(8, 8, 8), (1, 8, 8), (16, 16, 8), (1, 1, 1)]),
)
def test_boxes_hold_everything_fit_and_never_overlap(
    voxels: list[tuple[int, int, int]], margin: int, multiple_ZHW: tuple[int, int, int]
) -> None:
    mask_ZHW = found()
    for voxel in voxels:
        mask_ZHW[voxel] = True
    boxes = boxes_around(mask_ZHW, margin, multiple_ZHW)
    held = np.zeros(SHAPE, int)
    for box in boxes:
        held[box.inside] += 1
        assert all(
            start >= 0 and stop <= side for start, stop, side in zip(box.start_ZHW, box.stop_ZHW, SHAPE, strict=True)
        )
        assert all(size % multiple == 0 for size, multiple in zip(box.shape_ZHW, multiple_ZHW, strict=True))
    assert held.max(initial=0) <= 1
    for z, h, w in voxels:
        around = tuple(slice(max(i - margin, 0), i + margin + 1) for i in (z, h, w))
        assert (held[around] == 1).all()

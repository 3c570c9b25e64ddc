"""Boxes hold all that was found and a margin, fit the network, never overlap, and are all that a network sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.slices import SliceStack, occupied
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.segment.boxes import Box, boxes_around, predict_boxes
from lowmem_brats.segment.stack import count_passes, place, predict_stack

SHAPE = (32, 48, 40)
PLAN = InferencePlan("cpu", "fp32", batch=3)
FIRST, SECOND = Box((0, 8, 8), (8, 16, 24)), Box((16, 24, 8), (24, 40, 16))


def found(*places: tuple[slice, slice, slice]) -> npt.NDArray[np.bool_]:
    """A mask of the places."""
    mask_ZHW = np.zeros(SHAPE, np.bool_)
    for each in places:
        mask_ZHW[each] = True
    return mask_ZHW


def test_a_box_by_hand() -> None:
    """Along Z 10 to 13 with a margin of 2 is 8 to 15, 7 voxels; the box begins there, and has 8."""
    (box,) = boxes_around(found(np.s_[10:13, 20:29, 0:3]), 2, 8, flat=False)
    assert box == Box((8, 17, 0), (16, 33, 8))
    assert box.shape_ZHW == (8, 16, 8)
    assert box.inside == np.s_[8:16, 17:33, 0:8]


def test_nothing_found_has_no_box() -> None:
    assert boxes_around(found(), 4, 8, flat=False) == []


def test_what_lies_apart_has_boxes_of_its_own() -> None:
    first, second = np.s_[2:4, 2:4, 2:4], np.s_[25:28, 40:44, 30:33]
    assert len(boxes_around(found(first, second), 2, 8, flat=False)) == 2


def test_boxes_that_would_overlap_are_one() -> None:
    (box,) = boxes_around(found(np.s_[2:4, 2:4, 2:4], np.s_[8:9, 8:9, 8:9]), 2, 8, flat=False)
    assert box == Box((0, 0, 0), (16, 16, 16))


def test_a_joined_box_that_reaches_a_third_is_joined_with_it() -> None:
    """The box of the two at the corners holds the third, which touches neither of theirs."""
    corners = np.s_[0:2, 0:2, 0:2], np.s_[6:8, 6:8, 0:2]
    assert len(boxes_around(found(*corners, np.s_[0:1, 12:14, 0:1]), 0, 8, flat=False)) == 1


def test_a_flat_stack_is_cut_to_the_slice() -> None:
    (box,) = boxes_around(found(np.s_[10:13, 20:21, 20:21]), 2, 8, flat=True)
    assert (box.start_ZHW[0], box.stop_ZHW[0]) == (8, 15)


@given(
    st.lists(st.tuples(*(st.integers(0, side - 1) for side in SHAPE)), max_size=12),
    st.integers(0, 6),
    st.sampled_from([1, 8]),
    st.booleans(),
)
def test_boxes_hold_everything_fit_and_never_overlap(
    voxels: list[tuple[int, int, int]], margin: int, stride: int, flat: bool
) -> None:
    mask_ZHW = found()
    for voxel in voxels:
        mask_ZHW[voxel] = True
    boxes = boxes_around(mask_ZHW, margin, stride, flat)
    held = np.zeros(SHAPE, int)
    for box in boxes:
        held[box.inside] += 1
        assert held[box.inside].shape == box.shape_ZHW, "inside the stack"
        assert not any(np.remainder(box.shape_ZHW, (1 if flat else stride, stride, stride)))
    assert held.max(initial=0) <= 1
    for voxel in voxels:
        around = tuple(slice(max(i - margin, 0), i + margin + 1) for i in voxel)
        assert (held[around] == 1).all()


def stack_of(slices_ZCHW: npt.NDArray[np.float16], **changes: object) -> SliceStack:
    """A stack of these slices, all brain, that begins at voxel (z, y, x) = (1, -2, 3)."""
    facts = {"flat": False, "origin_ZHW": (1, -2, 3), "shape_XYZ": (41, 45, 33)} | changes
    return SliceStack(slices_ZCHW, np.ones(SHAPE, np.bool_), **facts)  # type: ignore[arg-type]


def test_where_a_box_lies_in_the_volume() -> None:
    stack = stack_of(np.zeros((1, 4, 1, 1), np.float16))
    assert Box((0, 8, 8), (8, 16, 24)).in_volume(stack) == [[11, 6, 1], [27, 14, 9]]
    assert Box((16, 0, 24), (32, 48, 40)).in_volume(stack) == [[27, 0, 17], [41, 45, 33]], "cut to the volume"


def test_a_box_in_interpolated_slices_is_told_in_voxels() -> None:
    stack = stack_of(np.zeros((1, 4, 1, 1), np.float16), stretch_HW=(3, 2), shape_XYZ=(23, 14, 33))
    assert Box((0, 8, 8), (8, 16, 25)).in_volume(stack) == [[7, 0, 1], [16, 4, 9]]


@pytest.fixture(scope="module")
def noise() -> SliceStack:
    """A stack of noise."""
    return stack_of(np.random.default_rng(0).normal(size=(SHAPE[0], 4, *SHAPE[1:])).astype(np.float16))


@pytest.fixture(scope="module")
def network() -> SliceNetwork:
    """A tiny U-Net of three regions without norms."""
    torch.manual_seed(0)
    return place(build_network(NetworkConfig(width=8, depth=2, norm="none", outputs=3, views=3)), PLAN)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_network_sees_each_box_as_a_stack_of_its_own(noise: SliceStack, network: SliceNetwork, mirror: bool) -> None:
    told: list[tuple[int, int]] = []
    result = predict_boxes(
        lambda view: network, noise, [FIRST, SECOND], noise.brain_ZHW, 3, PLAN, mirror, lambda *at: told.append(at)
    )
    held = found(FIRST.inside, SECOND.inside)
    passes = pixels = 0
    for box in (FIRST, SECOND):
        z, h, w = box.inside
        active_VN = occupied(noise.brain_ZHW[box.inside], 3)
        alone = predict_stack(lambda view: network, noise.slices_ZCHW[z, :, h, w], active_VN, PLAN, mirror)
        np.testing.assert_array_equal(result.sum_KZHW[:, z, h, w], alone.sum_KZHW)
        passes, pixels = passes + count_passes(active_VN, mirror), pixels + alone.pixels
    assert not result.sum_KZHW[:, ~held].any()
    assert told[-1] == (passes, passes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {passes}
    orientations = (1 + mirror, 1 + mirror, 1)
    assert result.pixels == pixels == sum(n * int(held.sum()) for n in orientations)
    for ran_N, used_N in zip(result.ran_VN, occupied(held, 3), strict=True):
        np.testing.assert_array_equal(ran_N, used_N)


def test_only_slices_with_the_parent_are_run(noise: SliceStack, network: SliceNetwork) -> None:
    parent_ZHW = found(np.s_[2:4, 9:12, 10:11])
    result = predict_boxes(lambda view: network, noise, [FIRST], parent_ZHW, 3, PLAN)
    everywhere = predict_boxes(lambda view: network, noise, [FIRST], noise.brain_ZHW, 3, PLAN)
    np.testing.assert_array_equal(result.sum_KZHW[:, parent_ZHW], everywhere.sum_KZHW[:, parent_ZHW])
    assert [int(ran_N.sum()) for ran_N in result.ran_VN] == [2, 3, 1]
    assert result.pixels == 2 * 8 * 16 + 3 * 8 * 16 + 1 * 8 * 8 < everywhere.pixels


def test_no_box_is_no_finding(noise: SliceStack, network: SliceNetwork) -> None:
    result = predict_boxes(lambda view: network, noise, [], noise.brain_ZHW, 3, PLAN)
    assert result.sum_KZHW.shape == (3, *SHAPE)
    assert not result.sum_KZHW.any()
    assert (result.pixels, sum(int(ran_N.sum()) for ran_N in result.ran_VN)) == (0, 0)

"""Patches cover everything, overlap by half, and are tried from the authors' way to the smallest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.errors import InputError
from lowmem_brats.memory.tiles import crops, starts, tilings
from lowmem_brats.networks import PatchNetwork


class Outline:
    """As much of a network of patches as planning asks for."""

    def __init__(self, stride: int, window_ZHW: tuple[int, int, int], whole: bool) -> None:
        self.stride_ZHW = (1 if window_ZHW[0] == 1 else stride, stride, stride)
        self.window_ZHW, self.whole = window_ZHW, whole


def outline(stride: int, window_ZHW: tuple[int, int, int], whole: bool) -> PatchNetwork:
    return Outline(stride, window_ZHW, whole)  # type: ignore[return-value]


BUNDLE = outline(8, (160, 240, 240), True)
NNUNET = outline(32, (128, 128, 128), False)
VOLUME, BRAIN = (155, 240, 240), (138, 170, 138)


@pytest.mark.parametrize(
    ("size", "patch", "wanted"),
    [
        (110, 64, [0, 23, 46]),  # the example in nnU-Net's code
        (128, 128, [0]),
        (129, 128, [0, 1]),
        (193, 128, [0, 32, 65]),
        (100, 128, [0]),
        (3, 1, [0, 1, 2]),
    ],
)
def test_patches_begin_where_nnunet_begins_them(size: int, patch: int, wanted: list[int]) -> None:
    assert starts(size, patch) == wanted


@given(size=st.integers(1, 400), patch=st.integers(2, 200))
def test_patches_cover_an_axis_with_half_their_length_between_them(size: int, patch: int) -> None:
    found = starts(size, patch)
    assert found[0] == 0
    assert found[-1] == max(size - patch, 0)
    steps = np.diff(found)
    assert (steps <= math.ceil(patch / 2)).all()
    assert (steps > 0).all()


def test_the_authors_way_comes_first() -> None:
    first = tilings(BUNDLE, VOLUME, BRAIN)[0]
    assert (first.patch_ZHW, first.cropped, first.voxels) == ((160, 240, 240), False, 160 * 240 * 240)
    first = tilings(NNUNET, VOLUME, BRAIN)[0]
    assert (first.patch_ZHW, first.cropped, first.voxels) == ((128, 128, 128), True, 8 * 128**3)


@given(
    stride=st.sampled_from([4, 8, 16, 32]),
    whole=st.booleans(),
    flat=st.booleans(),
    brain=st.tuples(*[st.integers(20, 200)] * 3),
)
def test_each_further_way_is_slower_and_smaller_than_the_one_before(
    stride: int, whole: bool, flat: bool, brain: tuple[int, int, int]
) -> None:
    network = outline(stride, (1 if flat else 160, 192, 224), whole)
    _, *others = found = tilings(network, VOLUME, brain)
    volumes = [math.prod(each.patch_ZHW) for each in found]
    assert volumes == sorted(set(volumes), reverse=True)
    assert [each.voxels for each in others] == sorted(each.voxels for each in others)
    for each in others:
        sides = list(zip(each.patch_ZHW, network.stride_ZHW, network.window_ZHW, brain, strict=True))
        assert each.cropped
        assert all(side % multiple == 0 and side <= window for side, multiple, window, _ in sides)
        longest = max(each.patch_ZHW)
        assert all(2 * side >= longest or side >= size or window == 1 for side, _, window, size in sides)
    least = 2 * stride
    smallest = (1 if flat else least, least, least)
    assert math.prod(found[-1].patch_ZHW) <= math.prod(smallest), "down to what two strides hold"


def test_crops_are_no_longer_than_the_volume_and_ever_smaller() -> None:
    network = outline(8, (160, 240, 240), True)
    network.crops_ZHW = ((144, 224, 224), (144, 192, 160), (128, 128, 128), (32, 32, 32))
    assert crops(network, (155, 240, 240)) == [*network.crops_ZHW]
    assert crops(network, (138, 170, 138)) == [(144, 176, 144), (128, 128, 128), (32, 32, 32)]
    assert crops(network, (20, 30, 33)) == [(24, 32, 40), (24, 32, 32)]
    network.crops_ZHW = ()
    with pytest.raises(InputError, match="--network: Outline, which sees patches and is imported"):
        crops(network, (155, 240, 240))

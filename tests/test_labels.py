"""The truth table of the nested fusion, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.errors import InputError
from lowmem_brats.labels import CONVENTIONS, Region, fuse_regions, nesting_depth, split_regions

# WT, TC, ET → brats2020, brats2023, msd
TRUTH_TABLE = {
    (0, 0, 0): (0, 0, 0),
    (0, 0, 1): (0, 0, 0),
    (0, 1, 0): (0, 0, 0),
    (0, 1, 1): (0, 0, 0),
    (1, 0, 0): (2, 2, 1),
    (1, 0, 1): (2, 2, 1),
    (1, 1, 0): (1, 1, 2),
    (1, 1, 1): (4, 3, 3),
}
CONVENTION_NAMES = ("brats2020", "brats2023", "msd")


@pytest.mark.parametrize("bits", TRUTH_TABLE)
@pytest.mark.parametrize("column", range(3))
def test_fusion_truth_table(bits: tuple[int, int, int], column: int) -> None:
    masks = {region: np.array([bool(bit)]) for region, bit in zip(Region, bits, strict=True)}
    label = fuse_regions(masks, CONVENTIONS[CONVENTION_NAMES[column]])
    assert label.dtype == np.uint8
    assert label.tolist() == [TRUTH_TABLE[bits][column]]


def test_the_table_covers_all_conventions() -> None:
    assert tuple(CONVENTIONS) == CONVENTION_NAMES


def test_regions_come_from_the_outside_in() -> None:
    assert [region.value for region in Region] == ["wt", "tc", "et"]
    assert [region.parent for region in Region] == [None, Region.WT, Region.TC]


@pytest.mark.parametrize("name", CONVENTION_NAMES)
@settings(deadline=None)
@given(bits=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_split_undoes_fuse(name: str, bits: list[tuple[bool, bool, bool]]) -> None:
    whole, core, enhancing = np.array(bits).T
    convention = CONVENTIONS[name]
    label = fuse_regions({Region.WT: whole, Region.TC: core, Region.ET: enhancing}, convention)
    split = split_regions(label, convention, "case")
    np.testing.assert_array_equal(split[Region.WT], whole)
    np.testing.assert_array_equal(split[Region.TC], whole & core)
    np.testing.assert_array_equal(split[Region.ET], whole & core & enhancing)
    assert all(mask.dtype == np.bool_ for mask in split.values())


@pytest.mark.parametrize("name", CONVENTION_NAMES)
def test_fuse_undoes_split(name: str) -> None:
    convention = CONVENTIONS[name]
    label = np.array(convention.values, np.uint8)
    np.testing.assert_array_equal(fuse_regions(split_regions(label, convention, "case"), convention), label)


def test_fusion_leaves_the_masks_alone() -> None:
    masks = {Region.WT: np.array([False]), Region.TC: np.array([True]), Region.ET: np.array([True])}
    fuse_regions(masks, CONVENTIONS["brats2020"])
    assert [bool(masks[region][0]) for region in Region] == [False, True, True]


def test_unknown_label_names_the_convention_that_fits() -> None:
    with pytest.raises(InputError, match=r"seg\.nii: unknown label 4; expected only 0, 1, 2, 3") as caught:
        split_regions(np.array([0, 1, 2, 4]), CONVENTIONS["brats2023"], "seg.nii")
    assert caught.value.advice == "Pass --labels brats2020 if that is its convention."


def test_label_three_fits_two_conventions() -> None:
    with pytest.raises(InputError) as caught:
        split_regions(np.array([0, 3]), CONVENTIONS["brats2020"], "seg.nii")
    assert caught.value.advice == "Pass --labels brats2023 or msd if that is its convention."


def test_all_unknown_labels_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        split_regions(np.array([9, 0, 7, 9, 1]), CONVENTIONS["msd"], "seg.nii")
    assert caught.value.found == "unknown labels 7, 9"
    assert caught.value.advice == "Relabel the file."


@pytest.mark.parametrize("name", CONVENTION_NAMES)
def test_tissues_and_values_agree(name: str) -> None:
    convention = CONVENTIONS[name]
    assert set(convention.tissues.values()) | {0} == set(convention.values)
    assert list(convention.values) == sorted(convention.values)


def test_nesting_depth_counts_the_regions_that_hold_a_voxel() -> None:
    convention = CONVENTIONS["brats2020"]
    label = np.array([0, convention.ed, convention.ncr, convention.et], np.uint8)
    depth = nesting_depth(split_regions(label, convention, "case"))
    assert depth.dtype == np.uint8
    assert depth.tolist() == [0, 1, 2, 3]

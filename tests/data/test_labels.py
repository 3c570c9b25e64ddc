"""The truth table of the nested fusion, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.data.labels import (
    CONVENTIONS,
    Region,
    as_labels,
    format_millilitres,
    fuse_regions,
    groups_of,
    names_of,
    nesting_depth,
    of_tissues,
    regions_of,
    split_regions,
    stem_of,
    warnings_of,
)
from lowmem_brats.errors import InputError

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


# The rule of MONAI's bundle (ET, else TC, else WT), which nnU-Net's painting of WT, TC and ET in turn gives too.
PAINTED = {(0, 0, 1): 4, (0, 1, 0): 1, (0, 1, 1): 4, (1, 0, 1): 4}


@pytest.mark.parametrize("bits", TRUTH_TABLE)
def test_painting_asks_for_no_parent(bits: tuple[int, int, int]) -> None:
    masks = {region: np.array([bool(bit)]) for region, bit in zip(Region, bits, strict=True)}
    label = fuse_regions(masks, CONVENTIONS["brats2020"], nested=False)
    assert label.tolist() == [PAINTED.get(bits, TRUTH_TABLE[bits][0])]


@given(logits=st.lists(st.integers(-50, 50), min_size=4, max_size=4, unique=True))
def test_regions_of_tissues_are_those_of_the_most_probable_one(logits: list[int]) -> None:
    regions = of_tissues(np.array(logits, np.float32)[:, None, None, None]) > 0
    inside = [(False,) * 3, (True, True, False), (True, False, False), (True, True, True)]
    assert tuple(regions.ravel().tolist()) == inside[int(np.argmax(logits))]
    masks = dict(zip(Region, regions, strict=True))
    assert fuse_regions(masks, CONVENTIONS["brats2020"], nested=False).item() == (0, 1, 2, 4)[int(np.argmax(logits))]


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


def test_a_mask_of_one_region_is_called_that() -> None:
    with pytest.raises(InputError, match=r"unknown label 255; expected only 0, 1, 2, 4 \(brats2020\)") as caught:
        split_regions(np.array([0, 255]), CONVENTIONS["brats2020"], "seg.nii")
    assert caught.value.advice.startswith("A mask of one region does not tell the tissues apart")


@pytest.mark.parametrize(
    ("values", "name", "tissue"),
    [
        ([0, 1], "brats2020", "necrotic core"),
        ([1, 1], "brats2023", "necrotic core"),
        ([0, 1], "msd", "oedema"),
        ([0, 0], "brats2020", None),
        ([0, 1, 2], "brats2020", None),
        ([0, 2], "brats2020", None),
        ([], "brats2020", None),
    ],
)
def test_a_label_map_of_ones_may_be_a_mask(values: list[int], name: str, tissue: str | None) -> None:
    expected = f"its only label is 1, {tissue}: a mask of another region would be taken for that"
    assert warnings_of(np.array(values, np.uint8), CONVENTIONS[name]) == ([expected] if tissue else [])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_are_labels(dtype: type[np.generic]) -> None:
    values = np.array([[0, 4], [255, 1]], dtype)
    label = as_labels(values, "seg.nii")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


def test_labels_are_rounded_within_a_thousandth_only() -> None:
    near = np.array([-0.0009, 0.9991, 3.9999, 4.0009])
    assert as_labels(near, "seg.nii").tolist() == [0, 1, 4, 4]
    for value in (-0.0011, 0.9989, 3.5, 254.99):
        with pytest.raises(InputError) as caught:
            as_labels(np.append(near, value), "seg.nii")
        assert caught.value.found == f"1 voxels of value {value}"
        assert "resample label maps to their nearest neighbour" in caught.value.advice


def test_numbers_that_are_no_labels_are_counted_and_some_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        as_labels(np.array([0, 256, -1, 4, -1, 300], np.int16), "seg.nii")
    assert caught.value.found == "4 voxels of value -1, 256, 300"
    assert caught.value.advice == "Give these voxels the label of their tissue, or 0 for background."
    with pytest.raises(InputError) as caught:
        as_labels(np.array([0, 0.2, 0.4, 0.6, 0.8, 1]), "seg.nii")
    assert caught.value.found == "4 voxels of value 0.2, 0.4, 0.6 and others"


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


@pytest.mark.parametrize(
    ("volume_ml", "shown"),
    [
        (0, "0.0"),
        (12.34, "12.3"),
        (0.12, "0.1"),
        (0.1, "0.1"),
        (0.0312, "0.031"),
        (0.001, "0.0010"),
        (5e-5, "0.000050"),
    ],
)
def test_small_volumes_have_two_digits(volume_ml: float, shown: str) -> None:
    assert format_millilitres(volume_ml) == shown


def test_networks_and_their_regions() -> None:
    assert groups_of(("et", "wt"), outputs=1) == [(Region.WT,), (Region.ET,)]
    assert groups_of(("et", "wt", "tc"), outputs=3) == [(Region.WT, Region.TC, Region.ET)]


@pytest.mark.parametrize(("name", "stem"), [("wt", "wt"), ("wt tc et", "wt-tc-et")])
def test_names_of_networks(name: str, stem: str) -> None:
    assert names_of(regions_of(name)) == name
    assert stem_of(name) == stem


def test_an_unknown_region_has_no_network() -> None:
    with pytest.raises(ValueError, match="brainstem"):
        regions_of("wt brainstem")


@given(st.sampled_from([np.uint8, np.int16, np.int64]), st.lists(st.integers(0, 100), max_size=30))
def test_every_unknown_value_is_named_whatever_the_type(dtype: type, values: list[int]) -> None:
    label = np.array(values, dtype).reshape(1, -1)
    unknown = sorted(set(values) - set(CONVENTIONS["brats2020"].values))
    if not unknown:
        split_regions(label, CONVENTIONS["brats2020"], "x")
        return
    with pytest.raises(InputError) as caught:
        split_regions(label, CONVENTIONS["brats2020"], "x")
    assert caught.value.found.split(maxsplit=2)[2] == ", ".join(map(str, unknown))

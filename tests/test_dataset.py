"""Cases are split by patient, cached exactly as prediction prepares them, and gathered with their own labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.case_files import CaseFiles, find_case
from lowmem_brats.dataset import CachedCase, build_cache, frame_of, gather, split_cases, training_rows
from lowmem_brats.errors import InputError
from lowmem_brats.labels import CONVENTIONS, Region
from lowmem_brats.nifti import read_case, read_label
from lowmem_brats.slices import prepare, to_volume

BRATS = CONVENTIONS["brats2020"]
WriteCase = Callable[..., Path]


def named(*names: str) -> list[CaseFiles]:
    """Return cases that are only names."""
    return [CaseFiles(name, Path(name), {}) for name in names]


def cached(depths: list[int], height: int = 8, width: int = 8, case_id: str = "case") -> CachedCase:
    """Return a case of one slice per depth: each holds a few pixels of it (−1: no brain), and brain all over."""
    slices_ZCHW = np.ones((len(depths), 4, height, width), np.float16)
    depth_ZHW = np.zeros((len(depths), height, width), np.uint8)
    for z, depth in enumerate(depths):
        slices_ZCHW[z] *= z + 1 if depth >= 0 else 0
        depth_ZHW[z, 1, 2 : 3 + max(depth, 0)] = range(max(depth, 0) + 1)
    return CachedCase(case_id, slices_ZCHW, depth_ZHW)


# Split


@given(
    count=st.integers(2, 60),
    validation=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 1000),
)
def test_split_takes_every_case_once(count: int, validation: float, seed: int) -> None:
    cases = named(*(f"case_{i:03}" for i in range(count)))
    training, held_out = split_cases(cases, validation, seed)
    assert training
    assert held_out
    assert sorted(c.case_id for c in training + held_out) == [c.case_id for c in cases]
    assert abs(len(held_out) - validation * count) <= 1


def test_split_follows_from_seed_and_names_alone() -> None:
    cases = named(*"abcdefghij")
    one = split_cases(cases, 0.3, seed=1)
    assert split_cases(cases[::-1], 0.3, seed=1) == one
    assert [c.case_id for c in one[0]] == sorted(c.case_id for c in one[0])
    assert len({tuple(c.case_id for c in split_cases(cases, 0.3, seed)[1]) for seed in range(10)}) > 5


@pytest.mark.parametrize("names", ["", "a"])
def test_too_few_to_split(names: str) -> None:
    with pytest.raises(InputError, match=f"{len(names)} labelled case; expected at least 2"):
        split_cases(named(*names), 0.5, 0)


def test_a_name_twice_would_mix_up_patients() -> None:
    with pytest.raises(InputError, match="several cases named image; expected one name per patient"):
        split_cases(named("image", "b", "image"), 0.5, 0)


# Cache


def test_cache_holds_what_prepare_gives(tmp_path: Path, write_case: WriteCase) -> None:
    shapes = {"a": (12, 14, 10), "b": (17, 11, 9)}
    files = [find_case(write_case(tmp_path / name, shape=shape)) for name, shape in shapes.items()]
    reported: list[tuple[int, int]] = []
    cases = build_cache(files, tmp_path / "deep" / "cache", 4, BRATS, lambda *step: reported.append(step))
    assert reported == [(1, 2), (2, 2)]
    assert [case.case_id for case in cases] == ["a", "b"]
    for file, case in zip(files, cases, strict=True):
        stack = prepare(read_case(file).images_CXYZ, 4)
        np.testing.assert_array_equal(case.slices_ZCHW, stack.slices_ZCHW)
        assert case.slices_ZCHW.dtype == np.float16
        label_XYZ = read_label(file.labels[0]).data
        depth_of = np.array([0, 2, 1, 0, 3], np.uint8)  # BraTS: NCR 1, ED 2, ET 4
        np.testing.assert_array_equal(to_volume(np.asarray(case.depth_ZHW), stack), depth_of[label_XYZ])
        assert {0, 1, 2, 3} == set(np.unique(case.depth_ZHW).tolist())


def test_cache_stays_on_disk(tmp_path: Path, write_case: WriteCase) -> None:
    (case,) = build_cache([find_case(write_case(tmp_path / "a"))], tmp_path / "cache", 4, BRATS)
    for array in (case.slices_ZCHW, case.depth_ZHW):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_other_conventions_give_the_same_regions(tmp_path: Path, write_case: WriteCase) -> None:
    write_case(tmp_path / "a")
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: unknown label 4.*--labels brats2020"):
        build_cache([find_case(tmp_path / "a")], tmp_path / "cache", 4, CONVENTIONS["brats2023"])


def test_label_on_another_grid(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "a")
    write_case(tmp_path / "other" / "a", shape=(12, 14, 11), modalities=("seg",))
    (tmp_path / "other" / "a" / "a_seg.nii.gz").replace(folder / "a_seg.nii.gz")
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: shape \(12, 14, 11\); expected the grid of a_t1\.nii"):
        build_cache([find_case(folder)], tmp_path / "cache", 4, BRATS)


# Slices and batches


@pytest.mark.parametrize(
    ("region", "seen"),
    [
        (Region.WT, [0, 1, 1, 1, 1]),  # all with brain
        (Region.TC, [0, 0, 1, 1, 1]),  # those with whole tumour
        (Region.ET, [0, 0, 0, 1, 1]),  # those with tumour core
    ],
)
def test_each_network_sees_the_slices_of_its_parent(region: Region, seen: list[int]) -> None:
    seen_Z = cached([-1, 0, 1, 2, 3]).seen_by(region)
    assert seen_Z.dtype == np.bool_
    np.testing.assert_array_equal(seen_Z, np.array(seen, np.bool_))


def test_brain_in_one_modality_is_brain() -> None:
    case = cached([0, 0])
    case.slices_ZCHW[1] = 0
    case.slices_ZCHW[1, 3, 0, 0] = -1
    np.testing.assert_array_equal(case.seen_by(Region.WT), [True, True])


def test_training_rows() -> None:
    cases = [cached([-1, 2, 0]), cached([0, 0]), cached([3, 1])]
    assert training_rows(cases, Region.WT) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert training_rows(cases, Region.TC) == [(0, 1), (2, 0), (2, 1)]
    assert training_rows(cases, Region.ET) == [(0, 1), (2, 0)]


def test_no_slice_to_learn_from() -> None:
    with pytest.raises(InputError, match="no slice for ET in 2 cases"):
        training_rows([cached([1, 1]), cached([0])], Region.ET)


def test_frame_holds_every_case() -> None:
    assert frame_of([cached([0], 8, 16), cached([0], 12, 4), cached([0], 4, 8)]) == (12, 16)


def test_gather_centres_slices_and_labels_alike() -> None:
    cases = [cached([3, 0], 8, 8), cached([0, 1], 6, 4)]
    slices_NCHW, target_N1HW = gather(cases, [(1, 1), (0, 0), (1, 1)], Region.WT, (10, 12))
    assert (slices_NCHW.shape, target_N1HW.shape) == ((3, 4, 10, 12), (3, 1, 10, 12))
    assert slices_NCHW.dtype == target_N1HW.dtype
    expected_CHW = np.zeros((4, 10, 12), np.float32)
    expected_CHW[:, 2:8, 4:8] = 2
    np.testing.assert_array_equal(slices_NCHW[0], expected_CHW)
    np.testing.assert_array_equal(slices_NCHW[2], expected_CHW)
    inside_HW = np.zeros((10, 12), np.bool_)
    inside_HW[1:9, 2:10] = True
    np.testing.assert_array_equal(slices_NCHW[1] != 0, np.broadcast_to(inside_HW, (4, 10, 12)))
    np.testing.assert_array_equal(target_N1HW[0, 0], _pixels([(3, 7)]))
    np.testing.assert_array_equal(target_N1HW[1, 0], _pixels([(2, 5), (2, 6), (2, 7)]))


def _pixels(places: list[tuple[int, int]]) -> npt.NDArray[np.float32]:
    """Return a frame of zeros with ones at (row, column)."""
    frame_HW = np.zeros((10, 12), np.float32)
    frame_HW[tuple(zip(*places, strict=True))] = 1
    return frame_HW


@pytest.mark.parametrize(("region", "pixels"), [(Region.WT, 3), (Region.TC, 2), (Region.ET, 1)])
def test_targets_are_the_regions(region: Region, pixels: int) -> None:
    _, target_N1HW = gather([cached([3])], [(0, 0)], region, (8, 8))
    assert target_N1HW.sum() == pixels
    assert set(target_N1HW.unique().tolist()) == {0.0, 1.0}

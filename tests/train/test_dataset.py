"""Patients are split, never divided; each network gets its own slices, and batches hold them with their own labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from easy_cases import store_slices
from hypothesis import assume, given
from hypothesis import strategies as st

from lowmem_brats.data.case_list import LabelledCase
from lowmem_brats.data.labels import Region
from lowmem_brats.data.patients import patient_of
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.errors import InputError
from lowmem_brats.train.dataset import Split, frame_of, gather, row_weights, split_cases, targets_of, training_rows
from lowmem_brats.train.windows import centred

Cached = Callable[..., CachedCase]


def named(*names: str) -> list[LabelledCase]:
    """Return cases that are only names, each of the patient that it tells."""
    return [LabelledCase(name, Path(name), {}, patient=patient_of(name)) for name in names]


def parts_of(split: Split) -> list[list[str]]:
    return [[case.case_id for case in part] for part in (split.training, split.validation, split.test)]


def patients_of(names: list[str]) -> set[str]:
    return {patient_of(name) for name in names}


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    """Return a maker of cases of one slice per depth: each holds a few pixels of it (−1: no brain), else all brain."""
    made: list[CachedCase] = []

    def make(depths: list[int], height: int = 8, width: int = 8) -> CachedCase:
        slices_ZCHW = np.ones((len(depths), 4, height, width), np.float16)
        depth_ZHW = np.zeros((len(depths), height, width), np.uint8)
        for z, depth in enumerate(depths):
            slices_ZCHW[z] *= z + 1 if depth >= 0 else 0
            depth_ZHW[z, 1, 2 : 3 + max(depth, 0)] = range(max(depth, 0) + 1)
        name = f"case{len(made)}"
        made.append(store_slices(tmp_path / f"{name}.json", name, slices_ZCHW, depth_ZHW))
        return made[-1]

    return make


# Split


def cohort(scans: list[int]) -> list[str]:
    """Return names of cases: of two in three patients with so many time points, else of one scan each."""
    return [f"BraTS-GLI-{i:05}-{100 + t}" if i % 3 else f"P{i}-{t}" for i, n in enumerate(scans) for t in range(n)]


COHORTS = st.lists(st.integers(1, 3), min_size=2, max_size=40).map(cohort)


@given(
    names=COHORTS,
    validation=st.floats(0, 1, exclude_min=True, exclude_max=True),
    test=st.floats(0, 0.6),
    seed=st.integers(0, 1000),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_split(names: list[str], validation: float, test: float, seed: int, shuffle: Random) -> None:
    count = len(patients_of(names))
    assume(count - round(test * count) >= 2)
    parts = parts_of(split_cases(named(*names), validation, test, None, seed))
    assert sorted(name for part in parts for name in part) == sorted(names), "every case once"
    patients = [patients_of(part) for part in parts]
    assert sum(map(len, patients)) == count, "no patient divided"
    tested = round(test * count)
    validated = min(max(round(validation * count), 1), count - tested - 1)
    assert list(map(len, patients)) == [count - tested - validated, validated, tested]
    assert all(part == sorted(part) for part in parts)
    shuffle.shuffle(names)
    assert parts_of(split_cases(named(*names), validation, test, None, seed)) == parts


@given(names=COHORTS, folds=st.integers(2, 8), test=st.floats(0, 0.6), seed=st.integers(0, 1000))
def test_folds_partition_what_is_not_held_out(names: list[str], folds: int, test: float, seed: int) -> None:
    count = len(patients_of(names))
    assume(count - round(test * count) >= folds)
    tested = parts_of(split_cases(named(*names), 0.1, test, None, seed))[2]
    rest = sorted(set(names) - set(tested))
    validated = []
    for k in range(1, folds + 1):
        parts = parts_of(split_cases(named(*names), 0.1, test, (k, folds), seed))
        assert parts[2] == tested, "the same for every fold, and without folds"
        assert sorted(parts[0] + parts[1]) == rest
        assert not patients_of(parts[0]) & patients_of(parts[1])
        assert parts[0]
        validated.append(parts[1])
    assert sorted(name for part in validated for name in part) == rest, "each validated in one fold"
    sizes = [len(patients_of(part)) for part in validated]
    assert sum(sizes) == count - len(patients_of(tested))
    assert max(sizes) - min(sizes) <= 1


def test_a_declared_patient_is_not_divided() -> None:
    cases = [LabelledCase(name, Path(name), {}, patient=str(i // 3)) for i, name in enumerate("abcdefghijkl")]
    for seed in range(5):
        parts = parts_of(split_cases(cases, 0.3, 0.3, None, seed))
        assert [len(part) for part in parts] == [6, 3, 3]
        for patient in ("abc", "def", "ghi", "jkl"):
            assert any(set(patient) <= set(part) for part in parts)


def test_the_seed_decides() -> None:
    cases = named(*"abcdefghij")
    assert len({str(parts_of(split_cases(cases, 0.3, 0.2, None, seed))) for seed in range(10)}) == 10
    # default_rng(0).permutation(10) begins with 4, 6, 2
    expected = [["a", "b", "d", "f", "h", "i", "j"], ["c", "g"], ["e"]]
    assert parts_of(split_cases(cases, 0.2, 0.1, None, seed=0)) == expected, "a run can be repeated next year"


def test_without_validation_all_but_the_test_are_trained_on() -> None:
    assert parts_of(split_cases(named(*"abcd"), 0, 0, None, 0)) == [list("abcd"), [], []]
    assert list(map(len, parts_of(split_cases(named(*"abcd"), 0, 0.25, None, 0)))) == [3, 0, 1]
    with pytest.raises(InputError, match="0 labelled patients; expected at least 1"):
        split_cases([], 0, 0, None, 0)


@pytest.mark.parametrize(
    ("names", "test", "fold", "message"),
    [
        ([], 0, None, "0 labelled patients; expected at least 2"),
        (["a"], 0, None, "1 labelled patient; expected at least 2"),
        (
            ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101"],
            0,
            None,
            "1 labelled patient, in 2 cases; .* column `patient`",
        ),
        (["a", "b"], 0.5, None, "1 labelled patient besides 1 held out for the test; expected at least 2"),
        (["a", "b", "c"], 0, (1, 4), "3 labelled patients; expected at least 4"),
        (["a", "b", "c", "d"], 0.3, (2, 4), "3 labelled patients besides 1 held out for the test; expected at least 4"),
    ],
)
def test_too_few_to_split(names: list[str], test: float, fold: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_cases(named(*names), 0.5, test, fold, 0)


# Slices and batches


def test_training_rows(cached: Cached) -> None:
    cases = [cached([-1, 2, 0]), cached([0, 0]), cached([3, 1])]
    for region, rows in (
        (Region.WT, [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]),
        (Region.TC, [(0, 1), (2, 0), (2, 1)]),
        (Region.ET, [(0, 1), (2, 0)]),
    ):
        for views in (1, 3):  # these cases are too flat to be seen from other sides
            assert training_rows(cases, region, views).tolist() == [[i, 0, z] for i, z in rows]


def test_rows_of_three_views(cached: Cached) -> None:
    case = cached([0, 3, -1, 0, 0])  # 8 × 8: row 1 holds depths 0 to 3 in columns 2 to 5 of slice 1
    assert len(case.brain_VN) == 3
    rows = training_rows([case], Region.WT, 3).tolist()
    assert rows == [[0, 0, z] for z in (0, 1, 3, 4)] + [[0, view, n] for view in (1, 2) for n in range(8)]
    assert training_rows([case], Region.WT, 2).tolist() == rows[:12]
    assert training_rows([case], Region.TC, 3).tolist() == [[0, 0, 1], [0, 1, 1]] + [[0, 2, x] for x in (3, 4, 5)]
    assert training_rows([case], Region.ET, 3).tolist() == [[0, 0, 1], [0, 1, 1]] + [[0, 2, x] for x in (4, 5)]


def test_row_weights(cached: Cached) -> None:
    cases = [cached([0]), cached([0, 0, 2, 3])]  # 1 and 4 slices: 1 and 2 parts
    rows = training_rows(cases, Region.WT, 1)
    np.testing.assert_allclose(row_weights(cases, rows), np.array([9, 2**0.5, 2**0.5, 3 * 2**0.5, 4 * 2**0.5]) / 9)


def test_no_slice_to_learn_from(cached: Cached) -> None:
    with pytest.raises(InputError, match="no slice for ET in 2 cases"):
        training_rows([cached([1, 1]), cached([0])], Region.ET, 3)


def test_frame_holds_every_case(cached: Cached) -> None:
    assert frame_of([cached([0], 8, 16), cached([0], 12, 4), cached([0], 4, 8)], 3) == (12, 16)
    deep = cached([0] * 20, 8, 16)
    assert [frame_of([deep], views) for views in (1, 2, 3)] == [(8, 16), (20, 16), (20, 20)]


def gather_centred(
    cases: list[CachedCase], rows: npt.NDArray[np.int64], size_HW: tuple[int, int], context: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    return gather(cases, rows, centred(cases, rows, size_HW), size_HW, context)


def rows(*rows: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Return (case, view, slice)s as an array."""
    return np.array(rows)


def test_gather_sees_from_each_side(cached: Cached) -> None:
    case = cached([0, 3, 1, 0])
    slices_NCHW, depth_N1HW = gather_centred([case], rows((0, 0, 1), (0, 1, 1), (0, 2, 3)), (8, 8))
    np.testing.assert_array_equal(slices_NCHW[0], case.slices_ZCHW[1])
    np.testing.assert_array_equal(slices_NCHW[1][:, 2:6], case.slices_ZCHW[:, :, 1].transpose(1, 0, 2))  # [C, Z, W]
    np.testing.assert_array_equal(
        slices_NCHW[2][:, :, 2:6], case.slices_ZCHW[:, :, :, 3].transpose(1, 2, 0)
    )  # [C, H, Z]
    assert np.argwhere(depth_N1HW[0, 0].numpy()).tolist() == [[1, 3], [1, 4], [1, 5]]
    assert np.argwhere(depth_N1HW[1, 0].numpy()).tolist() == [[3, 3], [3, 4], [3, 5], [4, 3]]  # rows are Z, from 2
    assert np.argwhere(depth_N1HW[2, 0].numpy()).tolist() == [[1, 3], [1, 4]]  # columns are Z, from 2


def test_gather_centres_slices_and_labels_alike(cached: Cached) -> None:
    cases = [cached([3, 0], 8, 8), cached([0, 1], 6, 4)]
    slices_NCHW, depth_N1HW = gather_centred(cases, rows((1, 0, 1), (0, 0, 0), (1, 0, 1)), (10, 12))
    assert (slices_NCHW.shape, depth_N1HW.shape) == ((3, 4, 10, 12), (3, 1, 10, 12))
    assert slices_NCHW.dtype == depth_N1HW.dtype
    expected_CHW = np.zeros((4, 10, 12), np.float32)
    expected_CHW[:, 2:8, 4:8] = 2
    np.testing.assert_array_equal(slices_NCHW[0], expected_CHW)
    np.testing.assert_array_equal(slices_NCHW[2], expected_CHW)
    inside_HW = np.zeros((10, 12), np.bool_)
    inside_HW[1:9, 2:10] = True
    np.testing.assert_array_equal(slices_NCHW[1] != 0, np.broadcast_to(inside_HW, (4, 10, 12)))
    np.testing.assert_array_equal(depth_N1HW[0, 0], _pixels({(3, 7): 1}))
    np.testing.assert_array_equal(depth_N1HW[1, 0], _pixels({(2, 5): 1, (2, 6): 2, (2, 7): 3}))


def _pixels(places: dict[tuple[int, int], int]) -> npt.NDArray[np.float32]:
    """Return a frame of zeros but for the values at (row, column)."""
    frame_HW = np.zeros((10, 12), np.float32)
    frame_HW[tuple(zip(*places, strict=True))] = list(places.values())
    return frame_HW


def test_gather_with_neighbours(cached: Cached) -> None:
    """Slices hold their number from 1; two slices are too few to tell of each other."""
    cases = [cached([0, 3, 1, 0]), cached([3, 0], 8, 8)]
    assert [case.flat for case in cases] == [False, True]
    slices_NCHW, depth_N1HW = gather_centred(cases, rows((0, 0, 1), (1, 0, 1)), (8, 8), context=1)
    assert slices_NCHW[0, ::4, 0, 0].tolist() == [2, 1, 3]
    assert slices_NCHW[1, ::4, 0, 0].tolist() == [2, 0, 0]
    assert depth_N1HW.shape == (2, 1, 8, 8)
    coronal_1CHW, _ = gather_centred(cases, rows((0, 1, 7)), (8, 8), context=1)
    assert coronal_1CHW[0, ::4, 2:6, 0].tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0]]


def test_targets_are_the_regions_asked_for(cached: Cached) -> None:
    cases = [cached([3, 1])]
    _, depth_N1HW = gather_centred(cases, rows((0, 0, 0), (0, 0, 1)), (8, 8))
    target_NKHW = targets_of(depth_N1HW, list(Region))
    assert target_NKHW.shape == (2, 3, 8, 8)
    assert target_NKHW.sum(dim=(2, 3)).tolist() == [[3, 2, 1], [1, 0, 0]]
    assert set(target_NKHW.unique().tolist()) == {0.0, 1.0}
    target_NKHW = targets_of(depth_N1HW[:1], [Region.ET, Region.WT])
    assert target_NKHW.sum(dim=(2, 3)).tolist() == [[1, 3]]
    assert target_NKHW[0, 0, 1, 5] == 1

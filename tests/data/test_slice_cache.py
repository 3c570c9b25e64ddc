"""The cache holds what prediction prepares, is found again by checksum, and survives interruption and damage."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
from easy_cases import store_slices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_brats.data import slice_cache
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import CaseFiles, find_case
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.data.nifti import read_label, write_label_map
from lowmem_brats.data.slice_cache import CachedCase, build_cache
from lowmem_brats.data.slices import is_flat, prepare, to_volume
from lowmem_brats.errors import InputError

BRATS = CONVENTIONS["brats2020"]
WriteCase = Callable[..., Path]


@pytest.fixture
def cases(tmp_path: Path, write_case: WriteCase) -> list[CaseFiles]:
    """Three tiny cases."""
    return [find_case(write_case(tmp_path / name)) for name in ("a", "b", "a-2")]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases whose images are read, in order."""
    seen: list[str] = []
    read = slice_cache.read_case
    monkeypatch.setattr(slice_cache, "read_case", lambda files: seen.append(files.case_id) or read(files))
    return seen


def build(cases: list[CaseFiles], folder: Path, **options: object) -> tuple[list[CachedCase], list[str]]:
    return build_cache(cases, folder, 4, BRATS, **options)  # type: ignore[arg-type]


def entries(folder: Path) -> dict[str, bytes]:
    """All files of a cache."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What it holds


def test_cache_holds_what_prepare_gives(tmp_path: Path, write_case: WriteCase) -> None:
    shapes = {"a": (12, 14, 10), "b": (17, 11, 9)}
    files = [find_case(write_case(tmp_path / name, shape=shape)) for name, shape in shapes.items()]
    reported: list[tuple[int, int]] = []
    cached, notes = build(files, tmp_path / "deep" / "cache", on_progress=lambda *step: reported.append(step))
    assert reported == [(1, 2), (2, 2)]
    assert notes == []
    assert [case.case_id for case in cached] == ["a", "b"]
    for file, case in zip(files, cached, strict=True):
        stack = prepare(read_case(file).images_CXYZ, 4)
        np.testing.assert_array_equal(case.slices_ZCHW, stack.slices_ZCHW)
        assert case.slices_ZCHW.dtype == np.float16
        assert case.shape_ZCHW == stack.slices_ZCHW.shape
        label_XYZ = read_label(file.labels[0]).data
        depth_of = np.array([0, 2, 1, 0, 3], np.uint8)  # BraTS: NCR 1, ED 2, ET 4
        np.testing.assert_array_equal(to_volume(np.asarray(case.depth_ZHW), stack), depth_of[label_XYZ])
        assert {0, 1, 2, 3} == set(np.unique(case.depth_ZHW).tolist())
        assert case.warnings == tuple(read_case(file).warnings)


def test_a_training_sees_a_case_from_the_sides_from_which_it_is_segmented(
    tmp_path: Path, write_case: WriteCase
) -> None:
    """Interpolated sagittal slices would make this case look flat; whether it is was judged before."""
    files = find_case(write_case(tmp_path / "a", shape=(12, 28, 14), affine=np.diag([-4.0, -1.0, 1.0, 1.0])))
    case = read_case(files)
    stack = prepare(case.images_CXYZ, 4, case.spacing_mm)
    assert (stack.flat, is_flat(stack.brain_ZHW)) == (False, True)
    (cached,), _ = build([files], tmp_path / "cache")
    assert not cached.flat
    assert [cached.usable(views) for views in (1, 2, 3)] == [1, 2, 3]


def test_arrays_stay_on_disk(tmp_path: Path, cases: list[CaseFiles]) -> None:
    (case, *_), _ = build(cases, tmp_path / "cache")
    for array in (case.slices_ZCHW, case.depth_ZHW):
        assert isinstance(array.base.base.obj, mmap.mmap)
        assert not array.flags.writeable
    assert case.slices_ZCHW is not case.slices_ZCHW, "opened anew, so nothing keeps the pages"


def test_nothing_keeps_the_pages(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's maps")
    case = cached(tmp_path, [1, 2])
    slices_ZCHW, depth_ZHW = case.slices_ZCHW, case.depth_ZHW
    assert maps.read_text().count(str(tmp_path)) == 2
    del slices_ZCHW, depth_ZHW
    assert str(tmp_path) not in maps.read_text()


def test_a_slice_is_one_piece_of_the_file(tmp_path: Path) -> None:
    depth_ZHW = np.arange(24, dtype=np.uint8).reshape(4, 3, 2).T
    case = store_slices(tmp_path / "x.json", "x", np.ones((2, 4, 3, 4), np.float16), depth_ZHW)
    assert case.depth_ZHW.flags.c_contiguous
    np.testing.assert_array_equal(case.depth_ZHW, depth_ZHW)


def cached(folder: Path, depths: list[int]) -> CachedCase:
    """A case of one slice per depth (−1: no brain)."""
    slices_ZCHW = np.ones((len(depths), 4, 8, 8), np.float16)
    depth_ZHW = np.zeros((len(depths), 8, 8), np.uint8)
    for z, depth in enumerate(depths):
        slices_ZCHW[z] *= depth >= 0
        depth_ZHW[z, 1, 2] = max(depth, 0)
    return store_slices(folder / "case.json", "case", slices_ZCHW, depth_ZHW)


@pytest.mark.parametrize(
    ("region", "seen"),
    [
        (Region.WT, [0, 1, 1, 1, 1]),  # all with brain
        (Region.TC, [0, 0, 1, 1, 1]),  # those with whole tumour
        (Region.ET, [0, 0, 0, 1, 1]),  # those with tumour core
    ],
)
def test_each_network_sees_the_slices_of_its_parent(tmp_path: Path, region: Region, seen: list[int]) -> None:
    case = cached(tmp_path, [-1, 0, 1, 2, 3])
    for path in tmp_path.glob("*.npy"):
        path.unlink()  # the arrays are not needed to answer
    seen_Z = case.active_VN(region, 1)[0]
    assert seen_Z.dtype == np.bool_
    np.testing.assert_array_equal(seen_Z, np.array(seen, np.bool_))


def test_brain_in_one_modality_is_brain(tmp_path: Path) -> None:
    slices_ZCHW = np.zeros((2, 4, 8, 8), np.float16)
    slices_ZCHW[1, 3, 0, 0] = -1
    case = store_slices(tmp_path / "x.json", "x", slices_ZCHW, np.zeros((2, 8, 8), np.uint8))
    np.testing.assert_array_equal(case.active_VN(Region.WT, 1)[0], [False, True])


# Found again


def test_an_entry_is_used_again(tmp_path: Path, cases: list[CaseFiles], reads: list[str]) -> None:
    first, _ = build(cases, tmp_path / "cache")
    assert reads == ["a", "b", "a-2"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    (tmp_path / "moved").mkdir()
    for case in cases:
        case.folder.rename(tmp_path / "moved" / case.case_id)  # the content counts, not the path
    again, notes = build([find_case(tmp_path / "moved" / name) for name in ("a-2", "b", "a")], tmp_path / "cache")
    assert reads == ["a", "b", "a-2"], "nothing is read twice"
    assert again == first[::-1]
    assert notes == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


def test_warnings_are_found_again(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "a", modalities=("t1", "t2", "flair", "seg"))
    files = [find_case(folder, allow_missing=["t1ce"])]
    for _ in range(2):
        (case,), _ = build(files, tmp_path / "cache")
        assert case.warnings[0].startswith("t1ce is missing")


@pytest.mark.parametrize("part", ["_t2.nii.gz", "_seg.nii.gz"])
def test_changed_files_are_read_again(
    tmp_path: Path, cases: list[CaseFiles], reads: list[str], write_case: WriteCase, part: str
) -> None:
    before, _ = build(cases, tmp_path / "cache")
    write_case(tmp_path / "other" / "a", shape=(12, 14, 10))
    path = tmp_path / "a" / f"a{part}"
    path.write_bytes(path.read_bytes() + b"\0")  # another checksum; gzip takes trailing zeros
    after, _ = build(cases, tmp_path / "cache")
    assert reads == ["a", "b", "a-2", "a"]
    assert after[1:] == before[1:]
    assert len(list((tmp_path / "cache").iterdir())) == 9, "the old entry is gone, and that of a-2 is not"
    assert not before[0].path.exists()


def test_other_preparations_have_entries_of_their_own(
    tmp_path: Path, cases: list[CaseFiles], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cases[:1], tmp_path / "cache")
    build_cache(cases[:1], tmp_path / "cache", 8, BRATS)
    build_cache(cases[:1], tmp_path / "cache", 8, replace(BRATS, name="mine"))
    assert reads == ["a"] * 3
    build(cases[:1], tmp_path / "cache")
    for constant in ("PREPROCESSING", "FORMAT"):
        monkeypatch.setattr(slice_cache, constant, "another")
        assert build(cases[:1], tmp_path / "cache")[1] == []
    assert reads == ["a"] * 5, "the first one was found again, the two of other constants were not"


def test_the_checksum_of_a_case_is_that_of_its_files(tmp_path: Path, cases: list[CaseFiles]) -> None:
    (before, other, _), _ = build(cases, tmp_path / "cache")
    assert len(before.checksum) == 16
    assert before.checksum == other.checksum, "their files are the same"
    path = cases[0].labels[0]
    path.write_bytes(path.read_bytes() + b"\0")
    (after, *_), _ = build(cases, tmp_path / "cache")
    assert after.checksum != before.checksum


def test_in_a_shared_folder_another_trainings_entries_stay(tmp_path: Path, cases: list[CaseFiles]) -> None:
    (under_way,), _ = build(cases[:1], tmp_path / "cache", shared=True)
    path = cases[0].labels[0]
    path.write_bytes(path.read_bytes() + b"\0")
    (other,), _ = build(cases[:1], tmp_path / "cache", shared=True)
    assert other.path != under_way.path
    assert under_way.slices_ZCHW.any()
    path.write_bytes(path.read_bytes() + b"\0")
    build(cases[:1], tmp_path / "cache")
    with pytest.raises(InputError, match="cannot be opened"):
        _ = under_way.slices_ZCHW


def test_two_trainings_build_one_cache_at_a_time(tmp_path: Path, write_case: WriteCase) -> None:
    cases = [find_case(write_case(tmp_path / f"case{n}", shape=(24, 28, 20))) for n in range(8)]
    build(cases, tmp_path / "alone")
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        orders, together = (cases, cases, cases[::-1]), {"shared": True}
        started = [pool.submit(build_cache, order, tmp_path / "cache", 4, BRATS, **together) for order in orders]
        found = [each.result() for each in started]
    assert [notes for _, notes in found] == [[], [], []]
    assert found[0][0] == found[1][0] == found[2][0][::-1]
    assert entries(tmp_path / "cache") == entries(tmp_path / "alone"), "nothing torn, nothing half-written"


def test_what_another_training_has_stored_meanwhile_is_used(
    tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a file cannot be replaced while another process reads it."""
    store = slice_cache.store_case

    def store_twice(path: Path, *arguments: object) -> CachedCase:
        store(path, *arguments)  # type: ignore[arg-type]
        raise InputError(path, "cannot be written (Access is denied)", "a complete write", "")

    monkeypatch.setattr(slice_cache, "store_case", store_twice)
    found, notes = build(cases[:1], tmp_path / "cache")
    assert (found[0].case_id, notes) == ("a", [])


def test_networks_of_several_strides_share_a_folder(tmp_path: Path, cases: list[CaseFiles], reads: list[str]) -> None:
    """A training under way keeps its slices when one of another network begins."""
    (under_way, *_), _ = build_cache(cases, tmp_path / "cache", 4, BRATS)
    (other, *_), _ = build_cache(cases, tmp_path / "cache", 8, BRATS)
    assert under_way.slices_ZCHW.shape[2] % 4 == other.slices_ZCHW.shape[2] % 8 == 0
    build_cache(cases, tmp_path / "cache", 4, BRATS)
    assert len(reads) == 2 * len(cases), "both are found again"


def test_foreign_files_stay(tmp_path: Path, cases: list[CaseFiles]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    zeros = "0" * 16
    names = ("a-notes.json", f"a-s4-{zeros}.txt", "b.json", "a-t1n.nii.gz", "a-x.depth.npy", f"xa-s4-{zeros}.json")
    for name in names:
        (folder / name).write_text("mine")
    build(cases, folder)
    assert all((folder / name).read_text() == "mine" for name in names)


def test_inputs_in_the_cache_folder_stay(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "P1", "brats2023")
    before = entries(folder)
    build([find_case(folder)], folder)
    after = entries(folder)
    assert {name: after.get(name) for name in before} == before
    assert len(after) == len(before) + 3


# Interrupted, damaged, full


@pytest.mark.parametrize("write", range(1, 7))
def test_an_interrupted_build_goes_on(
    tmp_path: Path, cases: list[CaseFiles], reads: list[str], write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, moved = os.replace, []

    def interrupt(source: Path, target: Path) -> None:
        if len(moved) == write - 1:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(cases[:2], tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == write - 1, "no partial file"
    reads.clear()
    found, notes = build(cases[:2], tmp_path / "cache")
    assert reads == (["a", "b"] if write <= 3 else ["b"])
    assert [case.case_id for case in found] == ["a", "b"]
    assert notes == []
    build(cases[:2], tmp_path / "fresh")
    assert entries(tmp_path / "cache") == entries(tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["json", "slices.npy", "depth.npy"])
@pytest.mark.parametrize("damage", ["truncated", "replaced", "gone", "empty", "zeros"])
def test_a_damaged_entry_is_built_anew(
    tmp_path: Path, cases: list[CaseFiles], reads: list[str], kind: str, damage: str
) -> None:
    (case, *_), _ = build(cases[:1], tmp_path / "cache")
    before = entries(tmp_path / "cache")
    path = case.path.with_suffix(f".{kind}")
    size = path.stat().st_size
    if damage in ("empty", "zeros"):
        path.write_bytes(bytes(size if damage == "zeros" else 0))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "replaced" and kind != "json":
        like = np.load(path)
        np.save(path, np.zeros(like.shape, f"i{like.itemsize}"))
        assert path.stat().st_size == size, "the header alone tells"
    elif damage == "replaced":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"depth_Z": [0]}))
    else:
        path.unlink()
    _, notes = build(cases[:1], tmp_path / "cache")
    assert reads == ["a", "a"]
    assert notes == ([] if (kind, damage) == ("json", "gone") else ["a: its cache was damaged: built anew"])
    assert entries(tmp_path / "cache") == before


@pytest.mark.parametrize(
    "text", ["[]", "7", '"facts"', '{"facts": {}}', '{"facts": 7}', "[" * 100_000, '{"facts": {"arrays": []}}', "\xff"]
)
def test_what_is_no_entry_is_built_anew(tmp_path: Path, cases: list[CaseFiles], text: str) -> None:
    (case,), _ = build(cases[:1], tmp_path / "cache")
    case.path.write_text(text, encoding="latin-1")
    assert build(cases[:1], tmp_path / "cache") == ([case], ["a: its cache was damaged: built anew"])
    assert build(cases[:1], tmp_path / "cache") == ([case], [])


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_wrong_fact_is_believed(tmp_path: Path, changes: list[tuple[float, int]]) -> None:
    case = cached(tmp_path, [-1, 0, 3])
    content = bytearray(case.path.read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    case.path.write_bytes(content)
    assert slice_cache._find(case.path, "case") in (None, case)


@pytest.mark.parametrize("kind", ["slices", "depth"])
@pytest.mark.parametrize("size", [None, 0, 100, 150])
def test_an_array_that_goes_away_meanwhile(tmp_path: Path, kind: str, size: int | None) -> None:
    case = cached(tmp_path, [1])
    path = tmp_path / f"case.{kind}.npy"
    content = path.read_bytes()
    path.unlink() if size is None else path.write_bytes(content[:size])
    with pytest.raises(InputError, match=rf"case\.{kind}\.npy: cannot be opened .*Start again"):
        _ = case.slices_ZCHW if kind == "slices" else case.depth_ZHW


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("owner", "write"), [(np, "save"), (Path, "write_text")])
def test_a_full_disk_is_an_error_and_keeps_the_other_entries(
    tmp_path: Path,
    cases: list[CaseFiles],
    reads: list[str],
    owner: object,
    write: str,
    strict: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(cases[:1], tmp_path / "cache")
    before = entries(tmp_path / "cache")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, write, full)
        with pytest.raises(InputError, match=r"b-.*: cannot be written \(No space left .*free disk space"):
            build(cases, tmp_path / "cache", strict=strict)
    after = entries(tmp_path / "cache")
    assert {name: after.get(name) for name in before} == before
    assert not any(name.startswith(".partial") for name in after)
    build(cases, tmp_path / "cache")
    assert reads == ["a", "b", "b", "a-2"]


def test_a_changed_case_keeps_its_old_entry_until_the_new_one_is_whole(
    tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cases[:1], tmp_path / "cache")
    before = entries(tmp_path / "cache")
    monkeypatch.setattr(np, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        build_cache(cases[:1], tmp_path / "cache", 8, BRATS)
    assert entries(tmp_path / "cache") == before


def test_a_cache_that_the_disk_cannot_hold_is_refused_before_it_is_written(
    tmp_path: Path, write_case: WriteCase, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first case's slices tell what the others need, by their voxels; those that are there need nothing."""
    large, small = (48, 56, 40), (24, 28, 20)
    cases = [find_case(write_case(tmp_path / f"c{n}", shape=shape)) for n, shape in enumerate((large, *[small] * 16))]
    build(cases[-8:], tmp_path / "cache")
    (case,), _ = build(cases[:1], tmp_path / "other")
    needed = 2 * (case.slices_ZCHW.nbytes + case.depth_ZHW.nbytes)  # eight small ones are as much as the large one
    before, free = entries(tmp_path / "cache"), needed - 1
    monkeypatch.setattr(slice_cache.shutil, "disk_usage", lambda folder: Mock(free=free))
    reads.clear()
    with pytest.raises(
        InputError, match=r"cache: \d MiB free; expected about \d MiB for the slices of 9 cases.*--cache"
    ):
        build(cases, tmp_path / "cache")
    assert reads == ["c0"]
    assert entries(tmp_path / "cache") == before
    free = needed
    assert len(build(cases, tmp_path / "cache")[0]) == len(cases)
    free = 0
    assert len(build(cases, tmp_path / "cache")[0]) == len(cases), "nothing is to be written"


def test_a_folder_that_cannot_be_made(tmp_path: Path, cases: list[CaseFiles]) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(InputError, match="cannot be made"):
            build(cases, folder)


# Cases that cannot be used


def test_a_case_that_cannot_be_read_is_left_out(tmp_path: Path, cases: list[CaseFiles]) -> None:
    bad = tmp_path / "b" / "b_t1ce.nii.gz"
    bad.write_bytes(bad.read_bytes()[:40])
    reported: list[tuple[int, int]] = []
    found, (note,) = build(cases, tmp_path / "cache", on_progress=lambda *step: reported.append(step))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    assert not list((tmp_path / "cache").glob("b-*"))
    assert [case.case_id for case in found] == ["a", "a-2"]
    assert note.startswith("b: left out: ")
    assert "b_t1ce.nii.gz" in note
    with pytest.raises(InputError, match=r"b_t1ce\.nii\.gz"):
        build(cases, tmp_path / "cache", strict=True)
    bad.unlink()
    _, (note,) = build(cases, tmp_path / "cache")
    assert "b_t1ce.nii.gz" in note


def test_an_uncorrected_result_is_no_label(tmp_path: Path, cases: list[CaseFiles]) -> None:
    label_path = cases[0].labels[0]
    label = read_label(label_path)
    write_label_map(label.data, label, label_path)
    found, (note,) = build(cases, tmp_path / "cache")
    assert [case.case_id for case in found] == ["b", "a-2"]
    assert "a result of this program that nobody has corrected" in note
    image = nibabel.load(label_path)
    corrected = np.asarray(image.dataobj).copy()
    corrected[0, 0, 0] = 2
    nibabel.save(nibabel.Nifti1Image(corrected, None, image.header), label_path)
    assert [case.case_id for case in build(cases, tmp_path / "cache")[0]] == ["a", "b", "a-2"]


def test_a_label_map_that_may_be_a_mask_is_told(tmp_path: Path, cases: list[CaseFiles]) -> None:
    label_path = cases[0].labels[0]
    image = nibabel.load(label_path)
    mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, None, image.header), label_path)
    (first, *others), notes = build(cases, tmp_path / "cache")
    assert notes == []
    (warning,) = first.warnings
    assert warning.startswith(f"{label_path.name}: its only label is 1, necrotic core")
    assert [case.warnings for case in others] == [(), ()]


def test_a_label_of_another_convention(tmp_path: Path, cases: list[CaseFiles]) -> None:
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: unknown label 4.*--labels brats2020"):
        build_cache(cases, tmp_path / "cache", 4, CONVENTIONS["brats2023"], strict=True)


def test_a_label_on_another_grid(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "a")
    write_case(tmp_path / "other" / "a", shape=(12, 14, 11), modalities=("seg",))
    (tmp_path / "other" / "a" / "a_seg.nii.gz").replace(folder / "a_seg.nii.gz")
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: shape \(12, 14, 11\); expected the grid of a_t1\.nii"):
        build([find_case(folder)], tmp_path / "cache", strict=True)

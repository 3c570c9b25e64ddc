"""Every kind of bad file is refused with an InputError that names it; damaged bytes never become a result."""

from __future__ import annotations

import errno
import gzip
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from conftest import LPS_AFFINE, SHAPE_XYZ, SaveNifti, WriteCase
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import CaseFiles, find_case
from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.nifti import read_label, read_volume, write_label_map
from lowmem_brats.errors import InputError

DATA_XYZ = np.random.default_rng(0).integers(0, 900, SHAPE_XYZ).astype(np.int16)
HEADER_BYTES = 352
Edits = list[tuple[int, int]]


@pytest.fixture
def good(tmp_path: Path, save_nifti: SaveNifti) -> Path:
    return save_nifti(tmp_path / "good.nii", DATA_XYZ)


@pytest.fixture
def reference(good: Path) -> Volume:
    return read_volume(good)


def refused(path: Path, match: str, read: Callable[[Path], Any] = read_volume) -> InputError:
    """The error of reading `path`; it must name the path and say what to do."""
    with pytest.raises(InputError, match=match) as error:
        read(path)
    assert error.value.where == str(path)
    assert error.value.advice.endswith(".")
    return error.value


# --- damaged files ---


def test_a_truncated_gz_is_refused_wherever_it_ends(tmp_path: Path, good: Path) -> None:
    content, path = gzip.compress(good.read_bytes(), 1), tmp_path / "cut.nii.gz"
    for length in (*range(0, len(content), 53), *range(len(content) - 12, len(content))):
        path.write_bytes(content[:length])
        refused(path, "truncated or damaged|not a NIfTI file")


def test_a_truncated_nii_is_refused_wherever_it_ends(tmp_path: Path, good: Path) -> None:
    content, path = good.read_bytes(), tmp_path / "cut.nii"
    for length in (*range(0, HEADER_BYTES, 11), *range(HEADER_BYTES, len(content), 97), len(content) - 1):
        path.write_bytes(content[:length])
        refused(path, "truncated or damaged|not a NIfTI file")


def edit(content: bytes, edits: Edits) -> bytes:
    """Overwrite bytes; positions beyond the end wrap around."""
    edited = bytearray(content)
    for position, value in edits:
        edited[position % len(edited)] = value
    return bytes(edited)


def edits(last: int) -> st.SearchStrategy[Edits]:
    values = st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))
    return st.lists(st.tuples(st.integers(0, last), values), min_size=1, max_size=8)


@pytest.fixture(scope="session")
def fuzzed_folder(tmp_path_factory: pytest.TempPathFactory, save_nifti: SaveNifti) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    save_nifti(folder / "good.nii", DATA_XYZ)
    return folder


@settings(max_examples=150)
@given(edits(HEADER_BYTES - 1), st.booleans(), st.one_of(st.none(), st.integers(0, 4000)))
def test_a_damaged_header_is_refused_or_harmless(
    fuzzed_folder: Path, edits: Edits, compressed: bool, length: int | None
) -> None:
    content = edit((fuzzed_folder / "good.nii").read_bytes(), edits)[:length]
    path = fuzzed_folder / ("header.nii.gz" if compressed else "header.nii")
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    files = CaseFiles("case", fuzzed_folder, {"t1": path, "t2": fuzzed_folder / "good.nii"})
    with suppress(InputError):  # any other exception, and any warning, fails the test
        read_label(path)
    with suppress(InputError):
        read_case(files)
    try:
        volume = read_volume(path)
    except InputError:
        return
    # What can be read can be written back, into the same place.
    write_label_map(np.ones(volume.data.shape, np.uint8), volume, fuzzed_folder / "out.nii")
    written = read_volume(fuzzed_folder / "out.nii")
    assert written.data.shape == volume.data.shape
    np.testing.assert_allclose(written.affine, volume.affine, rtol=1e-5, atol=1e-6 * np.abs(volume.affine).max())


@settings(max_examples=60)
@given(st.integers(10, 10**6), st.integers(0, 7), st.sampled_from([0, 1, 6]))
def test_a_single_wrong_bit_in_a_gz_never_changes_voxels(
    fuzzed_folder: Path, position: int, bit: int, level: int
) -> None:
    content = bytearray(gzip.compress((fuzzed_folder / "good.nii").read_bytes(), level))
    content[10 + position % (len(content) - 10)] ^= 1 << bit  # the ten bytes before hold name, time and the like
    path = fuzzed_folder / "bit.nii.gz"
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except InputError:
        return
    np.testing.assert_array_equal(volume.data, DATA_XYZ)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dim", [(3, 32767, 32767, 32767), (3, 12, 14, 32767), (3, -300, -300, 1200), (3, 12, 14, -10)])
def test_a_header_with_absurd_dimensions_takes_no_memory(
    tmp_path: Path, good: Path, dim: tuple[int, ...], suffix: str
) -> None:
    content = bytearray(good.read_bytes())
    struct.pack_into("<4h", content, 40, *dim)
    path = tmp_path / f"absurd{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    tracemalloc.start()
    try:
        refused(path, "3-D array of shape .*expected a 3-D volume" if min(dim) < 0 else "truncated or damaged")
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("depth", "taken"), [(256, True), (257, False)])
def test_more_voxels_than_anyone_needs_take_no_memory(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, depth: int, taken: bool
) -> None:
    content = bytearray(good.read_bytes()[:HEADER_BYTES])
    struct.pack_into("<4h", content, 40, 3, 512, 512, depth)
    path = tmp_path / "large.nii"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(HEADER_BYTES + 2 * 512 * 512 * depth)

    def stop(*_: object) -> None:
        raise RuntimeError("read")

    monkeypatch.setattr("lowmem_brats.data.nifti._read_voxels", stop)
    if taken:
        with pytest.raises(RuntimeError, match="read"):
            read_volume(path)
    else:
        refused(path, "67371008 voxels; expected at most 67108864")


def test_a_small_file_of_very_many_voxels_takes_no_memory(tmp_path: Path, good: Path) -> None:
    content = bytearray(good.read_bytes()[:HEADER_BYTES])
    struct.pack_into("<4h", content, 40, 3, 512, 512, 257)
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(content)
        for _ in range(257):
            file.write(bytes(2 * 512 * 512))
    tracemalloc.start()
    try:
        refused(path, "67371008 voxels; expected at most 67108864")
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


def test_more_volumes_than_anyone_needs_take_no_memory(tmp_path: Path, good: Path) -> None:
    content = bytearray(good.read_bytes()[:HEADER_BYTES])
    struct.pack_into("<5h", content, 40, 4, 240, 240, 155, 31)
    path = tmp_path / "long.nii"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(HEADER_BYTES + 2 * 240 * 240 * 155 * 31)
    tracemalloc.start()
    try:
        message = "276768000 voxels; expected at most 268435456"
        refused(path, message, lambda path: read_case(find_case(path)))
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("more", "fits"), [(2**20, True), (2**20 + 1, False)])
def test_bytes_behind_the_last_voxel(tmp_path: Path, good: Path, suffix: str, more: int, fits: bool) -> None:
    path, content = tmp_path / f"long{suffix}", good.read_bytes() + bytes(more)
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    if fits:
        np.testing.assert_array_equal(read_volume(path).data, DATA_XYZ)
    else:
        refused(path, "more than 1048576 bytes after the last voxel; expected 1680 voxels, as the header says")


def test_bytes_behind_the_last_voxel_are_not_all_read(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(good.read_bytes() + bytes(2**26)))
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1  # the checksum, which reading to the end would find wrong
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        refused(path, "more than 1048576 bytes after the last voxel")
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("offset", [0, 1, 348])
def test_voxels_inside_the_header(tmp_path: Path, good: Path, offset: int) -> None:
    content = bytearray(good.read_bytes())
    struct.pack_into("<f", content, 108, offset)
    (tmp_path / "x.nii").write_bytes(content)
    refused(tmp_path / "x.nii", "inside the header|not a NIfTI file")


@pytest.mark.parametrize("slope", [np.inf, -np.inf])
def test_an_infinite_scale(tmp_path: Path, good: Path, slope: float) -> None:
    content = bytearray(good.read_bytes())
    struct.pack_into("<f", content, 112, slope)
    (tmp_path / "x.nii").write_bytes(content)
    refused(tmp_path / "x.nii", "an infinite scl_slope")


def test_an_honest_file_of_zeros_is_not_taken_for_absurd(tmp_path: Path, save_nifti: SaveNifti) -> None:
    # The best compression there is: 2 MB of zeros in about 2 KB.
    data = np.zeros((128, 128, 128), np.uint8)
    path = tmp_path / "zeros.nii.gz"
    path.write_bytes(gzip.compress(save_nifti(tmp_path / "zeros.nii", data).read_bytes(), 9))
    assert not read_label(path).data.any()


# --- other kinds of files ---


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a line of text\n" * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        gzip.compress(b"a line of text\n" * 40),
        bytes(1000),
        b"\xff" * 1000,
    ],
    ids=["empty", "text", "png", "gzipped-text", "zeros", "ones"],
)
def test_not_a_nifti(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not a NIfTI file.*expected a NIfTI file")


def test_a_png_is_not_a_nifti(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (64, 64)).save(tmp_path / "x.nii", format="png")
    refused(tmp_path / "x.nii", "not a NIfTI file")


def test_images_of_other_formats(tmp_path: Path) -> None:
    nibabel.save(nibabel.MGHImage(DATA_XYZ.astype(np.int32), LPS_AFFINE), tmp_path / "x.mgz")
    nibabel.save(nibabel.AnalyzeImage(DATA_XYZ, np.eye(4)), tmp_path / "y.img")
    refused(tmp_path / "x.mgz", "a MGHImage.*Convert it to NIfTI")
    refused(tmp_path / "y.img", "Image; expected a NIfTI file")
    (tmp_path / "x.mgz").rename(tmp_path / "x.nii.gz")
    refused(tmp_path / "x.nii.gz", "not a NIfTI file")


def test_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "x.nii", "does not exist")
    refused(tmp_path, "is a folder, not a file; expected a NIfTI file")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_single_numbers(tmp_path: Path, save_nifti: SaveNifti, dtype: npt.DTypeLike) -> None:
    refused(save_nifti(tmp_path / "x.nii", np.zeros(SHAPE_XYZ, dtype)), "expected one real number per voxel")


# --- wrong shapes ---


@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 10, 2), (12, 14, 10, 1, 2), (12,), (12, 14, 0)])
def test_other_than_three_dimensions(tmp_path: Path, save_nifti: SaveNifti, shape: tuple[int, ...]) -> None:
    error = refused(save_nifti(tmp_path / "x.nii", np.zeros(shape, np.int16)), "expected a 3-D volume")
    assert str(shape).rstrip(",)") in error.found
    assert ("4-D file as the case" in error.advice) == (len(shape) == 4)


def test_a_3d_file_as_the_case(good: Path) -> None:
    refused(good, "3-D array .* expected a 4-D volume", lambda path: read_case(find_case(path)))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_stack_of_other_than_four(tmp_path: Path, save_nifti: SaveNifti, count: int) -> None:
    path = save_nifti(tmp_path / "x.nii", np.stack([DATA_XYZ] * count, axis=3))
    refused(path, f"{count} volumes; expected 4 volumes in the order", lambda path: read_case(find_case(path)))


# --- modalities that do not fit each other ---


def case_error(folder: Path, at_fault: str, match: str) -> None:
    refused(folder / f"case_{at_fault}.nii.gz", match, lambda _: read_case(find_case(folder)))


@pytest.mark.parametrize("modality", MODALITIES[1:])
def test_differing_shapes(tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, modality: str) -> None:
    folder = write_case(tmp_path / "case")
    save_nifti(folder / f"case_{modality}.nii.gz", DATA_XYZ[:, :, :-1])
    case_error(folder, modality, r"shape \(12, 14, 9\); expected the grid of case_t1\.nii\.gz, \(12, 14, 10\)")


@pytest.mark.parametrize(
    ("row", "column", "below", "above"),
    [
        (0, 3, 0.1003, 0.101),  # a shift
        (2, 3, -0.1003, -0.101),
        (1, 1, 0.099 / 13, 0.101 / 13),  # a spacing: shows at the far corner, 13 voxels away
        (0, 2, 0.099 / 9, 0.101 / 9),  # a shear
    ],
)
def test_differing_affines(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, row: int, column: int, below: float, above: float
) -> None:
    folder = write_case(tmp_path / "case")
    affine = LPS_AFFINE.copy()
    affine[1, 3] = 20  # small enough for float32 to hold a thousandth of a millimetre
    for modality in MODALITIES:
        save_nifti(folder / f"case_{modality}.nii.gz", DATA_XYZ, affine, qform=0)
    for change, fits in ((below, True), (above, False)):
        moved = affine.copy()
        moved[row, column] += change
        save_nifti(folder / "case_flair.nii.gz", DATA_XYZ, moved, qform=0)
        if fits:
            read_case(find_case(folder))
        else:
            case_error(folder, "flair", r"a corner 0\.101 mm away; expected the grid of case_t1\.nii\.gz to 0\.1 mm")


def test_a_mirrored_modality(tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti) -> None:
    folder = write_case(tmp_path / "case")
    save_nifti(folder / "case_t2.nii.gz", DATA_XYZ, np.diag([-1.0, 1, 1, 1]) @ LPS_AFFINE)
    case_error(folder, "t2", "Co-register")


@pytest.mark.parametrize("column", [0, 1, 2])
def test_an_affine_without_volume(tmp_path: Path, save_nifti: SaveNifti, column: int) -> None:
    affine = LPS_AFFINE.copy()
    affine[:3, column] = affine[:3, column - 1]
    refused(save_nifti(tmp_path / "x.nii", DATA_XYZ, affine, qform=0), "an affine that is not invertible")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite(tmp_path: Path, good: Path, value: float) -> None:
    content = bytearray(good.read_bytes())
    struct.pack_into("<f", content, 280, value)  # srow_x[0]
    (tmp_path / "x.nii").write_bytes(content)
    refused(tmp_path / "x.nii", "an affine that is not invertible")


# --- contents ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_intensities_that_are_not_finite(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, value: float
) -> None:
    folder = write_case(tmp_path / "case")
    image_XYZ = DATA_XYZ.astype(np.float64)
    image_XYZ[3, 4, 5] = image_XYZ[3, 4, 6] = value
    save_nifti(folder / "case_t2.nii.gz", image_XYZ)
    case_error(folder, "t2", "2 voxels are NaN or infinite; expected finite intensities")


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_constant_image(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, modality: str, value: int
) -> None:
    folder = write_case(tmp_path / "case")
    save_nifti(folder / f"case_{modality}.nii.gz", np.full(SHAPE_XYZ, value, np.int16))
    case_error(folder, modality, f"every voxel is {value}; expected a {modality} image")


def test_a_constant_volume_in_a_stack(tmp_path: Path, save_nifti: SaveNifti) -> None:
    stack = np.stack([DATA_XYZ, DATA_XYZ, DATA_XYZ * 0, DATA_XYZ], axis=3)
    path = save_nifti(tmp_path / "x.nii.gz", stack)
    refused(path, "every voxel is 0; expected a t1ce image", lambda path: read_case(find_case(path)))


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (1.5, np.float32, "1.5"),
        (0.998, np.float64, "0.998"),
        (1.0011, np.float32, "1.0011"),
        (-1, np.int16, "-1"),
        (-1, np.float32, "-1"),
        (256, np.int16, "256"),
        (257, np.uint16, "257"),
        (300, np.float32, "300"),
        (1e20, np.float32, "1e+20"),
        (65536, np.int32, "65536"),
    ],
)
def test_a_label_map_with_other_than_labels(
    tmp_path: Path, save_nifti: SaveNifti, value: float, dtype: npt.DTypeLike, shown: str
) -> None:
    label_XYZ = np.ones(SHAPE_XYZ, dtype)
    label_XYZ[3, 4, 5] = value
    path = save_nifti(tmp_path / "seg.nii", label_XYZ)
    error = refused(path, "expected whole-number labels from 0 to 255", read_label)
    assert error.found == f"1 voxels of value {shown}"


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_label_map_of_any_type_with_labels_only(tmp_path: Path, save_nifti: SaveNifti, dtype: npt.DTypeLike) -> None:
    label_XYZ = np.arange(np.prod(SHAPE_XYZ)).reshape(SHAPE_XYZ) % 5
    label = read_label(save_nifti(tmp_path / "seg.nii", label_XYZ.astype(dtype)))
    assert label.data.dtype == np.uint8
    np.testing.assert_array_equal(label.data, label_XYZ)


def test_nan_in_a_label_map(tmp_path: Path, save_nifti: SaveNifti) -> None:
    label_XYZ = np.ones(SHAPE_XYZ, np.float32)
    label_XYZ[3, 4, 5] = np.nan
    refused(
        save_nifti(tmp_path / "seg.nii", label_XYZ), "1 voxels are NaN or infinite; expected finite labels", read_label
    )


@pytest.mark.parametrize("shape", [(*SHAPE_XYZ, 3), (*SHAPE_XYZ, 1, 4), (4, *SHAPE_XYZ)])
def test_a_label_map_of_one_map_per_class(tmp_path: Path, save_nifti: SaveNifti, shape: tuple[int, ...]) -> None:
    path = save_nifti(tmp_path / "seg.nii", np.zeros(shape, np.float32))
    error = refused(path, f"{len(shape)}-D array .*; expected a 3-D volume", read_label)
    assert error.advice.startswith("It looks like one map per class: make one map of them")


def test_a_label_map_in_colours(tmp_path: Path, save_nifti: SaveNifti) -> None:
    path = save_nifti(tmp_path / "seg.nii", np.zeros(SHAPE_XYZ, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    error = refused(path, r"colours \(RGB\); expected one real number per voxel", read_label)
    assert error.advice == "Save labels or grey values as whole numbers."


def test_slices_are_no_volume(tmp_path: Path, save_nifti: SaveNifti) -> None:
    assert "Stack the slices" in refused(save_nifti(tmp_path / "x.nii", DATA_XYZ[0]), "2-D array").advice


# --- writing ---


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("failure", "reported"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (PermissionError(errno.EACCES, "Permission denied"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk-full", "forbidden", "interrupt"],
)
def test_an_interrupted_write_leaves_all_as_it_was(
    tmp_path: Path,
    reference: Volume,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    reported: type[BaseException],
    existing: bool,
) -> None:
    target = tmp_path / "x_seg.nii.gz"
    if existing:
        target.write_text("an older result")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    begun: list[Path] = []

    def save_half(image: object, path: Path) -> None:
        begun.append(path)
        path.write_bytes(b"half a file")
        raise failure

    monkeypatch.setattr(nibabel, "save", save_half)
    with pytest.raises(reported) as error:
        write_label_map(np.ones(SHAPE_XYZ, np.uint8), reference, target)
    assert len(begun) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    if isinstance(error.value, InputError):
        assert error.value.where == str(target)
        assert str(failure.args[1]) in error.value.found


def test_writing_into_no_folder(tmp_path: Path, reference: Volume) -> None:
    with pytest.raises(InputError, match=r"x\.nii: cannot be written \(No such file or directory\)"):
        write_label_map(np.ones(SHAPE_XYZ, np.uint8), reference, tmp_path / "nowhere" / "x.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["good.nii"]


# --- files that cannot be opened ---


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("../.git/annex/objects/a/b", "is a link whose content was not fetched .* datalad get"),
        ("nowhere.nii", "is a link to nowhere.nii, which cannot be reached"),
    ],
)
def test_a_link_to_nowhere(tmp_path: Path, target: str, found: str) -> None:
    (tmp_path / "x_seg.nii").symlink_to(target)
    refused(tmp_path / "x_seg.nii", found, read_label)


def test_a_folder_with_one_volume_is_no_stack(tmp_path: Path, good: Path) -> None:
    """Its advice is right whether the file or its folder was passed."""
    error = refused(good, "expected a 4-D volume", lambda path: read_case(find_case(path.parent)))
    assert error.advice == "Pass a case folder that holds a file for each modality."

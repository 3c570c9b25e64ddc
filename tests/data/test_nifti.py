"""Any axis order comes in as LPS and goes out as it came; number types, scaling, 4-D files, warnings, real cases."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from conftest import LPS_AFFINE, NAMES, SHAPE_XYZ, SaveNifti, WriteCase

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import NUMBERED, read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.nifti import is_own_result, read_label, read_volume, write_label_map, write_volume
from lowmem_brats.errors import InputError

Affine = npt.NDArray[np.float64]
SPACED_AFFINE = np.array([[-0.8, 0, 0, 31.5], [0, -1.1, 0, -7.25], [0, 0, 2.5, 12.0], [0, 0, 0, 1]])
"""LPS with three different spacings and a translation."""
ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product([False, True], repeat=3)
]
FORM_CODES = [(1, 0), (0, 1), (1, 1), (4, 2)]


def numbered(*shape: int) -> npt.NDArray[np.uint8]:
    """An array in which every voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def store_as(
    data_XYZ: npt.NDArray[np.generic], lps_affine: Affine, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[npt.NDArray[np.generic], Affine]:
    """An LPS volume in another axis order: axis k on disk is axis `axes[k]`, backwards if `flips[k]`."""
    lps_from_disk = np.zeros((4, 4))
    lps_from_disk[3, 3] = 1
    for k, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        lps_from_disk[axis, k] = -1 if flip else 1
        lps_from_disk[axis, 3] = data_XYZ.shape[axis] - 1 if flip else 0
    stored = np.flip(data_XYZ.transpose(axes), [k for k in range(3) if flips[k]])
    return stored, lps_affine @ lps_from_disk


def assert_same_grid(path: Path, original: Path) -> None:
    """Everything that places a 3-D file's voxels is the same, for readers that prefer sform and for those of qform."""
    ours, theirs = nibabel.load(path), nibabel.load(original)
    assert ours.shape == theirs.shape[:3]
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.get_qform(), theirs.get_qform(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.get_sform(), theirs.get_sform(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.header.get_zooms(), theirs.header.get_zooms()[:3], rtol=1e-6)
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert ours.header[name] == theirs.header[name], name


def assert_same_places(path: Path, label_XYZ: npt.NDArray[np.uint8], lps_affine: Affine) -> None:
    """Each voxel of the file holds the label that lies at its world coordinates."""
    image = nibabel.load(path)
    indices_LPS = np.indices(label_XYZ.shape).reshape(3, -1)
    worlds = lps_affine[:3, :3] @ indices_LPS + lps_affine[:3, 3:]
    voxels = np.linalg.solve(image.affine[:3, :3], worlds - image.affine[:3, 3:])
    i, j, k = np.rint(voxels).astype(int)
    np.testing.assert_allclose(voxels, [i, j, k], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[i, j, k], label_XYZ[tuple(indices_LPS)])


@pytest.mark.parametrize(
    ("axes", "flips", "codes"), [(*each, FORM_CODES[(i + i // 4) % 4]) for i, each in enumerate(ORIENTATIONS)]
)
def test_every_axis_order_comes_in_and_goes_out(
    tmp_path: Path, save_nifti: SaveNifti, axes: tuple[int, ...], flips: tuple[bool, ...], codes: tuple[int, int]
) -> None:
    data_XYZ = numbered(6, 7, 5)
    source = save_nifti(tmp_path / "in.nii", *store_as(data_XYZ, SPACED_AFFINE, axes, flips), *codes)
    volume = read_volume(source)
    np.testing.assert_array_equal(volume.data, data_XYZ)
    np.testing.assert_allclose(volume.affine, SPACED_AFFINE, atol=1e-4)
    assert volume.spacing_mm == pytest.approx((0.8, 1.1, 2.5), abs=1e-5)

    result = tmp_path / "out.nii"
    write_label_map(data_XYZ, volume, result)
    assert_same_grid(result, source)
    assert_same_places(result, data_XYZ, SPACED_AFFINE)


def test_the_forty_eight_orders_are_all_there() -> None:
    stored = {store_as(numbered(6, 7, 5), SPACED_AFFINE, axes, flips)[0].tobytes() for axes, flips in ORIENTATIONS}
    assert len(stored) == 48


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS[::5])
def test_an_oblique_grid_keeps_its_angle(
    tmp_path: Path, save_nifti: SaveNifti, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    cosine, sine = np.cos(0.35), np.sin(0.35)
    turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    source = save_nifti(tmp_path / "in.nii", *store_as(numbered(6, 7, 5), turn @ SPACED_AFFINE, axes, flips))
    volume = read_volume(source)
    np.testing.assert_array_equal(volume.data, numbered(6, 7, 5))
    write_label_map(numbered(6, 7, 5), volume, tmp_path / "out.nii")
    assert_same_grid(tmp_path / "out.nii", source)
    assert_same_places(tmp_path / "out.nii", numbered(6, 7, 5), turn @ SPACED_AFFINE)


def test_differing_sform_and_qform_are_both_kept(tmp_path: Path) -> None:
    # ITK-SNAP and FSLeyes do not agree which of the two counts, so the result needs both of its input.
    image = nibabel.Nifti1Image(numbered(6, 7, 5), SPACED_AFFINE)
    moved = SPACED_AFFINE.copy()
    moved[0, 3] += 5
    image.set_sform(moved, 2)
    image.set_qform(np.diag([-1.0, -1.0, 1.0, 1.0]) @ SPACED_AFFINE, 1)
    nibabel.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    np.testing.assert_allclose(volume.affine, moved, atol=1e-5)  # the sform counts, as in nibabel
    write_label_map(numbered(6, 7, 5), volume, tmp_path / "out.nii")
    assert_same_grid(tmp_path / "out.nii", tmp_path / "in.nii")


@pytest.mark.parametrize("units", [0, 2, 2 + 8, 7])
def test_units_are_kept_even_if_unknown(tmp_path: Path, save_nifti: SaveNifti, units: int) -> None:
    source = save_nifti(tmp_path / "in.nii", numbered(6, 7, 5))
    patch(source, 123, "<B", units)
    write_label_map(numbered(6, 7, 5), read_volume(source), tmp_path / "out.nii")
    assert nibabel.load(tmp_path / "out.nii").header["xyzt_units"] == units


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL", "PIR"])
def test_a_label_map_is_our_own_in_whatever_order_of_axes(tmp_path: Path, save_nifti: SaveNifti, axes: str) -> None:
    """In that of its image, and saved again in another by an editor that changes no label."""
    image = nibabel.Nifti1Image(numbered(6, 7, 5), np.diag([-1.0, -1, 1, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "in.nii")
    label_XYZ = (numbered(6, 7, 5) % 5).astype(np.uint8)
    write_label_map(label_XYZ, read_volume(tmp_path / "in.nii"), tmp_path / "out.nii")
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "out.nii").affine) == tuple(axes)
    assert is_own_result(tmp_path / "out.nii")
    nibabel.save(nibabel.load(tmp_path / "out.nii").as_reoriented(turn), tmp_path / "again.nii")
    assert is_own_result(tmp_path / "again.nii")


def test_nifti2_comes_in_and_goes_out(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(numbered(6, 7, 5), SPACED_AFFINE)
    image.set_qform(SPACED_AFFINE, 1)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    np.testing.assert_array_equal(volume.data, numbered(6, 7, 5))
    write_label_map(volume.data, volume, tmp_path / "out.nii.gz")
    assert_same_grid(tmp_path / "out.nii.gz", tmp_path / "in.nii")


def test_a_label_map_is_marked_as_our_own(tmp_path: Path, save_nifti: SaveNifti) -> None:
    source = save_nifti(tmp_path / "in.nii", numbered(6, 7, 5))
    result = tmp_path / "out.nii.gz"
    write_label_map(np.full((6, 7, 5), 4, np.uint8), read_volume(source), result)
    header = nibabel.load(result).header
    assert header.get_data_dtype() == np.uint8
    assert header["cal_max"] == 4
    assert is_own_result(result)
    assert not is_own_result(source)
    image = nibabel.load(result)
    corrected = np.asarray(image.dataobj).copy()
    nibabel.save(nibabel.Nifti1Image(corrected, None, image.header), tmp_path / "again.nii.gz")
    assert is_own_result(tmp_path / "again.nii.gz"), "saved again as it is"
    corrected[0, 0, 0] = 0
    nibabel.save(nibabel.Nifti1Image(corrected, None, image.header), tmp_path / "again.nii.gz")
    assert not is_own_result(tmp_path / "again.nii.gz"), "an editor keeps the description"
    (tmp_path / "again.nii.gz").unlink()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.nii", "out.nii.gz"]


def test_a_volume_is_written_as_brats_stores_it(tmp_path: Path) -> None:
    data_XYZ = np.arange(210, dtype=np.int16).reshape(6, 7, 5)
    write_volume(data_XYZ, LPS_AFFINE, tmp_path / "t1.nii.gz")
    image = nibabel.load(tmp_path / "t1.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data_XYZ)
    np.testing.assert_array_equal(image.affine, LPS_AFFINE)
    assert image.header.get_data_dtype() == np.int16
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(read_volume(tmp_path / "t1.nii.gz").data, data_XYZ)


# --- numbers ---


def patch(path: Path, offset: int, layout: str, *values: float) -> None:
    """Overwrite header bytes of an uncompressed file."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "<i2", ">i2", "<u2", ">u2", "int32", "uint32", "int64", "uint64", "<f4", ">f4", "<f8", ">f8"],
)
def test_every_number_type_keeps_its_values(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(dtype)
    largest = 60000.25 if kind.kind == "f" else min(np.iinfo(kind).max, 60000)
    data_XYZ = np.linspace(0, largest, 210).reshape(6, 7, 5).astype(kind)
    header = nibabel.Nifti1Header(endianness=kind.byteorder if kind.byteorder in "<>" else "<")
    header.set_data_dtype(kind)
    nibabel.save(nibabel.Nifti1Image(data_XYZ, LPS_AFFINE, header), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    np.testing.assert_array_equal(volume.data, data_XYZ.astype(np.float32) if kind.kind == "f" else data_XYZ)
    assert volume.data.dtype.kind == kind.kind
    write_label_map(numbered(6, 7, 5), volume, tmp_path / "out.nii")
    assert_same_grid(tmp_path / "out.nii", tmp_path / "in.nii")


def test_scaled_integers_are_read_as_what_they_stand_for(tmp_path: Path, save_nifti: SaveNifti) -> None:
    stored_XYZ = np.arange(-100, 110, dtype=np.int16).reshape(6, 7, 5)
    source = save_nifti(tmp_path / "in.nii", stored_XYZ)
    patch(source, 112, "<ff", 0.25, -3.0)  # scl_slope, scl_inter
    volume = read_volume(source)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, stored_XYZ * 0.25 - 3)
    write_label_map(numbered(6, 7, 5), volume, tmp_path / "out.nii")
    np.testing.assert_array_equal(read_label(tmp_path / "out.nii").data, numbered(6, 7, 5))  # not scaled again


def test_a_scaled_label_map_is_read_as_labels(tmp_path: Path, save_nifti: SaveNifti) -> None:
    source = save_nifti(tmp_path / "in.nii", (np.arange(210, dtype=np.int16) % 5).reshape(6, 7, 5) * 2)
    patch(source, 112, "<ff", 0.5, 0.0)
    label = read_label(source)
    assert label.data.dtype == np.uint8
    np.testing.assert_array_equal(label.data.ravel(), np.arange(210) % 5)


def test_labels_that_a_scale_factor_left_beside_whole_numbers(tmp_path: Path, save_nifti: SaveNifti) -> None:
    stored_XYZ = (np.arange(210, dtype=np.int16) % 5).reshape(6, 7, 5) * 255
    source = save_nifti(tmp_path / "in.nii", stored_XYZ)
    patch(source, 112, "<ff", 0.00392, 0.0004)
    assert read_volume(source).data.max() == pytest.approx(3.9988)
    with pytest.raises(InputError, match="resample"):
        read_label(source)
    patch(source, 112, "<ff", 0.0039214, 0.0004)  # up to 0.0003 above and 0.0007 below
    np.testing.assert_array_equal(read_label(source).data.ravel(), np.arange(210) % 5)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_scale_is_no_scaling(tmp_path: Path, save_nifti: SaveNifti, slope: float) -> None:
    source = save_nifti(tmp_path / "in.nii", numbered(6, 7, 5))
    patch(source, 112, "<ff", slope, 7.0)
    np.testing.assert_array_equal(read_volume(source).data, numbered(6, 7, 5))


@pytest.mark.parametrize("trailing", [(1,), (1, 1), (1, 1, 1, 1)])
def test_trailing_axes_of_length_one_are_dropped(
    tmp_path: Path, save_nifti: SaveNifti, trailing: tuple[int, ...]
) -> None:
    source = save_nifti(tmp_path / "in.nii.gz", numbered(6, 7, 5).reshape(6, 7, 5, *trailing))
    volume = read_volume(source)
    np.testing.assert_array_equal(volume.data, numbered(6, 7, 5))
    write_label_map(volume.data, volume, tmp_path / "out.nii.gz")
    assert_same_grid(tmp_path / "out.nii.gz", source)


# --- cases ---


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_each_convention_lands_in_the_right_channels(
    tmp_path: Path, write_case: WriteCase, tiny_case: Callable[..., dict[str, np.ndarray]], names: str, suffix: str
) -> None:
    files = find_case(write_case(tmp_path / "case", names, suffix=suffix))
    case, volumes = read_case(files), tiny_case(SHAPE_XYZ)
    assert case.images_CXYZ.dtype == np.float32
    np.testing.assert_array_equal(case.images_CXYZ, [volumes[m] for m in MODALITIES])
    assert (case.case_id, case.missing, case.spacing_mm) == ("case", [], (1, 1, 1))
    assert case.warnings == ([NUMBERED] if files.numbered else [])
    np.testing.assert_array_equal(read_label(files.labels[0]).data, volumes["seg"])


def test_explicit_paths_land_in_the_right_channels(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "case", {"t1": "-a", "t1ce": "-b", "t2": "-c", "flair": "-d", "seg": "-seg"})
    explicit = {m: folder / f"case-{letter}.nii.gz" for m, letter in zip(MODALITIES, "abcd", strict=True)}
    expected = read_case(find_case(write_case(tmp_path / "named"))).images_CXYZ
    np.testing.assert_array_equal(read_case(find_case(folder, explicit)).images_CXYZ, expected)


def test_modalities_in_different_axis_orders_agree(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, tiny_case: Callable[..., dict[str, np.ndarray]]
) -> None:
    folder = write_case(tmp_path / "case")
    stored, affine = store_as(tiny_case(SHAPE_XYZ)["t2"], LPS_AFFINE, (2, 0, 1), (True, False, True))
    save_nifti(folder / "case_t2.nii.gz", stored, affine)
    expected = read_case(find_case(write_case(tmp_path / "plain"))).images_CXYZ
    np.testing.assert_array_equal(read_case(find_case(folder)).images_CXYZ, expected)


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (False,) * 3), ((2, 0, 1), (True, False, True))])
def test_a_stacked_file_lands_in_the_right_channels(
    tmp_path: Path,
    save_nifti: SaveNifti,
    tiny_case: Callable[..., dict[str, np.ndarray]],
    axes: tuple[int, ...],
    flips: tuple[bool, ...],
) -> None:
    volumes = tiny_case(SHAPE_XYZ)
    stored = [store_as(volumes[m], LPS_AFFINE, axes, flips) for m in ("flair", "t1", "t1ce", "t2")]
    source = save_nifti(tmp_path / "BRATS_001.nii.gz", np.stack([data for data, _ in stored], axis=3), stored[0][1])
    case = read_case(find_case(source))
    np.testing.assert_array_equal(case.images_CXYZ, [volumes[m] for m in MODALITIES])
    assert (case.case_id, case.missing, case.warnings) == ("BRATS_001", [], [])
    label_XYZ = volumes["seg"].astype(np.uint8)
    write_label_map(label_XYZ, case.reference, tmp_path / "out.nii.gz")
    assert_same_grid(tmp_path / "out.nii.gz", source)
    assert_same_places(tmp_path / "out.nii.gz", label_XYZ, LPS_AFFINE)


@pytest.mark.parametrize("present", [("t1", "t2"), ("t1ce", "flair"), ("t1", "t1ce", "flair")])
def test_a_missing_modality_is_zeros_and_a_warning(
    tmp_path: Path, write_case: WriteCase, tiny_case: Callable[..., dict[str, np.ndarray]], present: tuple[str, ...]
) -> None:
    missing = [m for m in MODALITIES if m not in present]
    files = find_case(write_case(tmp_path / "case", modalities=present), allow_missing=missing)
    case, volumes = read_case(files), tiny_case(SHAPE_XYZ)
    assert case.missing == missing
    costs = {"t1ce": "no enhancing tumour is found"}
    assert case.warnings == [
        f"{m} is missing: zeros are used in its place and {costs.get(m, 'the result may suffer')}" for m in missing
    ]
    for image_XYZ, modality in zip(case.images_CXYZ, MODALITIES, strict=True):
        np.testing.assert_array_equal(image_XYZ, 0 if modality in missing else volumes[modality])


@pytest.mark.parametrize(
    ("spacing", "warned"), [((1, 1, 1), False), ((1.05, 0.95, 1), False), ((1, 1, 3), True), ((0.8, 1, 1), True)]
)
def test_spacing_far_from_one_mm_is_a_warning(
    tmp_path: Path, write_case: WriteCase, spacing: tuple[float, float, float], warned: bool
) -> None:
    affine = LPS_AFFINE @ np.diag([*spacing, 1])
    case = read_case(find_case(write_case(tmp_path / "case", affine=affine)))
    assert case.spacing_mm == pytest.approx(spacing, abs=1e-5)
    assert len(case.warnings) == warned
    if warned:
        assert case.warnings[0].startswith("spacing is " + " × ".join(f"{s:.2f}" for s in spacing) + " mm")


@pytest.mark.parametrize(("share", "warned"), [(0.0, True), (0.2, True), (0.3, False)])
def test_an_image_with_its_skull_is_a_warning(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, share: float, warned: bool
) -> None:
    folder = write_case(tmp_path / "case", modalities=())
    image_XYZ = np.random.default_rng(0).integers(100, 900, SHAPE_XYZ).astype(np.int16)
    image_XYZ.ravel()[: int(share * image_XYZ.size)] = 0
    save_nifti(folder / "case_t1.nii.gz", image_XYZ)
    save_nifti(folder / "case_flair.nii.gz", image_XYZ)
    files = find_case(folder, allow_missing=MODALITIES)
    warnings = [w for w in read_case(files).warnings if "missing" not in w]
    assert sum("skull-stripped" in w for w in warnings) == warned


def test_no_orientation_code_is_a_warning(tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti) -> None:
    folder = write_case(tmp_path / "case", modalities=())
    for modality in MODALITIES:
        data = np.zeros((6, 7, 5), np.uint8)
        data[2:4, 2:4, 2:4] = numbered(2, 2, 2) + 1
        save_nifti(folder / f"case_{modality}.nii", data, SPACED_AFFINE, sform=0, qform=0)
    case = read_case(find_case(folder))
    assert sum("no orientation" in warning for warning in case.warnings) == 1
    write_label_map(numbered(6, 7, 5), case.reference, tmp_path / "out.nii")
    assert_same_grid(tmp_path / "out.nii", folder / "case_t1.nii")


@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_one_orientation_code_is_no_warning(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, codes: tuple[int, int]
) -> None:
    folder = write_case(tmp_path / "case", modalities=("t1ce", "t2", "flair"))
    original = nibabel.load(folder / "case_t2.nii.gz")
    save_nifti(folder / "case_t1.nii.gz", np.asarray(original.dataobj), LPS_AFFINE, *codes)
    assert read_case(find_case(folder)).warnings == []


def test_volumes_of_one_grid_agree(tmp_path: Path, save_nifti: SaveNifti) -> None:
    first: Volume = read_volume(save_nifti(tmp_path / "a.nii", numbered(6, 7, 5)))
    second = read_volume(
        save_nifti(tmp_path / "b.nii", *store_as(numbered(6, 7, 5), LPS_AFFINE, (1, 2, 0), (True,) * 3))
    )
    check_same_grid(first, tmp_path / "a.nii", second, tmp_path / "b.nii")


@pytest.mark.real
@pytest.mark.parametrize("case_id", ["BraTS20_Training_001", "BraTS2021_00006"])
def test_real_cases_come_in_and_go_out(tmp_path: Path, real_cases: Path, case_id: str) -> None:
    files = find_case(real_cases / case_id)
    case = read_case(files)
    assert case.images_CXYZ.shape == (4, 240, 240, 155)
    assert (case.case_id, case.missing, case.warnings, case.spacing_mm) == (case_id, [], [], (1, 1, 1))
    for image_XYZ, modality in zip(case.images_CXYZ, MODALITIES, strict=True):
        stored = nibabel.load(real_cases / case_id / f"{case_id}_{modality}.nii.gz")
        changed = np.count_nonzero(image_XYZ != np.asarray(stored.dataobj))  # stored as LPS
        assert changed < 100, "more than a few specks in the air and clipped extremes"
    label = read_label(files.labels[0])
    result = tmp_path / "out.nii.gz"
    write_label_map(label.data, case.reference, result)
    for original in (*files.images.values(), files.labels[0]):
        assert_same_grid(result, original)
    written, published = (np.asarray(nibabel.load(path).dataobj) for path in (result, files.labels[0]))
    assert np.array_equal(written, published)

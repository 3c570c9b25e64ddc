"""Any axis order comes in as LPS and goes out as it came; number types, scaling, trailing axes."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import LPS_AFFINE, SaveNifti
from stored_volumes import SPACED_AFFINE, assert_same_grid, assert_same_places, numbered, store_as

from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.nifti import is_own_result, read_label, read_volume, write_label_map, write_volume
from lowmem_brats.errors import InputError

ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product([False, True], repeat=3)
]
FORM_CODES = [(1, 0), (0, 1), (1, 1), (4, 2)]


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


def test_volumes_of_one_grid_agree(tmp_path: Path, save_nifti: SaveNifti) -> None:
    first: Volume = read_volume(save_nifti(tmp_path / "a.nii", numbered(6, 7, 5)))
    second = read_volume(
        save_nifti(tmp_path / "b.nii", *store_as(numbered(6, 7, 5), LPS_AFFINE, (1, 2, 0), (True,) * 3))
    )
    check_same_grid(first, tmp_path / "a.nii", second, tmp_path / "b.nii")

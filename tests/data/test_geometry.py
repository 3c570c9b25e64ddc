"""Where voxels lie in mm: units, sizes told twice, forms that disagree, sheared axes, impossible sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from conftest import LPS_AFFINE, SHAPE_XYZ, SaveNifti, WriteCase

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.nifti import read_label, read_volume, write_label_map
from lowmem_brats.errors import InputError

DATA_XYZ = np.random.default_rng(0).integers(0, 5, SHAPE_XYZ).astype(np.uint8)
METRE, MM, MICRON = 1, 2, 3
UNITS_PER_MM = {METRE: 0.001, MM: 1.0, MICRON: 1000.0, 0: 1.0}
Affine = npt.NDArray[np.float64]


def edit_header(path: Path, **fields: Any) -> Path:
    """Change fields of an uncompressed file's header, and no others."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def with_pixdim(path: Path, x: float, y: float, z: float, qfac: float = 1) -> Path:
    return edit_header(path, pixdim=[qfac, x, y, z, 1, 1, 1, 1])


def spaced(x: float, y: float, z: float) -> Affine:
    return LPS_AFFINE @ np.diag([x, y, z, 1])


def sheared(degrees: float) -> Affine:
    """1 mm voxels; Y leans towards X."""
    affine = LPS_AFFINE.copy()
    affine[:2, 1] = -math.sin(math.radians(degrees)), -math.cos(math.radians(degrees))
    return affine


def error_of(path: Path, read: Callable[[Path], object] = read_volume) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.where == str(path)
    return caught.value


# --- two sizes of a voxel ---


@pytest.mark.parametrize("read", [read_volume, read_label])
@pytest.mark.parametrize("qform", [0, 1])
def test_a_pixdim_of_another_size_than_the_sform_is_refused(
    tmp_path: Path, save_nifti: SaveNifti, qform: int, read: Callable[[Path], object]
) -> None:
    # A tumour of 44 267 voxels would be 44.267 mL by the sform and 221.335 mL by pixdim.
    path = with_pixdim(save_nifti(tmp_path / "x.nii", DATA_XYZ, qform=qform), 1, 1, 5)
    error = error_of(path, read)
    assert error.found == "voxels are 1 × 1 × 1 mm by the sform, but 1 × 1 × 5 mm by pixdim"
    assert "12 × 14 × 10 mm large by the sform and 12 × 14 × 50 mm by pixdim" in error.advice


@pytest.mark.parametrize("qform", [0, 1])
@pytest.mark.parametrize(("repair", "voxel_mm3"), [("image.set_qform", 1.0), ("image.set_sform", 5.0)])
def test_the_repair_that_is_advised_repairs(
    tmp_path: Path, save_nifti: SaveNifti, qform: int, repair: str, voxel_mm3: float
) -> None:
    path = with_pixdim(save_nifti(tmp_path / "x.nii", DATA_XYZ, qform=qform), 1, 1, 5)
    advice = error_of(path).advice
    command = advice[advice.index(repair) : advice.index(" if the sform" if "qform" in repair else " if pixdim")]
    image = nibabel.load(path)
    eval(command, {"image": image, "numpy": np})
    nibabel.save(image, tmp_path / "repaired.nii")
    repaired = read_volume(tmp_path / "repaired.nii")
    assert repaired.warnings == []
    assert math.prod(repaired.spacing_mm) == pytest.approx(voxel_mm3)
    np.testing.assert_array_equal(repaired.data, DATA_XYZ)
    assert 44_267 * math.prod(repaired.spacing_mm) == pytest.approx({1.0: 44_267, 5.0: 221_335}[voxel_mm3])


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_is_looked_at(
    tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti, modality: str
) -> None:
    folder = write_case(tmp_path / "case", suffix=".nii")
    path = with_pixdim(folder / f"case_{modality}.nii", 1, 1, 5)
    error_of(path, lambda path: read_case(find_case(path.parent)))


@pytest.mark.parametrize(
    ("pixdim", "verdict"),
    [
        ((1, 1, 1.009), "silent"),
        ((1, 1, 1.011), "warned"),
        ((1, 1, 0.98), "warned"),
        ((1, 1, 1.049), "warned"),
        ((1, 1, 1.051), "refused"),
        ((1, 1, 0.95), "refused"),  # 1/0.95 is more than 1.05
        ((1.02, 1.02, 1.02), "refused"),  # 6 % of a voxel's volume
        ((2, 0.5, 1), "refused"),  # the same volume, other distances
    ],
)
def test_how_much_sizes_may_differ(
    tmp_path: Path, save_nifti: SaveNifti, pixdim: tuple[float, float, float], verdict: str
) -> None:
    path = with_pixdim(save_nifti(tmp_path / "x.nii", DATA_XYZ, qform=0), *pixdim)
    if verdict == "refused":
        error_of(path)
        return
    warnings = read_volume(path).warnings
    assert len(warnings) == (verdict == "warned")
    if warnings:
        sizes = " × ".join(f"{size:.4g}" for size in pixdim)
        assert warnings[0].split(":")[0] == f"voxels are 1 × 1 × 1 mm by the sform, but {sizes} mm by pixdim"


@pytest.mark.parametrize("pixdim", [(0, 0, 0), (1, 0, 1), (-1, 1, 1), (1, math.nan, 1), (1, 1, math.inf)])
def test_a_pixdim_that_is_no_size(
    tmp_path: Path, save_nifti: SaveNifti, pixdim: tuple[float, float, float], capfd: pytest.CaptureFixture[str]
) -> None:
    path = with_pixdim(save_nifti(tmp_path / "sform.nii", DATA_XYZ, qform=0), *pixdim)
    volume = read_volume(path)
    (warning,) = volume.warnings
    assert "which is no voxel size: the sform's is used, 1 × 1 × 1 mm" in warning
    assert volume.spacing_mm == (1, 1, 1)
    write_label_map(volume.data, volume, tmp_path / "out.nii")
    written = nibabel.Nifti1Header((tmp_path / "out.nii").read_bytes()[:348], check=False)
    np.testing.assert_array_equal(written["pixdim"][1:4], np.array(pixdim, np.float32))  # as it came
    for codes in ((0, 1), (0, 0)):
        path = with_pixdim(save_nifti(tmp_path / "other.nii", DATA_XYZ, LPS_AFFINE, *codes), *pixdim)
        assert error_of(path).found.startswith("pixdim ")
    assert capfd.readouterr() == ("", "")  # nibabel would tell its repairs here, without the file's name


# --- two places of a voxel ---


@pytest.mark.parametrize(
    ("qform", "warning"),
    [
        (LPS_AFFINE, None),
        (LPS_AFFINE + np.eye(4, k=3), None),  # 1 mm to the left
        (LPS_AFFINE + 1.1 * np.eye(4, k=3), "sform and qform place a corner voxel 1.1 mm apart"),
        (np.diag([-1.0, -1, 1, 1]) @ LPS_AFFINE, "sform and qform place a corner voxel 478.0 mm apart"),  # turned
        (LPS_AFFINE @ np.diag([-1.0, 1, 1, 1]), "sform and qform are mirror images of each other"),
    ],
)
def test_a_qform_of_another_place_is_a_warning(
    tmp_path: Path, save_nifti: SaveNifti, qform: Affine, warning: str | None
) -> None:
    image = nibabel.Nifti1Image(DATA_XYZ, LPS_AFFINE)
    image.set_sform(LPS_AFFINE, 1)
    image.set_qform(qform, 1)
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    np.testing.assert_array_equal(volume.affine, LPS_AFFINE)
    assert [text.split(":")[0] for text in volume.warnings] == [warning] * bool(warning)
    edit_header(tmp_path / "x.nii", qform_code=0)
    assert read_volume(tmp_path / "x.nii").warnings == []


def test_a_qform_that_is_none_is_a_warning_beside_an_sform(tmp_path: Path, save_nifti: SaveNifti) -> None:
    path = edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ), quatern_b=1, quatern_c=1)
    (warning,) = read_volume(path).warnings
    assert warning.startswith("the qform is not valid: the sform is used")
    edit_header(path, quatern_c=math.nan)
    assert read_volume(path).warnings == [warning]


def test_a_warning_names_its_modalities_once(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "case", suffix=".nii")
    for modality in ("t1ce", "flair"):
        edit_header(folder / f"case_{modality}.nii", qoffset_x=30)
    (warning,) = read_case(find_case(folder)).warnings
    assert warning.startswith("t1ce, flair: sform and qform place a corner voxel 30.0 mm apart")


@pytest.mark.parametrize("names", ["brats2021", "brats2023"])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 1)])
@pytest.mark.parametrize("units", [0, MM, MM + 8])
def test_ordinary_headers_give_no_warning(
    tmp_path: Path, write_case: WriteCase, names: str, codes: tuple[int, int], units: int
) -> None:
    folder = write_case(tmp_path / "case", names, suffix=".nii")
    for path in folder.iterdir():
        edit_header(path, sform_code=codes[0], qform_code=codes[1], xyzt_units=units)
    files = find_case(folder)
    assert read_case(files).warnings == []
    assert read_label(files.labels[0]).warnings == []


@pytest.mark.parametrize("name", ["sform", "qform"])
@pytest.mark.parametrize("code", [-1, 6, 77])
def test_a_form_code_that_does_not_exist(tmp_path: Path, save_nifti: SaveNifti, name: str, code: int) -> None:
    path = edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ), **{f"{name}_code": code})
    assert error_of(path).found == f"{name}_code {code}"


@pytest.mark.parametrize(("qfac", "refused"), [(1, False), (-1, False), (0, False), (-2, True), (math.nan, True)])
def test_a_qform_that_may_be_mirrored_is_refused(
    tmp_path: Path, save_nifti: SaveNifti, qfac: float, refused: bool
) -> None:
    path = with_pixdim(save_nifti(tmp_path / "x.nii", DATA_XYZ, sform=0), 1, 1, 1, qfac)
    if refused:
        assert error_of(path).found == f"pixdim[0] (qfac) {qfac:g}"
    else:
        assert read_volume(path).to_disk[2, 1] == (-1 if qfac < 0 else 1)


# --- units ---


@pytest.mark.parametrize("units", UNITS_PER_MM)
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_lengths_are_in_mm_inside_and_in_the_files_unit_outside(
    tmp_path: Path, save_nifti: SaveNifti, units: int, codes: tuple[int, int]
) -> None:
    in_mm = spaced(1, 1.25, 2)
    scale = np.diag([*[UNITS_PER_MM[units]] * 3, 1])
    source = edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ, scale @ in_mm, *codes), xyzt_units=units + 8)
    volume = read_label(source)
    assert volume.spacing_mm == pytest.approx((1, 1.25, 2), rel=1e-6)
    np.testing.assert_allclose(volume.affine, in_mm, rtol=1e-6, atol=1e-9)
    assert volume.warnings == []
    write_label_map(volume.data, volume, tmp_path / "out.nii")
    before, after = (nibabel.load(path) for path in (source, tmp_path / "out.nii"))
    np.testing.assert_array_equal(after.affine, before.affine)
    for name in ("xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z", "qoffset_y", "quatern_d"):
        np.testing.assert_array_equal(after.header[name], before.header[name])


def test_modalities_in_different_units_agree(tmp_path: Path, write_case: WriteCase, save_nifti: SaveNifti) -> None:
    folder = write_case(tmp_path / "case", suffix=".nii", affine=spaced(1, 1, 1))
    expected = read_case(find_case(folder))
    for modality, units in (("t1ce", MICRON), ("flair", METRE)):
        path = folder / f"case_{modality}.nii"
        affine = np.diag([*[UNITS_PER_MM[units]] * 3, 1]) @ LPS_AFFINE
        save_nifti(path, np.asarray(nibabel.load(path).dataobj).copy(), affine)
        edit_header(path, xyzt_units=units)
    case = read_case(find_case(folder))
    np.testing.assert_array_equal(case.images_CXYZ, expected.images_CXYZ)
    assert case.warnings == []
    save_nifti(path, DATA_XYZ, np.diag([1000.0, 1000, 1000, 1]) @ LPS_AFFINE)  # micrometres that are called mm
    assert error_of(path, lambda path: read_case(find_case(path.parent))).found == "voxels of 1000 × 1000 × 1000 mm"


def test_a_unit_that_does_not_exist_is_taken_for_mm_with_a_warning(tmp_path: Path, save_nifti: SaveNifti) -> None:
    volume = read_volume(edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ), xyzt_units=5))
    assert volume.spacing_mm == (1, 1, 1)
    assert volume.warnings == [
        "the header names a unit of length that does not exist (code 5): millimetres are assumed"
    ]


# --- impossible sizes ---


@pytest.mark.parametrize(
    ("units", "size", "found"),
    [
        (MM, 0.001, "voxels of 0.001 × 0.001 × 0.001 mm"),  # metres that are called mm
        (METRE, 1, "voxels of 1000 × 1000 × 1000 mm"),  # mm that are called metres
        (MICRON, 1, "voxels of 0.001 × 0.001 × 0.001 mm"),
        (MM, 0.0499, "voxels of 0.0499 × 0.0499 × 0.0499 mm"),
        (MM, 20.1, "voxels of 20.1 × 20.1 × 20.1 mm"),
        (MM, 0.05, None),
        (MM, 20, None),
    ],
)
def test_voxels_of_an_impossible_size(
    tmp_path: Path, save_nifti: SaveNifti, units: int, size: float, found: str | None
) -> None:
    affine = np.diag([-size, -size, size, 1])
    path = edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ, affine), xyzt_units=units)
    if found is None:
        assert read_volume(path).spacing_mm == pytest.approx((size, size, size))
        return
    error = error_of(path)
    assert (error.found, error.expected) == (found, "edges of 0.05 to 20 mm")
    assert "xyzt_units" in error.advice


@pytest.mark.parametrize(("size", "refused"), [(5.0, False), (5.01, True)])
def test_a_volume_larger_than_a_scanner(tmp_path: Path, save_nifti: SaveNifti, size: float, refused: bool) -> None:
    path = save_nifti(tmp_path / "x.nii", np.zeros((120, 2, 2), np.uint8), spaced(size, 5, 5))
    if refused:
        assert error_of(path).found == "a volume of 601.2 × 10 × 10 mm"
    else:
        assert read_volume(path).spacing_mm == (5, 5, 5)


# --- axes ---


@pytest.mark.parametrize("degrees", [0.0, 1.0, 1.2, 9.9, 10.0, 10.2, 45.0])
def test_sheared_axes_are_told_and_then_refused(tmp_path: Path, save_nifti: SaveNifti, degrees: float) -> None:
    path = save_nifti(tmp_path / "x.nii", DATA_XYZ, sheared(degrees), qform=0)
    if degrees > 10:
        error = error_of(path)
        assert (error.found, error.expected) == (f"axes {degrees}° from perpendicular", "at most 10.0°")
        return
    warnings = read_volume(path).warnings
    assert [text.split(" from")[0] for text in warnings] == [f"the sform's axes are {degrees}°"] * (degrees > 1)


@pytest.mark.parametrize("degrees", [10, 30, 44])
def test_an_oblique_grid_is_no_warning(tmp_path: Path, save_nifti: SaveNifti, degrees: int) -> None:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volume = read_volume(save_nifti(tmp_path / "x.nii", DATA_XYZ, turn @ spaced(1, 1.25, 2)))
    assert volume.warnings == []
    assert volume.spacing_mm == pytest.approx((1, 1.25, 2), rel=1e-6)
    np.testing.assert_array_equal(volume.data, DATA_XYZ)


def test_an_sform_without_volume_beside_a_qform(tmp_path: Path, save_nifti: SaveNifti) -> None:
    path = edit_header(save_nifti(tmp_path / "x.nii", DATA_XYZ), srow_x=0, srow_y=0, srow_z=0)
    error = error_of(path)
    assert error.found == "an affine that is not invertible"
    assert error.advice == "If the qform is right, set the sform_code to 0."
    np.testing.assert_array_equal(read_volume(edit_header(path, sform_code=0)).affine, LPS_AFFINE)

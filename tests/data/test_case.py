"""Images of any convention and axis order land in their channels; missing ones, warnings, real cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import LPS_AFFINE, NAMES, SHAPE_XYZ, SaveNifti, WriteCase
from stored_volumes import SPACED_AFFINE, assert_same_grid, assert_same_places, numbered, store_as

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import NUMBERED, STACKED, case_of, read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.nifti import read_label, write_label_map
from lowmem_brats.data.phantom import make_phantom


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
    assert (case.case_id, case.missing, case.warnings) == ("BRATS_001", [], [STACKED])
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
    save_nifti(folder / "case_t1.nii.gz", 2 * np.asarray(original.dataobj), LPS_AFFINE, *codes)
    assert read_case(find_case(folder)).warnings == []


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


def test_what_cleaning_changed_in_a_few_voxels_can_be_put_back(tmp_path: Path, write_case: WriteCase) -> None:
    """A voxel far brighter than all others is clipped; networks of others see it as it is stored."""
    folder = write_case(tmp_path / "case", shape=(40, 40, 30))
    image = nibabel.load(folder / "case_t2.nii.gz")
    values = np.asarray(image.dataobj).copy()
    values[20, 20, 15] = 30_000
    nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / "case_t2.nii.gz")
    case = read_case(find_case(folder))
    assert case.images_CXYZ[2, 20, 20, 15] < 30_000
    np.testing.assert_array_equal(case.stored_CXYZ[2], values)
    np.testing.assert_array_equal(case.stored_CXYZ[0], case.images_CXYZ[0])
    assert {modality: len(changed) for modality, (changed, _) in case.cleaned.items()} == {
        "t1": 0,
        "t1ce": 0,
        "t2": 1,
        "flair": 0,
    }


def test_an_image_on_a_noisy_background_stays_cleaned(tmp_path: Path, write_case: WriteCase) -> None:
    folder = write_case(tmp_path / "case", shape=(40, 40, 30))
    image = nibabel.load(folder / "case_t2.nii.gz")
    values = np.asarray(image.dataobj) + 1000
    nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / "case_t2.nii.gz")
    case = read_case(find_case(folder))
    assert "t2" not in case.cleaned
    np.testing.assert_array_equal(case.stored_CXYZ, case.images_CXYZ)


@pytest.mark.parametrize(("first", "second"), [("t2", "flair"), ("t1", "t1ce")])
def test_one_image_under_two_names_is_a_warning(tmp_path: Path, write_case: WriteCase, first: str, second: str) -> None:
    """As where a copy was made in place of a modality that was not scanned."""
    folder = write_case(tmp_path / "case")
    shutil.copy(folder / f"case_{first}.nii.gz", folder / f"case_{second}.nii.gz")
    (text,) = read_case(find_case(folder)).warnings
    assert text.startswith(f"{first} and {second} are the same image, voxel by voxel")


def test_an_image_that_is_mirrored_against_the_others_is_a_warning() -> None:
    images_CXYZ = make_phantom(0, (96, 96, 62)).images_CXYZ
    affine = np.diag([-2.5, -2.5, 2.5, 1])
    images = {m: nibabel.Nifti1Image(image, affine) for m, image in zip(MODALITIES, images_CXYZ, strict=True)}
    assert not [text for text in case_of(images).warnings if "mirrored" in text]
    images["t2"] = nibabel.Nifti1Image(images_CXYZ[2, ::-1], affine)
    (text,) = (text for text in case_of(images).warnings if "lie on" in text or "mirrored" in text)
    assert text.startswith("t2 is mirrored, left for right, against t1ce")

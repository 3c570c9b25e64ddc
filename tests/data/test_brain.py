"""What is taken for brain: the same voxels and z-scores, however strangers have scaled, resampled or padded a scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.brain import isolate_brain
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.slices import zscore_brain
from lowmem_brats.errors import InputError

Images = npt.NDArray[np.float32]
SHAPE_XYZ = (44, 52, 40)
VOXEL_MM3 = 64.0
"""Voxels of 4 mm, in which the phantom below has the volume of a brain."""


def ball(scale: float) -> npt.NDArray[np.bool_]:
    x, y, z = np.ogrid[-1:1:44j, -1:1:52j, -1:1:40j]
    inside: npt.NDArray[np.bool_] = x**2 + y**2 + z**2 < scale**2
    return inside


BRAIN = ball(0.78)


def phantom() -> Images:
    """Four modalities of smooth noise around 400, in whole numbers, on the brain; 1359 mL; air exactly 0."""
    rng = np.random.default_rng(0)
    smooth_CXYZ = np.stack([ndimage.gaussian_filter(rng.normal(size=SHAPE_XYZ), 1) for _ in MODALITIES])
    return np.where(BRAIN, np.round(400 + 400 * smooth_CXYZ).clip(1), 0).astype(np.float32)


CLEAN = phantom()


def isolate(images_CXYZ: Images, missing: tuple[str, ...] = ()) -> tuple[Images, list[str]]:
    """A cleaned copy, and the notes."""
    cleaned_CXYZ = images_CXYZ.astype(np.float32)
    return cleaned_CXYZ, isolate_brain(cleaned_CXYZ, missing, VOXEL_MM3)


def overlap(images_CXYZ: Images, brain_XYZ: npt.NDArray[np.bool_]) -> list[float]:
    """Dice of each modality's brain with the true one."""
    found = images_CXYZ != 0
    return [float(2 * (each & brain_XYZ).sum() / (each.sum() + brain_XYZ.sum())) for each in found]


def test_an_ordinary_case_is_left_as_it_is_without_a_word() -> None:
    cleaned_CXYZ, notes = isolate(CLEAN)
    np.testing.assert_array_equal(cleaned_CXYZ, CLEAN)
    assert notes == []
    assert BRAIN.sum() * VOXEL_MM3 / 1000 == pytest.approx(1358.848)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [1, 2, 5, 9])
def test_few_slices_are_left_as_they_are_without_a_word(axis: int, slices: int) -> None:
    """Through the middle of the head, in few grey values: on the faces lies brain, and many of its voxels are alike."""
    coarse = (100 * np.ceil(CLEAN / 100)).astype(np.float32)
    middle = coarse.shape[axis + 1] // 2
    some_CXYZ = coarse.take(range(middle, middle + slices), axis + 1)
    cleaned_CXYZ, notes = isolate(some_CXYZ)
    np.testing.assert_array_equal(cleaned_CXYZ, some_CXYZ)
    assert notes == []


def test_the_noise_around_a_single_slice_is_found() -> None:
    noisy_CXYZ = CLEAN[..., 20:21] + np.random.default_rng(1).normal(0, 4, (4, 44, 52, 1)).astype(np.float32)
    cleaned_CXYZ, notes = isolate(noisy_CXYZ)
    assert min(overlap(cleaned_CXYZ, BRAIN[..., 20:21])) > 0.97
    assert all("has no single value" in note for note in notes)


def scaled(image_XYZ: Images) -> Images:
    return 2 * (image_XYZ - image_XYZ.min()) / np.ptp(image_XYZ) - 1


def standardised(image_XYZ: Images) -> Images:
    return (image_XYZ - image_XYZ.mean()) / image_XYZ.std()


def brain_standardised(image_XYZ: Images) -> Images:
    values = image_XYZ[BRAIN]
    return np.where(BRAIN, (image_XYZ - values.mean()) / values.std(), 0)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        pytest.param(scaled, "its background is -1: it is set to 0", id="scaled to [-1, 1]"),
        pytest.param(standardised, "its background is -0.", id="z-scored over the volume"),
        pytest.param(lambda i: np.where(i == 0, 1e-6, i), "its background is 1e-06", id="background of 1e-6"),
        pytest.param(lambda i: i - 1024, "its background is -1024", id="shifted as CT"),
        pytest.param(brain_standardised, None, id="z-scored over the brain"),
        pytest.param(lambda i: i * 1e-4, None, id="tiny unit"),
    ],
)
def test_any_scale_gives_the_same_brain_and_z_scores(change: Callable[[Images], Images], note: str | None) -> None:
    cleaned_CXYZ, notes = isolate(np.stack([change(image) for image in CLEAN]))
    np.testing.assert_array_equal(cleaned_CXYZ != 0, CLEAN != 0)
    np.testing.assert_allclose(zscore_brain(cleaned_CXYZ), zscore_brain(CLEAN), atol=1e-3)
    assert [text.split(": ")[0] for text in notes] == (list(MODALITIES) if note else [])
    assert all(note in text for text in notes if note)


@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
@settings(max_examples=30)
def test_gain_and_offset_do_not_matter(gain: float, offset: float) -> None:
    # In units of the gain: float32 holds no difference of 1 beside an offset of a billion.
    cleaned_CXYZ, _ = isolate(CLEAN * gain + offset * gain)
    np.testing.assert_array_equal(cleaned_CXYZ != 0, CLEAN != 0)
    np.testing.assert_allclose(zscore_brain(cleaned_CXYZ), zscore_brain(CLEAN), atol=5e-3)


@pytest.mark.parametrize("whole_numbers", [False, True])
def test_ringing_of_splines_is_no_brain(whole_numbers: bool) -> None:
    moved = np.stack([ndimage.shift(image, (0.4, -0.3, 0.45), order=3) for image in CLEAN])
    true_XYZ = ndimage.shift(BRAIN.astype(float), (0.4, -0.3, 0.45), order=1) > 0.5
    moved = np.round(moved) if whole_numbers else moved
    assert max(overlap(moved, true_XYZ)) < 0.9, "or there is nothing to mend"
    cleaned_CXYZ, notes = isolate(moved)
    assert min(overlap(cleaned_CXYZ, true_XYZ)) > 0.95
    assert notes == [f"{m}: the air around the brain has no single value (noise, resampling, padding): it is set to 0"
                     for m in MODALITIES]  # fmt: skip


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("whole_numbers", [False, True])
def test_the_mean_around_a_rotated_image_is_no_brain(order: int, whole_numbers: bool) -> None:
    turned = np.stack([ndimage.rotate(i, 12, reshape=False, order=order, cval=float(i.mean())) for i in CLEAN])
    true_XYZ = ndimage.rotate(BRAIN.astype(float), 12, reshape=False, order=1) > 0.5
    cleaned_CXYZ, notes = isolate(np.round(turned) if whole_numbers else turned)
    assert min(overlap(cleaned_CXYZ, true_XYZ)) > 0.95
    assert len(notes) == len(MODALITIES)


def test_noise_in_the_air_of_one_modality_is_cut_to_the_brain_of_the_others() -> None:
    noisy = CLEAN.copy()
    noisy[1][~BRAIN] = np.abs(np.random.default_rng(1).normal(0, 1e-3, (~BRAIN).sum()))
    cleaned_CXYZ, notes = isolate(noisy)
    np.testing.assert_array_equal(cleaned_CXYZ != 0, CLEAN != 0)
    np.testing.assert_allclose(zscore_brain(cleaned_CXYZ), zscore_brain(CLEAN), atol=1e-3)
    assert notes == ["t1ce: the air around the brain has no single value (noise, resampling, padding): it is set to 0"]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_noise_in_the_air_of_all_modalities_is_told_from_brain(dtype: type) -> None:
    noisy = CLEAN.copy()
    noisy[:, ~BRAIN] = np.abs(np.random.default_rng(1).normal(0, 5, (4, (~BRAIN).sum()))).astype(dtype)
    cleaned_CXYZ, _ = isolate(noisy)
    assert min(overlap(cleaned_CXYZ, BRAIN)) > 0.99


@pytest.mark.parametrize(("value", "share"), [(1e6, 0.0), (-1e5, 0.0), (3e4, 0.003)])
def test_extreme_voxels_do_not_move_the_z_scores_of_the_others(value: float, share: float) -> None:
    hot = CLEAN.copy()
    places = np.flatnonzero(BRAIN)[:: max(1, round(1 / share))] if share else np.flatnonzero(BRAIN)[:1]
    hot[2].flat[places] = value
    cleaned_CXYZ, notes = isolate(hot)
    others_XYZ = BRAIN.copy()
    others_XYZ.flat[places] = False
    bare, mended, true = (zscore_brain(images)[2][others_XYZ] for images in (hot, cleaned_CXYZ, CLEAN))
    assert np.abs(bare - true).max() > 0.4, "or there is nothing to mend"
    np.testing.assert_allclose(mended, true, rtol=0.1 if share else 0, atol=0.15 if share else 0.01)
    assert notes == [f"t2: {len(places)} voxels are far from all other intensities (up to {value:g}): they are clipped"]


def test_a_hot_voxel_in_the_air_is_no_brain() -> None:
    hot = CLEAN.copy()
    hot[0, 1, 1, 1] = 1e6
    cleaned_CXYZ, _ = isolate(hot)
    np.testing.assert_array_equal(cleaned_CXYZ, CLEAN)


HEAD = ball(0.97)


def with_skull(*modalities: str) -> Images:
    """The modalities named have scalp of brain's brightness around the brain, 2700 mL in all, and air of exactly 0."""
    heads = CLEAN.copy()
    for modality in modalities:
        heads[MODALITIES.index(modality)][HEAD & ~BRAIN] = 450
    return heads


def test_a_skull_in_all_modalities_is_a_warning_with_its_volume() -> None:
    cleaned_CXYZ, notes = isolate(with_skull(*MODALITIES))
    np.testing.assert_array_equal(cleaned_CXYZ != 0, np.stack([HEAD] * 4))
    (text,) = notes
    found = f"{HEAD.sum() * VOXEL_MM3 / 1000:.0f} mL, {HEAD.mean():.0%} of the volume, are not background"
    assert text.startswith(f"{found}, and a brain has 1100 to 1900 mL")
    assert "do not look skull-stripped" in text


@pytest.mark.parametrize("skulls", [("t1",), ("t1", "t1ce"), ("t1", "t1ce", "t2")])
def test_a_skull_in_some_modalities_is_cut_to_the_brain_of_the_others(skulls: tuple[str, ...]) -> None:
    cleaned_CXYZ, notes = isolate(with_skull(*skulls))
    np.testing.assert_array_equal(cleaned_CXYZ, CLEAN)
    assert "are taken for the brain" in notes[0]
    assert [text.split(": ")[0] for text in notes[1:]] == list(skulls)


@pytest.mark.parametrize(("millilitres", "told"), [(90, False), (110, True), (400, True)])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_part_of_a_skull_in_one_modality_is_a_warning(modality: str, millilitres: int, told: bool) -> None:
    """Too little to make the whole larger than a brain; what two images show of it, the others lack if it is large."""
    part = CLEAN.copy()
    piece = np.zeros_like(BRAIN)
    piece.flat[np.flatnonzero(HEAD & ~BRAIN)[: round(millilitres * 1000 / VOXEL_MM3)]] = True
    part[MODALITIES.index(modality)][piece] = 450
    cleaned_CXYZ, notes = isolate(part)
    assert [text.split(" mL")[0] for text in notes] == [f"{modality}: {millilitres}"] * told
    assert [text for text in notes if "signal in no other modality" in text] == notes
    np.testing.assert_array_equal((cleaned_CXYZ != 0).any(axis=0), BRAIN | piece)
    for pair in (MODALITIES[:2], MODALITIES[2:]):
        shared = CLEAN.copy()
        shared[[MODALITIES.index(each) for each in pair], ...] = np.where(piece, 450, CLEAN[[0, 1]])
        notes = isolate(shared)[1]
        others = [each for each in MODALITIES if each not in pair] if millilitres == 400 else []
        assert [text.split(" in ")[0] for text in notes] == [f"{each}: has signal" for each in others]


def test_images_without_any_air_are_a_warning() -> None:
    full = np.random.default_rng(0).normal(500, 50, (4, *SHAPE_XYZ)).astype(np.float32)
    _, notes = isolate(full)
    assert "do not look skull-stripped" in notes[-1]


@pytest.mark.parametrize("modality", ["t1ce", "flair"])
def test_an_image_of_part_of_the_brain_stays_a_part_and_is_a_warning(modality: str) -> None:
    part = CLEAN.copy()
    part[MODALITIES.index(modality), :, :, 20:] = 0
    cleaned_CXYZ, notes = isolate(part)
    np.testing.assert_array_equal(cleaned_CXYZ, part)
    (text,) = notes
    assert text.startswith(f"{modality}: has signal in 50% of the brain that the others show")


def test_a_label_map_in_place_of_an_image_is_a_warning() -> None:
    wrong = CLEAN.copy()
    wrong[2] = np.where(ball(0.3), 1, 0) + np.where(ball(0.2), 3, 0)
    _, notes = isolate(wrong)
    assert [text.split(" of the brain")[0] for text in notes] == ["t2: has signal in 6%"]


@pytest.mark.parametrize("missing", [(), ("t1", "flair")])
def test_a_mask_in_place_of_an_image_is_a_warning(missing: tuple[str, ...]) -> None:
    """Its z-scores are 0 everywhere, as of an image that is missing."""
    masked = CLEAN.copy()
    masked[2] = BRAIN
    for modality in missing:
        masked[MODALITIES.index(modality)] = 0
    _, notes = isolate(masked, missing)
    assert notes == ["t2: all of the brain has one value, so nothing is seen in it: is it a mask?"]


def test_a_missing_modality_stays_zero() -> None:
    images = CLEAN.copy()
    images[1] = 0
    cleaned_CXYZ, notes = isolate(images, ("t1ce",))
    np.testing.assert_array_equal(cleaned_CXYZ, images)
    assert notes == []


def test_an_inverted_image_is_a_warning() -> None:
    inverted = CLEAN.copy()
    inverted[2] = 5000 - inverted[2]
    _, notes = isolate(inverted)
    assert "t2: nearly all of the brain is darker than the background: is the image inverted?" in notes


def test_a_modality_of_another_place_is_refused() -> None:
    apart = np.zeros_like(CLEAN)
    apart[:, 2:20, 2:20, 2:20] = 300
    apart[3] = 0
    apart[3, 39:41, 48:50, 36:38] = 300
    with pytest.raises(InputError, match="flair: no signal where the others have brain"):
        isolate(apart)


# --- on a real case: what is read is what the ordinary file gives ---


def rewrite(
    case: Path, out: Path, change: Callable[[str, Images], Images], modalities: tuple[str, ...] = MODALITIES
) -> Path:
    """A copy of a case, or of some of its modalities, with each image changed."""
    for modality in modalities:
        image = nibabel.load(find_case(case).images[modality])
        changed = change(modality, np.asarray(image.dataobj, np.float32))
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), out / f"x_{modality}.nii")
    return out


@pytest.fixture(scope="module")
def real(real_cases: Path) -> tuple[Path, Images]:
    """A real case and its images as they are read."""
    case = real_cases / "BraTS20_Training_001"
    return case, read_case(find_case(case)).images_CXYZ


@pytest.mark.real
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m, i: scaled(i).astype(np.float32), id="scaled to [-1, 1]"),
        pytest.param(lambda m, i: standardised(i).astype(np.float32), id="z-scored over the volume"),
        pytest.param(lambda m, i: np.where((i == 0) & (m == "t1ce"), 1e-3, i).astype(np.float32), id="1e-3 in one"),
    ],
)
def test_a_real_case_in_another_scale(
    real: tuple[Path, Images], tmp_path: Path, change: Callable[[str, Images], Images]
) -> None:
    case, true_CXYZ = real
    found = read_case(find_case(rewrite(case, tmp_path, change)))
    np.testing.assert_allclose(zscore_brain(found.images_CXYZ), zscore_brain(true_CXYZ), atol=5e-3)


@pytest.mark.real
def test_a_real_case_after_splines(real: tuple[Path, Images], tmp_path: Path) -> None:
    case, true = real
    (box,) = ndimage.find_objects((true != 0).any(0).astype(np.uint8))
    around = tuple(slice(max(s.start - 8, 0), s.stop + 8) for s in box)

    def move(modality: str, image_XYZ: Images) -> Images:
        return np.round(ndimage.shift(image_XYZ[around], (0.4, -0.3, 0.45), order=3))

    moved = rewrite(case, tmp_path, move, ("t1ce", "flair"))  # each takes seconds
    found = read_case(find_case(moved, allow_missing=("t1", "t2"))).images_CXYZ
    true_XYZ = ndimage.shift((true != 0).any(0)[around].astype(np.float32), (0.4, -0.3, 0.45), order=1) > 0.5
    assert min(overlap(found, true_XYZ)[m] for m in (1, 3)) > 0.985

"""Warps do exactly what their parameters say, to image and label alike, and are drawn from the paper's Table I."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from lowmem_brats import augment
from lowmem_brats.augment import Warp, apply_warp, sample_warp

SIDE = 32  # a power of two: the grid's coordinates are exact
DRAWS = 1000
IDENTITY = ((1.0, 0.0), (0.0, 1.0))
FLIP = ((-1.0, 0.0), (0.0, 1.0))


def still(n: int = 1, height: int = SIDE, width: int = SIDE, channels: int = 4) -> Warp:
    """Return the warp that changes nothing."""
    coarse = (-(-height // augment.ELASTIC_STEP), -(-width // augment.ELASTIC_STEP))
    return Warp(
        np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)).copy(),
        np.zeros((n, 2), np.float32),
        np.zeros((n, 2, *coarse), np.float32),
        np.ones((n, channels), np.float32),
        np.zeros((n, channels), np.float32),
    )


def moved(matrix: tuple[tuple[float, float], ...] = IDENTITY, shift: tuple[float, float] = (0, 0)) -> Warp:
    """Return a warp of one slice by a matrix and a shift (x, y)."""
    return dataclasses.replace(
        still(), matrix_N22=np.array([matrix], np.float32), shift_N2=np.array([shift], np.float32)
    )


def batch(n: int = 1, height: int = SIDE, width: int = SIDE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return N slices of noise, brain everywhere, and targets of noise: the hardest image to warp."""
    generator = torch.Generator().manual_seed(seed)
    slices_NCHW = torch.randn(n, 4, height, width, generator=generator)
    return slices_NCHW, (torch.rand(n, 1, height, width, generator=generator) < 0.3).float()


def brain_slice() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a disc of noise on background 0, its last modality missing, and a target inside."""
    slices_1CHW, target_11HW = batch()
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    disc_HW = axis[:, None] ** 2 + axis**2 < (SIDE / 4) ** 2
    slices_1CHW *= disc_HW
    slices_1CHW[:, 3] = 0
    return slices_1CHW, target_11HW * disc_HW


def assert_exact(warp: Warp, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The warp of the hardest image is exactly the expected one."""
    for got, want in zip(apply_warp(warp, *batch()), expected, strict=True):
        assert torch.equal(got, want)


def test_no_parameters_no_change() -> None:
    assert_exact(still(), batch())


def test_no_change_on_odd_sizes_either() -> None:
    slices_NCHW, target_N1HW = batch(2, 45, 63)
    warped_NCHW, warped_N1HW = apply_warp(still(2, 45, 63), slices_NCHW, target_N1HW)
    torch.testing.assert_close(warped_NCHW, slices_NCHW, rtol=0, atol=1e-4)
    assert torch.equal(warped_N1HW, target_N1HW)


def test_flip_swaps_left_and_right() -> None:
    slices_1CHW, target_11HW = batch()
    assert_exact(moved(FLIP), (slices_1CHW.flip(-1), target_11HW.flip(-1)))


def test_quarter_turn() -> None:
    """Output (x, y) comes from input (−y, x)."""
    slices_1CHW, target_11HW = batch()
    turned = slices_1CHW.rot90(1, (-2, -1)), target_11HW.rot90(1, (-2, -1))
    assert_exact(moved(((0.0, -1.0), (1.0, 0.0))), turned)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-4, 0), (0, -2), (-1, 6)])
def test_whole_pixels_shift_and_fill_with_background(right: int, down: int) -> None:
    def shifted(image: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(SIDE) - down, torch.arange(SIDE) - right
        inside = ((rows >= 0) & (rows < SIDE))[:, None] & ((columns >= 0) & (columns < SIDE))
        return image[:, :, rows.clamp(0, SIDE - 1)][:, :, :, columns.clamp(0, SIDE - 1)] * inside

    slices_1CHW, target_11HW = batch()
    assert_exact(moved(shift=(-right, -down)), (shifted(slices_1CHW), shifted(target_11HW)))


def test_scale_about_the_centre() -> None:
    """Twice the size: the middle half fills the slice, and the centre stays where it was."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    ramps_12HW = torch.stack([axis.expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE)])[None] + 100
    warp = dataclasses.replace(moved(((0.5, 0.0), (0.0, 0.5))), gain_NC=np.ones((1, 2)), offset_NC=np.zeros((1, 2)))
    warped_12HW, _ = apply_warp(warp, ramps_12HW, torch.zeros(1, 1, SIDE, SIDE))
    torch.testing.assert_close(warped_12HW.float(), (ramps_12HW - 100) / 2 + 100)


def test_slices_are_warped_each_by_its_own_draw() -> None:
    slices_NCHW, target_N1HW = batch(3)
    warp = sample_warp(np.random.default_rng(0), slices_NCHW.shape)
    together = apply_warp(warp, slices_NCHW, target_N1HW)
    for i in range(3):
        one = Warp(*(getattr(warp, f.name)[i : i + 1] for f in dataclasses.fields(Warp)))
        alone = apply_warp(one, slices_NCHW[i : i + 1], target_N1HW[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got, want[i : i + 1])
    assert len(np.unique(warp.matrix_N22[:, 0, 0])) == 3


def test_gain_and_offset_act_per_modality_on_brain_only() -> None:
    slices_1CHW, target_11HW = brain_slice()
    gain, offset = [0.8, 1.0, 1.2, 1.1], [0.2, -0.2, 0.0, 0.1]
    warp = dataclasses.replace(still(), gain_NC=np.array([gain], np.float32), offset_NC=np.array([offset], np.float32))
    changed_1CHW, _ = apply_warp(warp, slices_1CHW, target_11HW)
    brain = slices_1CHW != 0
    by_modality = (torch.tensor(v)[None, :, None, None].expand_as(brain) for v in (gain, offset))
    gains, offsets = (v[brain] for v in by_modality)
    torch.testing.assert_close(changed_1CHW[brain], slices_1CHW[brain] * gains + offsets)
    assert not changed_1CHW[~brain].any()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_background_and_missing_modalities_stay_exactly_zero(seed: int) -> None:
    slices_1CHW, target_11HW = brain_slice()
    warp = sample_warp(np.random.default_rng(seed), slices_1CHW.shape)
    warped_1CHW, warped_11HW = apply_warp(warp, slices_1CHW, target_11HW)
    plain = dataclasses.replace(warp, gain_NC=np.ones_like(warp.gain_NC), offset_NC=np.zeros_like(warp.offset_NC))
    unscaled_1CHW, _ = apply_warp(plain, slices_1CHW, target_11HW)
    assert (unscaled_1CHW == 0).any()
    assert not warped_1CHW[unscaled_1CHW == 0].any()
    assert not warped_1CHW[:, 3].any()
    assert set(warped_11HW.unique().tolist()) <= {0.0, 1.0}


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_image_and_label_move_together(seed: int) -> None:
    """The nearest pixel weighs at least a quarter in the bilinear mean, so one bounds the other at every pixel."""
    _, target_N1HW = batch(4, 40, 24, seed=seed % 1000)
    warp = sample_warp(np.random.default_rng(seed), (4, 1, 40, 24))
    warp = dataclasses.replace(warp, gain_NC=np.ones((4, 1), np.float32), offset_NC=np.zeros((4, 1), np.float32))
    smooth_N1HW, nearest_N1HW = apply_warp(warp, target_N1HW, target_N1HW)
    assert (smooth_N1HW[nearest_N1HW == 1] >= 0.25 - 1e-4).all()
    assert (smooth_N1HW[nearest_N1HW == 0] <= 0.75 + 1e-4).all()


def test_a_warp_can_be_replayed() -> None:
    slices_NCHW, target_N1HW = batch(2)
    before = slices_NCHW.clone(), target_N1HW.clone()
    warp = sample_warp(np.random.default_rng(5), slices_NCHW.shape)
    first, second = (apply_warp(warp, slices_NCHW, target_N1HW) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], slices_NCHW)
    assert torch.equal(slices_NCHW, before[0])
    assert torch.equal(target_N1HW, before[1])


def test_draws_follow_from_the_generator_alone() -> None:
    shape = (2, 4, 40, 32)
    one, same, other = (sample_warp(np.random.default_rng(seed), shape) for seed in (1, 1, 2))
    for field in dataclasses.fields(Warp):
        value = getattr(one, field.name)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, getattr(same, field.name))
        assert (value != getattr(other, field.name)).any()


def only(monkeypatch: pytest.MonkeyPatch, kept: str) -> Warp:
    """Return a thousand draws with all geometry but one kind switched off."""
    for name in {"FLIP_PROBABILITY", "SCALE", "SHEAR", "ROTATION_DEGREES"} - {kept}:
        monkeypatch.setattr(augment, name, 0.0)
    return sample_warp(np.random.default_rng(0), (DRAWS, 4, 40, 24))


def assert_fills(values: np.ndarray, low: float, high: float) -> None:
    """All values lie in [low, high] and come close to both ends."""
    margin = (high - low) * 0.02
    assert low - 1e-6 <= values.min() < low + margin
    assert high - margin < values.max() <= high + 1e-6


def test_half_of_the_slices_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "FLIP_PROBABILITY").matrix_N22
    flipped_N = matrix_N22[:, 0, 0] == -1
    assert 0.45 < flipped_N.mean() < 0.55
    np.testing.assert_array_equal(matrix_N22[flipped_N], np.broadcast_to(FLIP, (flipped_N.sum(), 2, 2)))
    np.testing.assert_array_equal(matrix_N22[~flipped_N], np.broadcast_to(IDENTITY, ((~flipped_N).sum(), 2, 2)))


def test_scales_reach_from_0_9_to_1_1(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "SCALE").matrix_N22
    for axis in range(2):
        assert_fills(1 / matrix_N22[:, axis, axis], 0.9, 1.1)
    assert abs(np.corrcoef(matrix_N22[:, 0, 0], matrix_N22[:, 1, 1])[0, 1]) < 0.1, "two scalings, not one"
    assert not matrix_N22[:, 0, 1].any()
    assert not matrix_N22[:, 1, 0].any()


def test_shears_reach_0_05_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "SHEAR").matrix_N22
    horizontal, vertical = matrix_N22[:, 0, 1], matrix_N22[:, 1, 0]
    assert_fills(horizontal, -0.05, 0.05)
    assert_fills(vertical, -0.05, 0.05)
    np.testing.assert_array_equal(matrix_N22[:, 0, 0], 1)
    np.testing.assert_allclose(matrix_N22[:, 1, 1], 1 + horizontal * vertical, rtol=1e-6)


def test_rotations_reach_15_degrees_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "ROTATION_DEGREES").matrix_N22
    assert_fills(np.rad2deg(np.arctan2(matrix_N22[:, 1, 0], matrix_N22[:, 0, 0])), -15, 15)
    gram_N22 = matrix_N22 @ matrix_N22.transpose(0, 2, 1)
    np.testing.assert_allclose(gram_N22, np.broadcast_to(np.eye(2), gram_N22.shape), atol=1e-6)


def test_translations_reach_a_tenth_of_each_side() -> None:
    shift_N2 = sample_warp(np.random.default_rng(0), (DRAWS, 4, 40, 24)).shift_N2
    assert_fills(shift_N2[:, 0], -2.4, 2.4)
    assert_fills(shift_N2[:, 1], -4.0, 4.0)


def test_contrast_and_noise_ranges() -> None:
    warp = sample_warp(np.random.default_rng(0), (DRAWS, 4, 40, 24))
    assert warp.noise_N2hw.shape == (DRAWS, 2, 5, 3)
    assert_fills(warp.gain_NC, 0.8, 1.2)
    assert_fills(warp.offset_NC, -0.2, 0.2)
    assert_fills(warp.noise_N2hw, -1, 1)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5), height=st.integers(8, 64), width=st.integers(8, 64))
@settings(max_examples=40)
def test_area_changes_by_the_scales_alone(seed: int, n: int, height: int, width: int) -> None:
    """Flip, shears and rotation keep the area, whatever the order."""
    warp = sample_warp(np.random.default_rng(seed), (n, 4, height, width))
    area_N = np.abs(np.linalg.det(warp.matrix_N22))
    assert ((area_N > 1 / 1.1**2 - 1e-5) & (area_N < 1 / 0.9**2 + 1e-5)).all()


BRATS_SIDE, ELASTIC_DRAWS = 240, 240


@pytest.fixture(scope="module")
def elastic_displacement() -> tuple[np.ndarray, np.ndarray]:
    """Measured (x, y) displacement at the centre and 32 pixels right of it: ramps show where each pixel came from."""
    rows = []
    rng = np.random.default_rng(0)
    ramp_HW = (torch.arange(BRATS_SIDE, dtype=torch.float32) + 1000).expand(BRATS_SIDE, BRATS_SIDE)
    ramps_N2HW = torch.stack([ramp_HW, ramp_HW.T]).expand(20, 2, BRATS_SIDE, BRATS_SIDE)
    target_N1HW = torch.zeros(20, 1, BRATS_SIDE, BRATS_SIDE)
    for _ in range(ELASTIC_DRAWS // 20):
        drawn = sample_warp(rng, ramps_N2HW.shape)
        warp = dataclasses.replace(still(20, BRATS_SIDE, BRATS_SIDE, 2), noise_N2hw=drawn.noise_N2hw)
        moved_N2HW = apply_warp(warp, ramps_N2HW, target_N1HW)[0] - ramps_N2HW
        rows.append(moved_N2HW[:, :, 120, [120, 152]].numpy())
    both_N2P = np.concatenate(rows)
    return both_N2P[..., 0], both_N2P[..., 1]


def direct_deviation() -> float:
    """Exact deviation at the centre of the paper's construction: U(−1, 1) on every pixel, smoothed, times alpha."""
    kernel = gaussian_filter1d(np.eye(BRATS_SIDE), 30, axis=0, mode="constant")[120]
    return float(600 * np.sqrt(1 / 3) * (kernel**2).sum())


def test_elastic_theory_and_direct_construction_agree() -> None:
    assert direct_deviation() == pytest.approx(600 / np.sqrt(3) / (2 * np.sqrt(np.pi) * 30), rel=1e-3)
    assert direct_deviation() == pytest.approx(3.26, abs=0.01)


def test_elastic_displacement_is_as_strong_as_the_direct_one(
    elastic_displacement: tuple[np.ndarray, np.ndarray],
) -> None:
    """480 samples each: the standard error is 3.2 %; bilinear refinement takes 1 %."""
    for at_N2 in elastic_displacement:
        assert at_N2.std() == pytest.approx(direct_deviation(), rel=0.1)
        assert abs(at_N2.mean()) < 0.5


def test_elastic_displacement_is_as_smooth_as_sigma_30(elastic_displacement: tuple[np.ndarray, np.ndarray]) -> None:
    """Smoothed noise correlates over d pixels by exp(−d² / (2σ)²); x and y move independently."""
    here_N2, there_N2 = elastic_displacement
    assert np.corrcoef(here_N2.ravel(), there_N2.ravel())[0, 1] == pytest.approx(np.exp(-(32**2) / 60**2), abs=0.06)
    assert abs(np.corrcoef(here_N2[:, 0], here_N2[:, 1])[0, 1]) < 0.2

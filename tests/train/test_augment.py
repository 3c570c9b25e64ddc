"""Augmentations do exactly what their parameters say, and are drawn from the ranges and as often as stated."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lowmem_brats.train import augment
from lowmem_brats.train.augment import Augmentation, apply_augmentation, sample_augmentation

SIDE = 32  # a power of two: the grid's coordinates are exact
DRAWS = 1000
IDENTITY = ((1.0, 0.0), (0.0, 1.0))
FLIP = ((-1.0, 0.0), (0.0, 1.0))


def still(n: int = 1, height: int = SIDE, width: int = SIDE, channels: int = 4) -> Augmentation:
    """Return the augmentation that changes nothing."""
    coarse = (-(-height // augment.ELASTIC_STEP), -(-width // augment.ELASTIC_STEP))
    ones, zeros = np.ones((n, channels), np.float32), np.zeros((n, channels), np.float32)
    return Augmentation(
        matrix_N22=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)).copy(),
        shift_N2=np.zeros((n, 2), np.float32),
        elastic_N2hw=np.zeros((n, 2, *coarse), np.float32),
        gamma_NC=ones,
        bias_NChw=np.zeros((n, channels, augment.BIAS_GRID, augment.BIAS_GRID), np.float32),
        gain_NC=ones,
        offset_NC=zeros,
        blur_N2C=np.zeros((n, 2, channels), np.float32),
        sigma_NC=zeros,
        seed_N=np.arange(n),
        kept_NC=np.ones((n, channels), bool),
    )


def moved(matrix: tuple[tuple[float, float], ...] = IDENTITY, shift: tuple[float, float] = (0, 0)) -> Augmentation:
    """Return a warp of one slice by a matrix and a shift (x, y)."""
    return changed(matrix_N22=[matrix], shift_N2=[shift])


def changed(**parameters: npt.ArrayLike) -> Augmentation:
    """Return the augmentation of one slice that does nothing but what is stated."""
    arrays = {name: np.asarray(v, np.asarray(getattr(still(), name)).dtype) for name, v in parameters.items()}
    return dataclasses.replace(still(), **arrays)


GEOMETRY = ("matrix_N22", "shift_N2", "elastic_N2hw")


def geometry_of(augmentation: Augmentation, height: int, width: int, channels: int = 4) -> Augmentation:
    """Return the same warps without changes of intensity."""
    n = len(augmentation.seed_N)
    return dataclasses.replace(
        still(n, height, width, channels), **{name: getattr(augmentation, name) for name in GEOMETRY}
    )


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch every operation on for every slice."""
    for name in ("WARP", "GAMMA", "BIAS", "CONTRAST", "NOISE"):
        monkeypatch.setattr(augment, f"{name}_PROBABILITY", 1.0)


def batch(n: int = 1, height: int = SIDE, width: int = SIDE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return N slices of noise, brain everywhere, and targets of noise: the hardest image to warp."""
    generator = torch.Generator().manual_seed(seed)
    slices_NCHW = torch.randn(n, 4, height, width, generator=generator)
    return slices_NCHW, (torch.rand(n, 1, height, width, generator=generator) < 0.3).float()


def brain_slice(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a disc of noise on background 0, its last modality missing, and a target inside."""
    slices_1CHW, target_11HW = batch(seed=seed)
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    disc_HW = axis[:, None] ** 2 + axis**2 < (SIDE / 4) ** 2
    slices_1CHW *= disc_HW
    slices_1CHW[:, 3] = 0
    return slices_1CHW, target_11HW * disc_HW


def assert_exact(augmentation: Augmentation, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The warp of the hardest image is exactly the expected one."""
    for got, want in zip(apply_augmentation(augmentation, *batch()), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (45, 63)])
def test_no_parameters_no_change(height: int, width: int) -> None:
    """Exactly, on odd sizes too, where interpolation would round."""
    slices_NCHW, target_N1HW = batch(2, height, width)
    same_NCHW, same_N1HW = apply_augmentation(still(2, height, width), slices_NCHW, target_N1HW)
    assert torch.equal(same_NCHW, slices_NCHW)
    assert torch.equal(same_N1HW, target_N1HW)


def test_flip_swaps_left_and_right() -> None:
    slices_1CHW, target_11HW = batch()
    assert_exact(moved(FLIP), (slices_1CHW.flip(-1), target_11HW.flip(-1)))


def test_quarter_turn() -> None:
    """Output (x, y) comes from input (−y, x)."""
    slices_1CHW, target_11HW = batch()
    turned = slices_1CHW.rot90(1, (-2, -1)), target_11HW.rot90(1, (-2, -1))
    assert_exact(moved(((0.0, -1.0), (1.0, 0.0))), turned)


def shifted(image: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """Move by whole pixels, background from outside."""
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height) - down, torch.arange(width) - right
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return image[:, :, rows.clamp(0, height - 1)][:, :, :, columns.clamp(0, width - 1)] * inside


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-4, 0), (0, -2), (-1, 6)])
def test_whole_pixels_shift_and_fill_with_background(right: int, down: int) -> None:
    slices_1CHW, target_11HW = batch()
    expected = shifted(slices_1CHW, right, down), shifted(target_11HW, right, down)
    assert_exact(moved(shift=(-right, -down)), expected)


def test_shift_on_odd_sizes_up_to_rounding() -> None:
    slices_NCHW, target_N1HW = batch(1, 45, 63)
    shift_left = dataclasses.replace(still(1, 45, 63), shift_N2=np.array([[2, -5]], np.float32))
    warped_NCHW, warped_N1HW = apply_augmentation(shift_left, slices_NCHW, target_N1HW)
    torch.testing.assert_close(warped_NCHW, shifted(slices_NCHW, -2, 5), rtol=0, atol=1e-4)
    assert torch.equal(warped_N1HW, shifted(target_N1HW, -2, 5))


def test_scale_about_the_centre() -> None:
    """Twice the size: the middle half fills the slice, and the centre stays where it was."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    ramps_12HW = torch.stack([axis.expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE)])[None] + 100
    twice = geometry_of(moved(((0.5, 0.0), (0.0, 0.5))), SIDE, SIDE, channels=2)
    warped_12HW, _ = apply_augmentation(twice, ramps_12HW, torch.zeros(1, 1, SIDE, SIDE))
    torch.testing.assert_close(warped_12HW, (ramps_12HW - 100) / 2 + 100)


def test_only_the_slices_that_are_warped_move() -> None:
    slices_NCHW, target_N1HW = batch(2)
    second = dataclasses.replace(still(2), shift_N2=np.array([[0, 0], [4, 0]], np.float32))
    warped_NCHW, warped_N1HW = apply_augmentation(second, slices_NCHW, target_N1HW)
    for got, image in ((warped_NCHW, slices_NCHW), (warped_N1HW, target_N1HW)):
        assert torch.equal(got, torch.cat([image[:1], shifted(image[1:], -4, 0)]))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_image_and_label_move_together(seed: int) -> None:
    """The nearest pixel weighs at least a quarter in the bilinear mean, so one bounds the other at every pixel."""
    _, target_N1HW = batch(4, 40, 24, seed=seed % 1000)
    drawn = sample_augmentation(np.random.default_rng(seed), (4, 1, 40, 24), 0.0)
    smooth_N1HW, nearest_N1HW = apply_augmentation(geometry_of(drawn, 40, 24, 1), target_N1HW, target_N1HW)
    assert (smooth_N1HW[nearest_N1HW == 1] >= 0.25 - 1e-4).all()
    assert (smooth_N1HW[nearest_N1HW == 0] <= 0.75 + 1e-4).all()


def test_three_regions_are_warped_like_one() -> None:
    slices_NCHW, _ = batch(4, 40, 24)
    target_N3HW = torch.cat([batch(4, 40, 24, seed)[1] for seed in range(3)], dim=1)
    drawn = sample_augmentation(np.random.default_rng(0), slices_NCHW.shape, 0.5)
    warped_NCHW, warped_N3HW = apply_augmentation(drawn, slices_NCHW, target_N3HW)
    for region in range(3):
        alone_NCHW, alone_N1HW = apply_augmentation(drawn, slices_NCHW, target_N3HW[:, region : region + 1])
        assert torch.equal(alone_NCHW, warped_NCHW)
        assert torch.equal(alone_N1HW, warped_N3HW[:, region : region + 1])


def three_pixels(*values: float) -> torch.Tensor:
    """Return a slice whose every modality has these values and else background."""
    slices_14HW = torch.zeros(1, 4, SIDE, SIDE)
    slices_14HW[:, :, 10, 10 : 10 + len(values)] = torch.tensor(values)
    return slices_14HW


NO_TARGET = torch.zeros(1, 1, SIDE, SIDE)


@pytest.mark.parametrize("level", [0.0, 5.0, -8.0])
@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        # −1, 1, 3 are 0, ½, 1 of the range; mean 1, deviation √(8/3).
        (1.0, [-1.0, 1.0, 3.0]),
        # 0, ¼, 1: mean 5/12, deviation √78 / √432.
        (2.0, [-0.601282, 0.359487, 3.241794]),
        # 0, √½, 1: mean 0.569036, deviation 0.419760.
        (0.5, [-1.213720, 1.537139, 2.676582]),
    ],
)
def test_gamma_by_hand(gamma: float, expected: list[float], level: float) -> None:
    """γ above 1 darkens what lies between, γ below 1 brightens it; background is not part of the range."""
    slices_1CHW = three_pixels(level - 1, level + 1, level + 3)
    changed_1CHW, _ = apply_augmentation(changed(gamma_NC=[[gamma, 1.2, 0.8, 1.0]]), slices_1CHW, NO_TARGET)
    assert (changed_1CHW[0, 0, 10, 10:13] - level).tolist() == pytest.approx(expected, abs=1e-5)
    assert (changed_1CHW[0, 3, 10, 10:13] - level).tolist() == pytest.approx([-1, 1, 3], abs=1e-5)
    assert (changed_1CHW != 0).sum() == 12


@given(seed=st.integers(0, 1000), gamma=st.floats(1 / 1.5, 1.5))
@settings(max_examples=40)
def test_gamma_keeps_order_mean_and_deviation(seed: int, gamma: float) -> None:
    slices_1CHW, target_11HW = brain_slice(seed)
    changed_1CHW, _ = apply_augmentation(changed(gamma_NC=[[gamma] * 4]), slices_1CHW, target_11HW)
    before, after = (image[0, 0][slices_1CHW[0, 0] != 0].double() for image in (slices_1CHW, changed_1CHW))
    assert (after[before.argsort()].diff() >= 0).all()
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-5)
    assert after.std().item() == pytest.approx(before.std().item(), rel=1e-5)


@pytest.mark.parametrize("values", [(), (2.5,), (0.5, 0.5, 0.5)])
def test_gamma_of_no_range_changes_nothing(values: tuple[float, ...]) -> None:
    slices_1CHW = three_pixels(*values)
    changed_1CHW, _ = apply_augmentation(changed(gamma_NC=[[1.5] * 4]), slices_1CHW, NO_TARGET)
    torch.testing.assert_close(changed_1CHW, slices_1CHW)
    assert torch.equal(changed_1CHW == 0, slices_1CHW == 0)


def test_bias_field_is_what_multiplying_the_scanner_s_values_gives() -> None:
    """The z-score of I · field under the mean and deviation of I, for I with mean 3 × deviation."""
    slices_1CHW, target_11HW = brain_slice()
    rng = np.random.default_rng(0)
    log_field = rng.uniform(-0.2, 0.2, (1, 4, augment.BIAS_GRID, augment.BIAS_GRID)).astype(np.float32)
    fine_1CHW = torch.nn.functional.interpolate(
        torch.from_numpy(log_field), (SIDE, SIDE), mode="bicubic", align_corners=True
    )
    deviation = 70.0
    mean = deviation * augment.BIAS_MEAN
    scanner_1CHW = slices_1CHW * deviation + mean
    expected_1CHW = (scanner_1CHW * fine_1CHW.exp() - mean) / deviation * (slices_1CHW != 0)
    changed_1CHW, _ = apply_augmentation(changed(bias_NChw=log_field), slices_1CHW, target_11HW)
    torch.testing.assert_close(changed_1CHW, expected_1CHW, rtol=1e-5, atol=1e-5)


def test_bias_field_by_hand() -> None:
    """Its grid's corners are the slice's corners; the same logarithm everywhere is one factor: (z + 3) · 1.1 − 3."""
    log_field = np.full((1, 4, augment.BIAS_GRID, augment.BIAS_GRID), np.log(1.1))
    changed_1CHW, _ = apply_augmentation(changed(bias_NChw=log_field), three_pixels(-1, 1, 2), NO_TARGET)
    assert changed_1CHW[0, 2, 10, 10:13].tolist() == pytest.approx([-0.8, 1.4, 2.5], abs=1e-5)
    log_field[0, 1, 0, -1] = np.log(0.9)
    changed_1CHW, _ = apply_augmentation(changed(bias_NChw=log_field), torch.ones(1, 4, SIDE, SIDE), NO_TARGET)
    assert changed_1CHW[0, 1, 0, -1].item() == pytest.approx(4 * 0.9 - 3, abs=1e-5)
    assert changed_1CHW[0, 1, -1, 0].item() == pytest.approx(4 * 1.1 - 3, abs=1e-5)


def test_gain_and_offset_act_per_modality_on_brain_only() -> None:
    slices_1CHW, target_11HW = brain_slice()
    gain, offset = [0.8, 1.0, 1.2, 1.1], [0.2, -0.2, 0.0, 0.1]
    changed_1CHW, _ = apply_augmentation(changed(gain_NC=[gain], offset_NC=[offset]), slices_1CHW, target_11HW)
    brain = slices_1CHW != 0
    by_modality = (torch.tensor(v)[None, :, None, None].expand_as(brain) for v in (gain, offset))
    gains, offsets = (v[brain] for v in by_modality)
    torch.testing.assert_close(changed_1CHW[brain], slices_1CHW[brain] * gains + offsets)
    assert not changed_1CHW[~brain].any()


def test_noise_of_each_modality_s_sigma_from_the_slice_s_seed() -> None:
    slices_1CHW, target_11HW = brain_slice()
    sigma, seed = torch.tensor([0.1, 0.15, 0.0, 0.1]), 7
    changed_1CHW, _ = apply_augmentation(changed(sigma_NC=[sigma.numpy()], seed_N=[seed]), slices_1CHW, target_11HW)
    noise_CHW = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    expected_1CHW = slices_1CHW + (sigma[:, None, None] * noise_CHW) * (slices_1CHW != 0)
    torch.testing.assert_close(changed_1CHW, expected_1CHW)
    assert torch.equal(changed_1CHW[:, 2], slices_1CHW[:, 2])


def test_blur_is_a_gaussian_of_each_modality_s_sigmas_along_h_and_w() -> None:
    slices_1CHW = torch.full((1, 4, SIDE, SIDE), 1e-9)  # brain everywhere
    slices_1CHW[0, :, 16, 16] = 1
    sigma_2C = np.array([[0.0, 0.5, 1.0, 2.0], [0.0, 1.5, 1.0, 0.01]])
    blurred_1CHW, _ = apply_augmentation(changed(blur_N2C=[sigma_2C]), slices_1CHW, torch.zeros(1, 1, SIDE, SIDE))
    assert torch.equal(blurred_1CHW[0, 0], slices_1CHW[0, 0])
    distance = np.arange(SIDE) - 16.0
    for c in (1, 2, 3):
        down, across = (
            np.exp(-(distance**2) / (2 * sigma**2)) * (abs(distance) <= augment.BLUR_RADIUS) for sigma in sigma_2C[:, c]
        )
        expected_HW = np.outer(down, across) / (down.sum() * across.sum())
        np.testing.assert_allclose(blurred_1CHW[0, c], expected_HW, atol=1e-6)


def test_noise_has_the_stated_deviation_and_differs_between_slices() -> None:
    slices_NCHW = torch.ones(2, 1, 128, 128)
    noisy = dataclasses.replace(still(2, 128, 128, 1), sigma_NC=np.full((2, 1), 0.1, np.float32))
    changed_NCHW, _ = apply_augmentation(noisy, slices_NCHW, torch.zeros(2, 1, 128, 128))
    noise_2P = (changed_NCHW - 1).flatten(1).numpy()
    np.testing.assert_allclose(noise_2P.std(axis=1), 0.1, rtol=0.03)  # 16 384 samples: standard error 0.6 %
    np.testing.assert_allclose(noise_2P.mean(axis=1), 0, atol=0.004)
    assert abs(np.corrcoef(noise_2P)[0, 1]) < 0.04


def test_lost_modalities_are_all_zero_and_the_others_untouched() -> None:
    slices_1CHW, target_11HW = batch()
    lost = changed(kept_NC=[[True, False, True, False]], offset_NC=[[0.1] * 4])
    changed_1CHW, same_11HW = apply_augmentation(lost, slices_1CHW, target_11HW)
    assert not changed_1CHW[:, [1, 3]].any()
    assert torch.equal(changed_1CHW[:, [0, 2]], slices_1CHW[:, [0, 2]] + 0.1)
    assert torch.equal(same_11HW, target_11HW)


def test_a_brain_value_that_would_become_zero_stays_brain() -> None:
    halved = changed(gain_NC=[[0.5] * 4], offset_NC=[[-0.5] * 4])
    changed_1CHW, _ = apply_augmentation(halved, three_pixels(1, 3), NO_TARGET)
    assert changed_1CHW[0, 0, 10, 10:13].tolist() == [pytest.approx(1e-6), 1, 0]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_intensities_keep_background_brain_and_labels(seed: int) -> None:
    """With every operation on: exactly 0 where the warp alone gives 0, and nowhere else but in lost modalities."""
    slices_1CHW, target_11HW = brain_slice(seed % 1000)
    with pytest.MonkeyPatch.context() as monkeypatch:
        always(monkeypatch)
        drawn = sample_augmentation(np.random.default_rng(seed), slices_1CHW.shape, 0.5)
    changed_1CHW, changed_11HW = apply_augmentation(drawn, slices_1CHW, target_11HW)
    warped_1CHW, warped_11HW = apply_augmentation(geometry_of(drawn, SIDE, SIDE), slices_1CHW, target_11HW)
    kept_1CHW = torch.from_numpy(drawn.kept_NC)[:, :, None, None]
    assert torch.equal(changed_1CHW != 0, (warped_1CHW != 0) & kept_1CHW)
    assert (warped_1CHW == 0).any()
    assert torch.isfinite(changed_1CHW).all()
    assert torch.equal(changed_11HW, warped_11HW)
    assert set(changed_11HW.unique().tolist()) <= {0.0, 1.0}


def test_an_augmentation_can_be_replayed() -> None:
    slices_NCHW, target_N1HW = batch(6)
    before = slices_NCHW.clone(), target_N1HW.clone()
    drawn = sample_augmentation(np.random.default_rng(5), slices_NCHW.shape, 0.5)
    first, second = (apply_augmentation(drawn, slices_NCHW, target_N1HW) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], slices_NCHW)
    assert torch.equal(slices_NCHW, before[0])
    assert torch.equal(target_N1HW, before[1])


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 6),
    height=st.integers(9, 70),
    width=st.integers(9, 70),
    micro_batch=st.integers(1, 4),
    everything=st.booleans(),
)
@example(seed=0, n=5, height=192, width=160, micro_batch=2, everything=True)  # large enough for several threads
@settings(max_examples=60)
def test_parts_give_exactly_what_the_whole_gives(
    seed: int, n: int, height: int, width: int, micro_batch: int, everything: bool
) -> None:
    slices_NCHW, target_N1HW = batch(n, height, width)
    slices_NCHW[:, :, : height // 3] = 0
    shape_NCHW = slices_NCHW.shape
    slices_NCHW = slices_NCHW.repeat(1, 1 + 2 * (seed % 2), 1, 1)  # with and without neighbours
    with pytest.MonkeyPatch.context() as monkeypatch:
        if everything:
            always(monkeypatch)
        drawn = sample_augmentation(np.random.default_rng(seed), shape_NCHW, 0.3)
    whole = apply_augmentation(drawn, slices_NCHW, target_N1HW)
    parts = [
        apply_augmentation(drawn.part(start, start + micro_batch), *(v[start : start + micro_batch] for v in pair))
        for pair in [(slices_NCHW, target_N1HW)]
        for start in range(0, n, micro_batch)
    ]
    for got, want in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
        assert torch.equal(got, want)


def test_a_modality_of_the_neighbours_is_changed_as_the_slices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three equal slices as 12 channels stay equal, and are what one of them becomes; only the noise is their own."""
    always(monkeypatch)
    monkeypatch.setattr(augment, "BLUR_PROBABILITY", 1.0)
    slices_NCHW, target_N1HW = batch(3)
    drawn = sample_augmentation(np.random.default_rng(0), slices_NCHW.shape, 0.5)
    noisy_NCHW, _ = apply_augmentation(drawn, slices_NCHW.repeat(1, 3, 1, 1), target_N1HW)
    assert not torch.equal(noisy_NCHW[:, :4], noisy_NCHW[:, 4:8])
    drawn = dataclasses.replace(drawn, sigma_NC=np.zeros_like(drawn.sigma_NC))
    alone_NCHW, target_of_one = apply_augmentation(drawn, slices_NCHW, target_N1HW)
    three_NCHW, target_of_three = apply_augmentation(drawn, slices_NCHW.repeat(1, 3, 1, 1), target_N1HW)
    torch.testing.assert_close(three_NCHW, alone_NCHW.repeat(1, 3, 1, 1))
    assert torch.equal(target_of_three, target_of_one)
    assert not drawn.kept_NC.all(), "a lost modality is lost in the neighbours too"


def test_draws_follow_from_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    one, same, other = (sample_augmentation(np.random.default_rng(seed), (9, 4, 40, 32), 0.5) for seed in (1, 1, 2))
    for field in dataclasses.fields(Augmentation):
        value = getattr(one, field.name)
        assert value.dtype == {"seed_N": np.int64, "kept_NC": bool}.get(field.name, np.float32)
        assert len({row.tobytes() for row in value}) > 1, "each slice has its own draw"
        np.testing.assert_array_equal(value, getattr(same, field.name))
        assert (value != getattr(other, field.name)).any()


def only(monkeypatch: pytest.MonkeyPatch, kept: str) -> Augmentation:
    """Return a thousand draws with all geometry but one kind switched off."""
    monkeypatch.setattr(augment, "WARP_PROBABILITY", 1.0)
    for name in {"FLIP_PROBABILITY", "SCALE", "SHEAR", "ROTATION_DEGREES"} - {kept}:
        monkeypatch.setattr(augment, name, 0.0)
    return sample_augmentation(np.random.default_rng(0), (DRAWS, 4, 40, 24), 0.0)


def assert_fills(values: np.ndarray, low: float, high: float) -> None:
    """All values lie in [low, high] and come close to both ends."""
    margin = (high - low) * 0.02
    assert low - 1e-6 <= values.min() < low + margin
    assert high - margin < values.max() <= high + 1e-6


def test_only_symmetric_slices_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others are warped as they would be without the flip."""
    monkeypatch.setattr(augment, "WARP_PROBABILITY", 1.0)
    symmetric_N = np.arange(DRAWS) % 2 == 0
    any_N, some_N = (
        sample_augmentation(np.random.default_rng(0), (DRAWS, 4, 40, 24), 0.0, symmetric_N).matrix_N22
        for symmetric_N in (True, symmetric_N)
    )
    assert 0.45 < (np.linalg.det(some_N[symmetric_N]) < 0).mean() < 0.55
    assert (np.linalg.det(some_N[~symmetric_N]) > 0).all()
    np.testing.assert_array_equal(some_N[symmetric_N], any_N[symmetric_N])
    np.testing.assert_allclose(abs(np.linalg.det(some_N)), abs(np.linalg.det(any_N)), rtol=1e-5)


def test_half_of_the_slices_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "FLIP_PROBABILITY").matrix_N22
    flipped_N = matrix_N22[:, 0, 0] == -1
    assert 0.45 < flipped_N.mean() < 0.55
    np.testing.assert_array_equal(matrix_N22[flipped_N], np.broadcast_to(FLIP, (flipped_N.sum(), 2, 2)))
    np.testing.assert_array_equal(matrix_N22[~flipped_N], np.broadcast_to(IDENTITY, ((~flipped_N).sum(), 2, 2)))


def test_scales_reach_from_0_75_to_1_25(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "SCALE").matrix_N22
    for axis in range(2):
        assert_fills(1 / matrix_N22[:, axis, axis], 0.75, 1.25)
    assert abs(np.corrcoef(matrix_N22[:, 0, 0], matrix_N22[:, 1, 1])[0, 1]) < 0.1, "two scalings, not one"
    assert not matrix_N22[:, 0, 1].any()
    assert not matrix_N22[:, 1, 0].any()


def test_shears_reach_0_1_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "SHEAR").matrix_N22
    horizontal, vertical = matrix_N22[:, 0, 1], matrix_N22[:, 1, 0]
    assert_fills(horizontal, -0.1, 0.1)
    assert_fills(vertical, -0.1, 0.1)
    np.testing.assert_array_equal(matrix_N22[:, 0, 0], 1)
    np.testing.assert_allclose(matrix_N22[:, 1, 1], 1 + horizontal * vertical, rtol=1e-6)


def test_rotations_reach_30_degrees_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_N22 = only(monkeypatch, "ROTATION_DEGREES").matrix_N22
    assert_fills(np.rad2deg(np.arctan2(matrix_N22[:, 1, 0], matrix_N22[:, 0, 0])), -30, 30)
    gram_N22 = matrix_N22 @ matrix_N22.transpose(0, 2, 1)
    np.testing.assert_allclose(gram_N22, np.broadcast_to(np.eye(2), gram_N22.shape), atol=1e-6)


def test_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    drawn = sample_augmentation(np.random.default_rng(0), (DRAWS, 4, 40, 24), 0.0)
    assert_fills(drawn.shift_N2[:, 0], -2.4, 2.4)
    assert_fills(drawn.shift_N2[:, 1], -4.0, 4.0)
    for field in dataclasses.fields(Augmentation):
        assert getattr(drawn, field.name).shape == getattr(still(DRAWS, 40, 24), field.name).shape
    assert_fills(np.log(drawn.gamma_NC), -np.log(1.5), np.log(1.5))
    assert 0.45 < (drawn.gamma_NC < 1).mean() < 0.55
    np.testing.assert_allclose(drawn.bias_NChw.mean(axis=(2, 3)), 0, atol=1e-7)
    spread_NC = np.ptp(drawn.bias_NChw, axis=(2, 3))
    assert 0.3 < spread_NC.mean() < spread_NC.max() <= 0.4
    assert_fills(drawn.gain_NC, 0.7, 1.3)
    assert_fills(drawn.offset_NC, -0.3, 0.3)
    assert_fills(drawn.blur_N2C, 0.0, 2.0)
    assert_fills(drawn.sigma_NC, 0.0, 0.15)
    assert len(np.unique(drawn.seed_N)) == DRAWS


def test_operations_are_on_as_often_as_stated_and_else_neutral() -> None:
    """Each for whole slices and on its own; 4000 draws: the standard error is below 0.8 %."""
    drawn = sample_augmentation(np.random.default_rng(0), (4000, 4, 16, 16), 0.0)
    neutral = still(4000, 16, 16)
    on: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(Augmentation)[:-2]:
        differs = getattr(drawn, field.name) != getattr(neutral, field.name)
        shares_N = differs.reshape(4000, -1).mean(axis=1)
        on[field.name] = shares_N > 0
        if field.name != "matrix_N22":
            assert (shares_N[on[field.name]] == 1).all()
    expected = {"gamma_NC": 0.3, "bias_NChw": 0.3, "gain_NC": 0.5, "blur_N2C": 0.2, "sigma_NC": 0.2, "matrix_N22": 0.9}
    for name, share in expected.items():
        assert on[name].mean() == pytest.approx(share, abs=0.025), name
    np.testing.assert_array_equal(on["offset_NC"], on["gain_NC"])
    for name in GEOMETRY[1:]:
        np.testing.assert_array_equal(on[name], on["matrix_N22"])
    correlations = np.corrcoef([on[name] for name in expected])
    assert abs(correlations - np.eye(6)).max() < 0.06


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("channels", "most"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_modality_dropout_loses_one_or_two_never_all(dropout: float, channels: int, most: int) -> None:
    drawn = sample_augmentation(np.random.default_rng(0), (4000, channels, 16, 16), dropout)
    lost_N = (~drawn.kept_NC).sum(axis=1)
    assert lost_N.max() == (most if dropout else 0)
    assert (lost_N > 0).mean() == pytest.approx(dropout if most else 0, abs=0.03)
    if most == 2:
        assert (lost_N == 2).mean() == pytest.approx(dropout / 2, abs=0.03)
    if most:
        np.testing.assert_allclose((~drawn.kept_NC).mean(axis=0), lost_N.mean() / channels, atol=0.03)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5), height=st.integers(8, 64), width=st.integers(8, 64))
@settings(max_examples=40)
def test_area_changes_by_the_scales_alone(seed: int, n: int, height: int, width: int) -> None:
    """Flip, shears and rotation keep the area, whatever the order."""
    drawn = sample_augmentation(np.random.default_rng(seed), (n, 4, height, width), 0.0)
    area_N = np.abs(np.linalg.det(drawn.matrix_N22))
    assert ((area_N > 1 / 1.25**2 - 1e-5) & (area_N < 1 / 0.75**2 + 1e-5)).all()


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
        with pytest.MonkeyPatch.context() as monkeypatch:
            always(monkeypatch)
            drawn = sample_augmentation(rng, ramps_N2HW.shape, 0.0)
        elastic = dataclasses.replace(still(20, BRATS_SIDE, BRATS_SIDE, 2), elastic_N2hw=drawn.elastic_N2hw)
        moved_N2HW = apply_augmentation(elastic, ramps_N2HW, target_N1HW)[0] - ramps_N2HW
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


def sizes_allocated(draw: Augmentation) -> set[int]:
    """Bytes of the storages that `apply_augmentation` allocates for a draw, each size once."""
    sizes = set[int]()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.update(leaf.untyped_storage().nbytes() for leaf in tree_flatten(result)[0] if torch.is_tensor(leaf))
            return result

    with Sizes():
        apply_augmentation(draw, *batch(3))
    return sizes


def test_no_draw_allocates_sizes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise blocks of ever new sizes would pile up in a card's allocator, which counts them against the budget."""
    draws = [sample_augmentation(np.random.default_rng(seed), (3, 4, SIDE, SIDE), 0.5) for seed in range(40)]
    always(monkeypatch)
    monkeypatch.setattr(augment, "BLUR_PROBABILITY", 1.0)
    known = sizes_allocated(sample_augmentation(np.random.default_rng(0), (3, 4, SIDE, SIDE), 0.0))
    large = {size for draw in draws for size in sizes_allocated(draw) - known if size > 4096}
    assert not large

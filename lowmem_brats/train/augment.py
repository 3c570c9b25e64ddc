"""Change training slices at random: the paper's nine warps in one interpolation, intensities, lost modalities.

Source of the warps: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor
Segmentation", Table I: left–right flip, two translations, two scalings, two shears, rotation, elastic transform. Two
deviations: every warp is about the slice's centre, and what comes from outside the slice is background. Gamma, noise
and gain are among the augmentations of Isensee et al. 2021, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation"; how often and how strongly each acts, the offset and the bias field are
this project's choice.

Parameters are sampled first and applied later, so an augmentation can be replayed. A slice gives the same result
whatever else is in its batch, so micro-batches give exactly what the whole batch gives.
Shape suffixes: N slices, C modalities, K regions, H W in-plane, h w a coarse grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

WARP_PROBABILITY = 0.9  # of all nine together: the network also sees some slices as they are
FLIP_PROBABILITY = 0.5
TRANSLATION = 0.1  # of the slice's size
SCALE = 0.25  # the paper's 0.1, 0.05 and 15 are for hundreds of patients
SHEAR = 0.1
ROTATION_DEGREES = 30.0
ELASTIC_ALPHA, ELASTIC_SIGMA = 600.0, 30.0  # pixels
ELASTIC_STEP = 8  # pixels; the field is so smooth that one noise value per 8×8 pixels describes it

GAMMA_PROBABILITY, GAMMA = 0.3, 1.5  # exponents from 1 / GAMMA (brightens) to GAMMA (darkens), each half the time
BIAS_PROBABILITY, BIAS = 0.3, 0.2  # largest logarithm of the field at the points of a coarse grid
BIAS_GRID = 4  # points along each side
BIAS_MEAN = 3.0
"""Mean ÷ standard deviation of the brain's values before z-scoring: 1.9 (T2) to 4.3 (T1) in two BraTS cases.

A bias field multiplies the scanner's values I, but slices hold z = (I − mean) / deviation. With c = mean / deviation,
I = deviation · (z + c), so I · field has the z-score (z + c) · field − c.
"""
CONTRAST_PROBABILITY, GAIN, OFFSET = 0.5, 0.3, 0.3  # offset: of a brain's standard deviation
BLUR_PROBABILITY, BLUR = 0.2, 2.0  # largest sigma in pixels, per modality and axis: as slices of 5 mm look, resampled
BLUR_RADIUS = 5  # pixels to either side
NOISE_PROBABILITY, NOISE = 0.2, 0.15  # largest sigma, of a brain's standard deviation
MOST_LOST = 2  # modalities
EPSILON = 1e-6  # replaces a divisor of 0, and a value of 0 inside the brain, which would mean background

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """The parameters drawn for N slices; those of an operation that is off change nothing."""

    matrix_N22: Floats
    """Centred output (x, y) → centred input (x, y), pixels; off: identity."""
    shift_N2: Floats
    """Added to the input (x, y), pixels; off: 0."""
    elastic_N2hw: Floats
    """Also added to the input (x, y), pixels; smooth, one value per ELASTIC_STEP pixels; off: 0."""
    gamma_NC: Floats
    """Exponent on the brain's values between their least and largest; off: 1."""
    bias_NChw: Floats
    """Logarithm of the bias field; off: 0."""
    gain_NC: Floats
    offset_NC: Floats
    """The brain's values are multiplied by the gain, then the offset is added; off: 1 and 0."""
    blur_N2C: Floats
    """Sigma of the Gaussian blur along H and along W, pixels; off: 0."""
    sigma_NC: Floats
    """Standard deviation of the noise; off: 0."""
    seed_N: npt.NDArray[np.int64]
    """Seed of the noise."""
    kept_NC: npt.NDArray[np.bool_]
    """Which modalities are not lost."""

    def part(self, start: int, stop: int) -> Augmentation:
        """The parameters of slices `start` to `stop`; applying them gives exactly what applying all of them gives."""
        return Augmentation(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    def repeated(self, times: int) -> Augmentation:
        """The parameters for slices with neighbours as further channels: all channels of a modality change alike."""
        repeats = {}
        for field in fields(self):
            axes = field.name.rpartition("_")[2]
            if "C" in axes:
                repeats[field.name] = np.concatenate([getattr(self, field.name)] * times, axis=axes.index("C"))
        return replace(self, **repeats)


def sample_augmentation(
    rng: np.random.Generator,
    shape_NCHW: Sequence[int],
    modality_dropout: float,
    symmetric_N: npt.NDArray[np.bool_] | bool = True,
) -> Augmentation:
    """Draw an augmentation for a batch, independently for each slice.

    `modality_dropout`: share of slices, 0 to 1, that lose one or two modalities, never all; `symmetric_N`: bool, which
    slices may be flipped left to right.
    """
    n, channels, height, width = shape_NCHW

    def uniform(limit: float, *size: int) -> npt.NDArray[np.float64]:
        return rng.uniform(-limit, limit, (n, *size))

    def chosen(probability: float) -> npt.NDArray[np.bool_]:
        return rng.random(n) < probability

    def switched(on_N: npt.NDArray[np.bool_], drawn: npt.NDArray[np.float64], neutral: npt.ArrayLike) -> Floats:
        on = on_N.reshape(n, *[1] * (drawn.ndim - 1))
        return np.where(on, drawn, neutral).astype(np.float32)

    warp_N, contrast_N = chosen(WARP_PROBABILITY), chosen(CONTRAST_PROBABILITY)
    noise_N2hw = uniform(1.0, 2, -(-height // ELASTIC_STEP), -(-width // ELASTIC_STEP))
    bias_NChw = uniform(BIAS, channels, BIAS_GRID, BIAS_GRID)
    bias_NChw -= bias_NChw.mean(axis=(2, 3), keepdims=True)  # a factor common to all pixels would vanish in z-scoring
    return Augmentation(
        matrix_N22=switched(warp_N, _draw_matrices(rng, n, symmetric_N), np.eye(2)),
        shift_N2=switched(warp_N, uniform(TRANSLATION, 2) * (width, height), 0),
        elastic_N2hw=switched(warp_N, _smooth(noise_N2hw), 0),
        gamma_NC=switched(chosen(GAMMA_PROBABILITY), np.exp(uniform(math.log(GAMMA), channels)), 1),
        bias_NChw=switched(chosen(BIAS_PROBABILITY), bias_NChw, 0),
        gain_NC=switched(contrast_N, 1 + uniform(GAIN, channels), 1),
        offset_NC=switched(contrast_N, uniform(OFFSET, channels), 0),
        blur_N2C=switched(chosen(BLUR_PROBABILITY), rng.uniform(0, BLUR, (n, 2, channels)), 0),
        sigma_NC=switched(chosen(NOISE_PROBABILITY), rng.uniform(0, NOISE, (n, channels)), 0),
        seed_N=rng.integers(2**32, size=n),
        kept_NC=draw_kept(rng, n, channels, modality_dropout),
    )


def _draw_matrices(
    rng: np.random.Generator, n: int, symmetric_N: npt.NDArray[np.bool_] | bool
) -> npt.NDArray[np.float64]:
    """Flip, scalings, shears and rotation as one matrix per slice, [N, 2, 2]."""
    flip = np.where((rng.random(n) < FLIP_PROBABILITY) & symmetric_N, -1.0, 1.0)
    scale, shear = 1 / (1 + rng.uniform(-SCALE, SCALE, (2, n))), rng.uniform(-SHEAR, SHEAR, (2, n))
    angle = np.deg2rad(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, n))
    one, zero = np.ones(n), np.zeros(n)
    steps = (
        (flip, zero, zero, one),
        (scale[0], zero, zero, scale[1]),
        (one, zero, shear[0], one),  # vertical shear: y moves with x
        (one, shear[1], zero, one),
        (np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)),
    )
    matrix_N22 = np.eye(2)
    for step in steps:
        matrix_N22 = matrix_N22 @ np.stack(step, axis=-1).reshape(n, 2, 2)
    return matrix_N22


def _smooth(noise_N2hw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Elastic displacement in pixels, with ELASTIC_ALPHA and ELASTIC_SIGMA, from U(−1, 1) noise on the coarse grid."""
    sigma = ELASTIC_SIGMA / ELASTIC_STEP

    def gaussian(length: int) -> npt.NDArray[np.float64]:
        points = np.arange(length) / sigma
        return np.exp(-((points[:, None] - points) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    # One coarse value stands for the mean of 8×8 fine ones, whose standard deviation is 8 times smaller.
    alpha = ELASTIC_ALPHA / ELASTIC_STEP
    return alpha * gaussian(noise_N2hw.shape[2]) @ noise_N2hw @ gaussian(noise_N2hw.shape[3])


def draw_kept(rng: np.random.Generator, n: int, channels: int, dropout: float) -> npt.NDArray[np.bool_]:
    """Draw which modalities stay, [N, C]; at least one. `dropout`: share of slices, or crops, that lose any."""
    lost_N = np.where(rng.random(n) < dropout, rng.integers(1, MOST_LOST, n, endpoint=True), 0)
    order_NC = rng.random((n, channels)).argsort(axis=1)
    return order_NC >= np.minimum(lost_N, channels - 1)[:, None]


def apply_augmentation(augmentation: Augmentation, slices_NCHW: Tensor, target_NKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Warp slices (bilinear) and targets (nearest) by the same coordinates, then change the slices' intensities.

    `slices_NCHW`: fp32 z-scores, background 0, with the C of the draw, or a multiple of it if neighbours are further
    channels; `target_NKHW`: float 0 or 1; both on one device. Returns new tensors of the same shapes, in which
    background and lost modalities are exactly 0 and brain is never 0.
    """
    slices_NCHW, target_NKHW = _warp(augmentation, slices_NCHW, target_NKHW)
    augmentation = augmentation.repeated(slices_NCHW.shape[1] // augmentation.gamma_NC.shape[1])
    return _change_intensities(augmentation, slices_NCHW), target_NKHW


def _warp(augmentation: Augmentation, slices_NCHW: Tensor, target_NKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Warp slices and targets. Slices that do not move are copied: rounding would leak brain into background."""
    height, width = slices_NCHW.shape[2:]
    grid_NHW2 = _grid(augmentation, (height, width), slices_NCHW.device)
    warped_NCHW = functional.grid_sample(slices_NCHW, grid_NHW2, align_corners=False)
    warped_NKHW = functional.grid_sample(target_NKHW, grid_NHW2, mode="nearest", align_corners=False)
    moves_N = (
        (augmentation.matrix_N22 != np.eye(2)).any(axis=(1, 2))
        | augmentation.shift_N2.any(axis=1)
        | augmentation.elastic_N2hw.any(axis=(1, 2, 3))
    )
    for i in np.flatnonzero(~moves_N):
        warped_NCHW[i], warped_NKHW[i] = slices_NCHW[i], target_NKHW[i]
    return warped_NCHW, warped_NKHW


def _grid(augmentation: Augmentation, size_HW: tuple[int, int], device: torch.device) -> Tensor:
    """Where in the input each output pixel comes from: (x, y) from −1 to 1, edge to edge, [N, H, W, 2]."""
    height, width = size_HW
    matrix_N22, shift_N2, elastic_N2hw = (
        torch.from_numpy(values).to(device)
        for values in (augmentation.matrix_N22, augmentation.shift_N2, augmentation.elastic_N2hw)
    )
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H1 = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    pixel_211 = torch.tensor([2 / width, 2 / height], device=device)[:, None, None]
    # Scaled to −1…1 before broadcasting, while there is one value per row, per column and per point of the coarse grid.
    from_x_N21W = (matrix_N22[:, :, :1, None] * x_W + shift_N2[:, :, None, None]) * pixel_211
    from_y_N2H1 = matrix_N22[:, :, 1:, None] * y_H1 * pixel_211
    grid_N2HW = functional.interpolate(elastic_N2hw * pixel_211, size_HW, mode="bilinear", align_corners=False)
    return grid_N2HW.add_(from_x_N21W).add_(from_y_N2H1).permute(0, 2, 3, 1).contiguous()


def _change_intensities(augmentation: Augmentation, slices_NCHW: Tensor) -> Tensor:
    """Change intensities in place.

    Operations that sum over pixels or draw noise take one slice at a time, so that micro-batches change nothing.
    """
    device = slices_NCHW.device
    gamma_NC11, gain_NC11, offset_NC11, sigma_NC11, kept_NC11 = (
        torch.from_numpy(values_NC).to(device)[:, :, None, None]
        for values_NC in (
            augmentation.gamma_NC,
            augmentation.gain_NC,
            augmentation.offset_NC,
            augmentation.sigma_NC,
            augmentation.kept_NC,
        )
    )
    brain_NCHW = (slices_NCHW != 0) & kept_NC11
    for i in np.flatnonzero((augmentation.gamma_NC != 1).any(axis=1)):
        slices_NCHW[i] = _apply_gamma(slices_NCHW[i], brain_NCHW[i], gamma_NC11[i])
    for i in np.flatnonzero(augmentation.bias_NChw.any(axis=(1, 2, 3))):
        bias_1Chw = torch.from_numpy(augmentation.bias_NChw[i : i + 1]).to(device)
        size_HW = slices_NCHW.shape[2:]
        field_CHW = functional.interpolate(bias_1Chw, size_HW, mode="bicubic", align_corners=True)[0].exp_()
        slices_NCHW[i] = (slices_NCHW[i] + BIAS_MEAN) * field_CHW - BIAS_MEAN
    slices_NCHW.mul_(gain_NC11).add_(offset_NC11)
    for i in np.flatnonzero(augmentation.blur_N2C.any(axis=(1, 2))):
        slices_NCHW[i] = _blur(slices_NCHW[i], torch.from_numpy(augmentation.blur_N2C[i]).to(device))
    for i in np.flatnonzero(augmentation.sigma_NC.any(axis=1)):
        generator = torch.Generator(device).manual_seed(int(augmentation.seed_N[i]))
        slices_NCHW[i] += sigma_NC11[i] * torch.randn(slices_NCHW[i].shape, generator=generator, device=device)
    slices_NCHW.masked_fill_(slices_NCHW == 0, EPSILON)
    return slices_NCHW.masked_fill_(~brain_NCHW, 0)


def _blur(slice_CHW: Tensor, sigma_2C: Tensor) -> Tensor:
    """Blur each modality along H and along W with a Gaussian, as if the scan had a lower resolution."""
    points_k = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=sigma_2C.device)
    kernel_2Ck = torch.exp(-((points_k / sigma_2C[..., None].clamp(min=EPSILON)) ** 2) / 2)
    kernel_2Ck /= kernel_2Ck.sum(dim=-1, keepdim=True)
    down_C1k1, across_C11k = kernel_2Ck[0][:, None, :, None], kernel_2Ck[1][:, None, None]
    slice_CHW = functional.conv2d(slice_CHW, down_C1k1, padding=(BLUR_RADIUS, 0), groups=len(slice_CHW))
    return functional.conv2d(slice_CHW, across_C11k, padding=(0, BLUR_RADIUS), groups=len(slice_CHW))


def _apply_gamma(slice_CHW: Tensor, brain_CHW: Tensor, gamma_C11: Tensor) -> Tensor:
    """Raise the brain's values, counted from their smallest, to a power, then restore their mean and deviation."""
    low_C11 = slice_CHW.masked_fill(~brain_CHW, torch.inf).amin((1, 2), keepdim=True)
    # Dividing by the range (high − low) is not needed: restoring the deviation removes any factor.
    curved_CHW = (slice_CHW - low_C11).clamp(min=0) ** gamma_C11
    mean_C11, deviation_C11 = _moments(slice_CHW, brain_CHW)
    curved_mean_C11, curved_deviation_C11 = _moments(curved_CHW, brain_CHW)
    return (curved_CHW - curved_mean_C11) * (deviation_C11 / curved_deviation_C11.clamp(min=EPSILON)) + mean_C11


def _moments(slice_CHW: Tensor, brain_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the brain's values, [C, 1, 1] each; NaN where there is none."""
    count_C11 = brain_CHW.sum((1, 2), keepdim=True)
    mean_C11 = (slice_CHW * brain_CHW).sum((1, 2), keepdim=True) / count_C11
    variance_C11 = ((slice_CHW - mean_C11) * brain_CHW).square().sum((1, 2), keepdim=True) / count_C11
    return mean_C11, variance_C11.sqrt()

"""The paper's nine warps, composed into one interpolation, and a change of contrast.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation",
Table I: left–right flip, two translations, two scalings, two shears, rotation, elastic transform. Two deviations: every
warp is about the slice's centre, and what comes from outside the slice is background. Intensity scale and shift are
this project's addition. Sampling is apart from application, so a warp can be replayed.
Shape suffixes: N slices, C modalities, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

FLIP_PROBABILITY = 0.5
TRANSLATION = 0.1  # of the slice's size
SCALE = 0.1
SHEAR = 0.05
ROTATION_DEGREES = 15.0
ELASTIC_ALPHA, ELASTIC_SIGMA = 600.0, 30.0  # pixels
ELASTIC_STEP = 8  # the field is that smooth: one noise value per 8×8 pixels describes it
INTENSITY_SCALE, INTENSITY_SHIFT = 0.2, 0.2  # of a brain's standard deviation

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Warp:
    """One draw for a batch of N slices."""

    matrix_N22: Floats
    """Centred output (x, y) → centred input (x, y), pixels."""
    shift_N2: Floats
    """Added to the input (x, y), pixels."""
    noise_N2hw: Floats
    """U(−1, 1) on the coarse elastic grid."""
    gain_NC: Floats
    offset_NC: Floats


def sample_warp(rng: np.random.Generator, shape_NCHW: Sequence[int]) -> Warp:
    """Draw the parameters of Table I for every slice of a batch, each slice on its own."""
    n, channels, height, width = shape_NCHW

    def uniform(limit: float, *size: int) -> Floats:
        return rng.uniform(-limit, limit, size).astype(np.float32)

    flip = np.where(rng.random(n) < FLIP_PROBABILITY, -1.0, 1.0)
    shift = uniform(TRANSLATION, n, 2) * np.array([width, height], np.float32)
    scale, shear = 1 / (1 + uniform(SCALE, n, 2)), uniform(SHEAR, n, 2)
    angle = uniform(np.deg2rad(ROTATION_DEGREES), n)
    one, zero = np.ones(n), np.zeros(n)
    steps: tuple[list[npt.NDArray[np.floating]], ...] = (
        [flip, zero, zero, one],
        [scale[:, 0], zero, zero, scale[:, 1]],
        [one, zero, shear[:, 1], one],  # vertical shear: y moves with x
        [one, shear[:, 0], zero, one],
        [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)],
    )
    matrix = np.broadcast_to(np.eye(2), (n, 2, 2))
    for step in steps:
        matrix = matrix @ np.stack(step, axis=-1).reshape(n, 2, 2)
    coarse = (-(-height // ELASTIC_STEP), -(-width // ELASTIC_STEP))
    return Warp(
        matrix.astype(np.float32),
        shift,
        uniform(1.0, n, 2, *coarse),
        1 + uniform(INTENSITY_SCALE, n, channels),
        uniform(INTENSITY_SHIFT, n, channels),
    )


def _displacement(noise_N2hw: Floats, size_HW: tuple[int, int]) -> Tensor:
    """Elastic displacement in pixels, [N, H, W, 2], of the stated alpha and sigma."""
    # The mean of 8×8 fine noise values varies 8 times less than one of them.
    sigma = ELASTIC_SIGMA / ELASTIC_STEP
    coarse = gaussian_filter(noise_N2hw, (0, 0, sigma, sigma), mode="constant") * (ELASTIC_ALPHA / ELASTIC_STEP)
    fine = functional.interpolate(torch.from_numpy(coarse), size_HW, mode="bilinear", align_corners=False)
    return fine.permute(0, 2, 3, 1)


def apply_warp(warp: Warp, slices_NCHW: Tensor, target_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Warp slices (bilinear) and targets (nearest) by one set of coordinates, then scale and shift the brain's values.

    `slices_NCHW`: float, background 0; `target_N1HW`: float 0 or 1. Returns new tensors of the same shapes.
    """
    height, width = slices_NCHW.shape[-2:]
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    centred_HW2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    source_NHW2 = torch.einsum("nij,hwj->nhwi", torch.from_numpy(warp.matrix_N22), centred_HW2)
    source_NHW2 += torch.from_numpy(warp.shift_N2)[:, None, None] + _displacement(warp.noise_N2hw, (height, width))
    grid_NHW2 = (source_NHW2 * 2 / torch.tensor([width, height])).to(slices_NCHW.device)
    warped_NCHW = functional.grid_sample(slices_NCHW, grid_NHW2, align_corners=False)
    target_N1HW = functional.grid_sample(target_N1HW, grid_NHW2, mode="nearest", align_corners=False)
    gain, offset = (
        torch.from_numpy(v)[:, :, None, None].to(slices_NCHW.device) for v in (warp.gain_NC, warp.offset_NC)
    )
    return (warped_NCHW * gain + offset) * (warped_NCHW != 0), target_N1HW

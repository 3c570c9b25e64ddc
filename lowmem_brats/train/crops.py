"""Crops of volumes, from which networks of patches learn, and the choice between them and slices.

Source of the augmentation: MONAI's recipe for SegResNet on BraTS, where each axis is flipped half the time, and the
values are scaled and shifted a little. Here this is done to each modality, and its background stays 0.
Shape suffixes: N crops in a batch, C modalities, K regions, Z H W axial slices, rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.config import TrainConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.networks import build_patch_network, patches_of
from lowmem_brats.train.augment import EPSILON, FLIP_PROBABILITY, draw_kept
from lowmem_brats.train.batches import Batch, Batches
from lowmem_brats.train.dataset import frame_of, targets_of
from lowmem_brats.train.windows import AROUND, cut, draw_start, window_of

SCALE, SHIFT = 0.1, 0.1  # the shift in a brain's standard deviations


def batches_of(cases: Sequence[CachedCase], regions: tuple[Region, ...], config: TrainConfig) -> Batches:
    """The batches that a network learns from: crops for one of patches, whose patch is set, or else slices."""
    return (Crops if patches_of(config.network) else Batches)(cases, regions, config)


def size_to_plan(cases: Sequence[CachedCase], config: TrainConfig) -> tuple[int, ...]:
    """What `plan_train` has to know: H and W of the slices or windows; for crops Z, H and W that hold every volume."""
    if patches_of(config.network) is None:
        return window_of(frame_of(cases, config.network.views), config.window)
    return max(case.shape_ZCHW[0] for case in cases), *frame_of(cases, views=1)


class Crops(Batches):
    """Batches of crops. An epoch draws of each case as many as together are as large as the case."""

    def __init__(self, cases: Sequence[CachedCase], regions: tuple[Region, ...], config: TrainConfig) -> None:
        super().__init__(cases, regions, config)
        with torch.device("meta"):
            axes = build_patch_network(config.network).axes
        self._order = (0, *(1 + "ZHW".index(axis) for axis in axes))

    def _size(self) -> tuple[int, ...]:
        return sides_of(self._config.network.patch)

    def _rows_and_weights(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The number of a case, once for each crop."""
        voxels = [math.prod(_shape(case)) for case in self._cases]
        times = [max(round(each / math.prod(self.size)), 1) for each in voxels]
        rows = np.repeat(np.arange(len(times)), times)[:, None]
        return rows, np.ones(len(rows))

    def _gather(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        crops, depths = [], []
        for number in rows[:, 0].tolist():
            case = self._cases[number]
            corner = self._draw_corner(rng, case)
            crop_CZHW = cut(case.slices_ZCHW.swapaxes(0, 1), corner, self.size).astype(np.float32)
            depth_1ZHW = cut(case.depth_ZHW[None], corner, self.size)
            if self._config.augment:
                crop_CZHW = change_intensities(rng, crop_CZHW, self._config.modality_dropout)
                flipped = tuple(axis for axis in (1, 2, 3) if rng.random() < FLIP_PROBABILITY)
                crop_CZHW, depth_1ZHW = np.flip(crop_CZHW, flipped), np.flip(depth_1ZHW, flipped)
            crops.append(crop_CZHW.transpose(self._order))
            depths.append(depth_1ZHW.transpose(self._order))
        seeds = rng.integers(2**32, size=len(rows)).tolist()
        depth_N1 = torch.from_numpy(np.stack(depths)).float()
        return Batch(torch.from_numpy(np.stack(crops)), targets_of(depth_N1, self._regions), None, 0, seeds)

    def _draw_corner(self, rng: np.random.Generator, case: CachedCase) -> list[int]:
        """Where a crop begins: mostly around the tumour, which matters where crops are smaller than brains.

        It lies inside the volume or, along an axis where it is longer, holds all of it.
        """
        box_A2, shape_ZHW = case.box_of(Region.WT), _shape(case)
        around = self._config.balance and rng.random() < AROUND
        corner = []
        for axis, (full, side) in enumerate(zip(shape_ZHW, self.size, strict=True)):
            start = draw_start(rng, box_A2[axis], side) if around and box_A2 else draw_start(rng, (0, full), side, 0)
            corner.append(min(max(start, min(0, full - side)), max(0, full - side)))
        return corner


def change_intensities(
    rng: np.random.Generator, crop_CZHW: npt.NDArray[np.float32], modality_dropout: float
) -> npt.NDArray[np.float32]:
    """Scale and shift each modality of a crop at random; a new array.

    `crop_CZHW`: z-scores, background 0, which stays 0, while no voxel of the brain becomes 0; `modality_dropout`: share
    of crops that lose one or two modalities.
    """
    shape_C111 = (len(crop_CZHW), 1, 1, 1)
    gain_C111, shift_C111 = 1 + rng.uniform(-SCALE, SCALE, shape_C111), rng.uniform(-SHIFT, SHIFT, shape_C111)
    kept_C111 = draw_kept(rng, 1, len(crop_CZHW), modality_dropout).reshape(shape_C111)
    changed_CZHW = crop_CZHW * gain_C111.astype(np.float32) + shift_C111.astype(np.float32)
    changed_CZHW[changed_CZHW == 0] = EPSILON
    changed_CZHW[(crop_CZHW == 0) | ~kept_C111] = 0
    return changed_CZHW


def _shape(case: CachedCase) -> tuple[int, int, int]:
    depth, _, height, width = case.shape_ZCHW
    return depth, height, width

"""The batches of a training: which slices each step learns from and how they are augmented, read one batch ahead.

Every draw follows from the seed and the step's number, so a resumed training draws what it would have drawn without
the interruption. Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lowmem_brats.config import MODALITIES, TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.data.slices import VIEWS
from lowmem_brats.engine import parallel
from lowmem_brats.engine.step import split_batch
from lowmem_brats.train.augment import Augmentation, apply_augmentation, sample_augmentation
from lowmem_brats.train.dataset import frame_of, gather, row_weights, targets_of, training_rows
from lowmem_brats.train.read_ahead import read_ahead
from lowmem_brats.train.windows import BORDER, centred, draw_corners, window_of


class Batches:
    """All batches of one network's training; with several processes, the share of this one."""

    def __init__(self, cases: Sequence[CachedCase], regions: tuple[Region, ...], config: TrainConfig) -> None:
        self._cases, self._regions, self._config = cases, regions, config
        self.size = self._size()
        """H and W of the slices or windows; of crops Z, H and W."""
        self._rows, weights = self._rows_and_weights()
        self._until = weights.cumsum() / weights.sum()

    @property
    def per_epoch(self) -> int:
        """Steps per epoch: together they draw as many slices as there are."""
        return max(len(self._rows) // self._config.batch, 1)

    def read(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), beginning with number `first`; each is read one batch ahead."""
        order = self._draw(self._rng(0, epoch))
        return read_ahead(partial(self._read, order, epoch, n) for n in range(first, self.per_epoch))

    def _draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw as many rows as there are, in random order: each as often as its weight says, rounded up or down."""
        points = (np.arange(len(self._rows)) + rng.random()) / len(self._rows)
        return rng.permutation(np.minimum(np.searchsorted(self._until, points), len(self._rows) - 1))

    def _read(self, order: npt.NDArray[np.int64], epoch: int, number: int) -> Batch:
        size = self._config.batch
        chosen = order[number * size : (number + 1) * size][parallel.rank() :: parallel.size()]
        return self._gather(self._rows[chosen], self._rng(1 + parallel.rank(), epoch * self.per_epoch + number))

    def _size(self) -> tuple[int, ...]:
        return window_of(frame_of(self._cases, self._config.network.views), self._config.window)

    def _rows_and_weights(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What an epoch draws from, and how often it draws each, relative to each other."""
        rows = training_rows(self._cases, self._regions[0], self._config.network.views)
        return rows, row_weights(self._cases, rows) if self._config.balance else np.ones(len(rows))

    def _gather(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Read a batch of rows, and draw how they are augmented."""
        config, size_HW = self._config, (self.size[0], self.size[1])
        border = BORDER // 2 if config.augment and config.window else 0
        if config.window:
            corners_N2 = draw_corners(rng, self._cases, rows, self._regions[0], size_HW) - border
        else:
            corners_N2 = centred(self._cases, rows, size_HW)
        height, width = (side + 2 * border for side in size_HW)
        slices_NCHW, depth_N1HW = gather(self._cases, rows, corners_N2, (height, width), config.network.context)
        augmentation = None
        if config.augment:
            shape_NCHW = (len(rows), len(MODALITIES), height, width)
            symmetric_N = np.array([view.symmetric for view in VIEWS])[rows[:, 1]]
            augmentation = sample_augmentation(rng, shape_NCHW, config.modality_dropout, symmetric_N)
        seeds = rng.integers(2**32, size=len(rows)).tolist()
        return Batch(slices_NCHW, targets_of(depth_N1HW, self._regions), augmentation, border, seeds)

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, self._regions[0].depth, purpose, number])


@dataclass(frozen=True)
class Batch:
    """The slices, or windows of them, and targets of one step, on the host, not augmented yet.

    Crops of volumes have one axis more, lie in the order of their network's axes, and are augmented already.
    """

    slices_NCHW: Tensor
    target_NKHW: Tensor
    augmentation: Augmentation | None
    border: int = 0
    """Pixels at each edge that are there for the augmentation only, and are cut off after it."""
    seeds: Sequence[int] = ()
    """One per slice, of what a network drops at random."""

    def micro_batches(self, size: int, device: str) -> list[tuple[Tensor, Tensor]]:
        """Cut the batch into parts of at most `size` slices, augment each on `device` and bring it back to the host."""
        parts = split_batch(self.slices_NCHW, self.target_NKHW, size)
        if self.augmentation is None:
            return parts
        augmented = []
        for number, (slices_NCHW, target_NKHW) in enumerate(parts):
            draw = self.augmentation.part(number * size, number * size + len(slices_NCHW))
            slices_NCHW, target_NKHW = apply_augmentation(draw, slices_NCHW.to(device), target_NKHW.to(device))
            augmented.append((self._without_border(slices_NCHW).cpu(), self._without_border(target_NKHW).cpu()))
        return augmented

    def _without_border(self, pixels_NCHW: Tensor) -> Tensor:
        height, width = pixels_NCHW.shape[2:]
        return pixels_NCHW[..., self.border : height - self.border, self.border : width - self.border].contiguous()

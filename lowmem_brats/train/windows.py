"""Windows: the parts of slices that a network learns from, mostly around what its parent network will have found.

Shape suffixes: N slices in a batch, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase

AROUND = 0.85
"""Share of the windows in slices with tumour that lie around it; the others lie anywhere, so that the rest is known."""
MARGIN = 8
"""Pixels around a region that its window holds too, where it is large enough."""
BORDER = 24
"""Pixels that a window is larger while it is augmented, so that a warp brings in few that are not in the image."""

Corners = npt.NDArray[np.int64]


def window_of(frame_HW: tuple[int, int], window: int) -> tuple[int, int]:
    """The size of a window in pixels, no larger than the frame that holds every slice; `window` 0: the frame."""
    height, width = (min(side, window) if window else side for side in frame_HW)
    return height, width


def sizes_of(cases: Sequence[CachedCase], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """H and W of each row's slice, [N, 2]."""
    return np.array([cases[i].sizes_HW(view + 1)[view] for i, view, _ in rows.tolist()], np.int64)


def centred(cases: Sequence[CachedCase], rows: npt.NDArray[np.int64], frame_HW: tuple[int, int]) -> Corners:
    """Where a frame has to begin to have each row's slice in its middle, [N, 2]; negative where it is larger."""
    return -((np.array(frame_HW) - sizes_of(cases, rows)) // 2)


def draw_corners(
    rng: np.random.Generator,
    cases: Sequence[CachedCase],
    rows: npt.NDArray[np.int64],
    region: Region,
    window_HW: tuple[int, int],
) -> Corners:
    """Draw where in each row's slice a window begins, [N, 2]; it may reach beyond the slice.

    `rows`: of `dataset.training_rows` for `region`; its window lies around the region's parent, WT's around WT. It
    is moved at random as far as the region and a margin stay inside or, if they are larger, as far as the window stays
    inside them.
    """
    parent = region.parent or region
    corners = []
    for (i, view, number), size_HW in zip(rows.tolist(), sizes_of(cases, rows).tolist(), strict=True):
        box_A2 = cases[i].box_of(parent, view)
        here = box_A2 is not None and box_A2[0][0] <= number < box_A2[0][1] and rng.random() < AROUND
        spans = box_A2[1:] if here and box_A2 else [(0, size) for size in size_HW]
        corners.append([draw_start(rng, span, side) for span, side in zip(spans, window_HW, strict=True)])
    return np.array(corners, np.int64)


def draw_start(rng: np.random.Generator, span: tuple[int, int], side: int, margin: int = MARGIN) -> int:
    """Draw where along an axis a window begins: around a span of pixels, or inside it, as `draw_corners` says."""
    start, end = span[0] - margin, span[1] + margin - side
    return int(rng.integers(min(start, end), max(start, end) + 1))


def cut(array: npt.NDArray[np.generic], corner: Sequence[int], size: Sequence[int]) -> npt.NDArray[np.generic]:
    """Cut a window, or a crop of a volume, out of the last axes, with zeros beyond their ends; a new array.

    `corner`: where it begins along each of these axes; `size`: how long it is.
    """
    first_axis = array.ndim - len(size)
    taken = np.zeros((*array.shape[:first_axis], *size), array.dtype)
    source: list[Any] = [...]
    target: list[Any] = [...]
    for start, length, full in zip(corner, size, array.shape[first_axis:], strict=True):
        first, last = max(start, 0), min(start + length, full)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - start, max(first, last) - start))
    taken[tuple(target)] = array[tuple(source)]
    return taken

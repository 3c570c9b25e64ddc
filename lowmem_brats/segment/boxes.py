"""Boxes around what was found so far, since only there a network has to look closely.

Shape suffixes: Z H W the axes of a stack of axial slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.segment.cleanup import TOUCHING

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Box:
    """A part of a stack: the first voxel along Z, H and W, and the one after the last."""

    start_ZHW: tuple[int, int, int]
    stop_ZHW: tuple[int, int, int]

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """The index that cuts the box out of an array [Z, H, W]."""
        z, h, w = (slice(start, stop) for start, stop in zip(self.start_ZHW, self.stop_ZHW, strict=True))
        return z, h, w

    @property
    def shape_ZHW(self) -> tuple[int, int, int]:
        """Its size in voxels."""
        z, h, w = (stop - start for start, stop in zip(self.start_ZHW, self.stop_ZHW, strict=True))
        return z, h, w

    def overlaps(self, other: Box) -> bool:
        """Whether a voxel lies in both."""
        return all(
            max(starts) < min(stops)
            for starts, stops in zip(
                zip(self.start_ZHW, other.start_ZHW, strict=True),
                zip(self.stop_ZHW, other.stop_ZHW, strict=True),
                strict=True,
            )
        )


def boxes_around(found_ZHW: Mask, margin: int, multiple_ZHW: Sequence[int]) -> list[Box]:
    """Boxes that hold every component of a mask and a margin around it; no two of them overlap.

    `margin`: voxels on every side, less at the stack's edge; `multiple_ZHW`: what the sizes along Z, H and W have to be
    multiples of, as the stack's own are. A box that overlaps another is joined with it.
    """
    boxes = [_grown(place, margin, multiple_ZHW, found_ZHW.shape) for place in _extents(found_ZHW)]
    done = list[Box]()
    while boxes:
        box = boxes.pop()
        touched = [other for other in done if box.overlaps(other)]
        if not touched:
            done.append(box)
            continue
        done = [other for other in done if other not in touched]
        corners = [box, *touched]
        starts = np.min([each.start_ZHW for each in corners], axis=0)
        stops = np.max([each.stop_ZHW for each in corners], axis=0)
        boxes.append(_grown(tuple(map(slice, starts, stops)), 0, multiple_ZHW, found_ZHW.shape))
    return sorted(done, key=lambda box: box.start_ZHW)


def _extents(found_ZHW: Mask) -> list[tuple[slice, ...]]:
    component_ZHW, _ = ndimage.label(found_ZHW, TOUCHING)
    return [place for place in ndimage.find_objects(component_ZHW) if place]


def _grown(place: tuple[slice, ...], margin: int, multiple_ZHW: Sequence[int], shape_ZHW: Sequence[int]) -> Box:
    starts, stops = list[int](), list[int]()
    for inside, multiple, full in zip(place, multiple_ZHW, shape_ZHW, strict=True):
        first, last = max(inside.start - margin, 0), min(inside.stop + margin, full)
        size = min(-(-(last - first) // multiple) * multiple, full)
        start = min(max(first - (size - (last - first)) // 2, 0), full - size)
        starts.append(int(start))
        stops.append(int(start + size))
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))

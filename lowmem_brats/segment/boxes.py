"""Boxes around what was found so far, and networks over these boxes alone.

Shape suffixes: Z H W the axes of a stack of axial slices, C modalities, K regions, N slices of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from lowmem_brats.data.labels import TOUCHING, Mask
from lowmem_brats.data.slices import VIEWS, SliceStack, occupied
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork
from lowmem_brats.segment.stack import OnProgress, Prediction, count_passes, predict_stack


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

    def in_volume(self, stack: SliceStack) -> list[list[int]]:
        """The first voxel of the volume along X, Y and Z that the box holds, and the one after the last."""
        corners_ZHW = zip(self.start_ZHW, self.stop_ZHW, stack.origin_ZHW, (1, *stack.stretch_HW), strict=True)
        edges_ZYX = [(origin + start // k, origin - (-stop // k)) for start, stop, origin, k in corners_ZHW]
        full_XYZ = zip(reversed(edges_ZYX), stack.shape_XYZ, strict=True)
        inside_XYZ = [(max(first, 0), min(end, full)) for (first, end), full in full_XYZ]
        return [list(edge) for edge in zip(*inside_XYZ, strict=True)]

    def overlaps(self, other: Box) -> bool:
        """Whether a voxel lies in both."""
        starts = np.maximum(self.start_ZHW, other.start_ZHW)
        return bool((starts < np.minimum(self.stop_ZHW, other.stop_ZHW)).all())


def boxes_around(found_ZHW: Mask, margin: int, stride: int, flat: bool) -> list[Box]:
    """Boxes that hold every component of a mask and a margin around it; no two of them overlap.

    `margin`: voxels on every side, less at the stack's edge; `stride`: what the sizes of boxes are multiples of, those
    along Z only unless the stack is `flat`. A box that overlaps another is joined with it.
    """
    multiple_ZHW = (1 if flat else stride, stride, stride)
    component_ZHW, _ = ndimage.label(found_ZHW, TOUCHING)
    places = [place for place in ndimage.find_objects(component_ZHW) if place]
    boxes = [_grown(place, margin, multiple_ZHW, found_ZHW.shape) for place in places]
    apart = list[Box]()
    while boxes:
        box = boxes.pop()
        touched = [other for other in apart if box.overlaps(other)]
        if not touched:
            apart.append(box)
            continue
        apart = [other for other in apart if other not in touched]
        starts = np.min([each.start_ZHW for each in (box, *touched)], axis=0)
        stops = np.max([each.stop_ZHW for each in (box, *touched)], axis=0)
        boxes.append(_grown(tuple(map(slice, starts, stops)), 0, multiple_ZHW, found_ZHW.shape))
    return sorted(apart, key=lambda box: box.start_ZHW)


def _grown(place: tuple[slice, ...], margin: int, multiple_ZHW: Sequence[int], shape_ZHW: Sequence[int]) -> Box:
    starts, stops = list[int](), list[int]()
    for inside, multiple, full in zip(place, multiple_ZHW, shape_ZHW, strict=True):
        first, last = max(inside.start - margin, 0), min(inside.stop + margin, full)
        size = min(-(-(last - first) // multiple) * multiple, full)
        start = min(max(first - (size - (last - first)) // 2, 0), full - size)
        starts.append(int(start))
        stops.append(int(start + size))
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


def predict_boxes(
    network_of: Callable[[int], SliceNetwork],
    stack: SliceStack,
    boxes: Sequence[Box],
    parent_ZHW: Mask,
    views: int,
    plan: InferencePlan,
    mirror: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Prediction:
    """Run networks inside boxes, on slices that hold some of the parent region; the logits are 0 everywhere else.

    To a network a box is a small stack, so it sees nothing of what lies beyond its faces. `parent_ZHW`: where the
    parent region was found, for WT the brain; otherwise as `predict_stack`.
    """
    sum_KZHW = np.zeros((network_of(0).outputs, *parent_ZHW.shape), np.float32)
    ran_VN = [np.zeros_like(active_N) for active_N in occupied(parent_ZHW, views)]
    active_BVN = [occupied(parent_ZHW[box.inside], views) for box in boxes]
    total = sum(count_passes(active_VN, mirror) for active_VN in active_BVN)
    run = pixels = peak_bytes = 0
    for box, active_VN in zip(boxes, active_BVN, strict=True):
        z, h, w = box.inside

        def tell(done: int, _: int, before: int = run) -> None:
            on_progress(before + done, total)

        slices_ZCHW = stack.slices_ZCHW[z, :, h, w]
        found = predict_stack(network_of, slices_ZCHW, active_VN, plan, mirror, tell, flat=stack.flat)
        sum_KZHW[:, z, h, w] = found.sum_KZHW
        for view, ran_N, active_N in zip(VIEWS, ran_VN, active_VN, strict=False):
            ran_N[box.inside[view.axis]] |= active_N
        plan = replace(plan, batch=found.batch)  # less after the card ran out of memory
        run, pixels = run + count_passes(active_VN, mirror), pixels + found.pixels
        peak_bytes = max(peak_bytes, found.peak_bytes)
    return Prediction(sum_KZHW, peak_bytes, plan.batch, ran_VN, pixels)

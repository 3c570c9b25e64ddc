"""From a volume to the stacks of slices that the networks see, and back.

Axes: C modalities, X Y Z voxels in LPS order, H W in-plane (H = Y, rows run to posterior; W = X, columns run to the
patient's left: the usual radiological view), N or Z slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FLATTEST = 2.0
"""How many times longer than high a brain may be in voxels. In mm it is 1.3 times, so slices may be 1.5 mm apart."""

THICK = 1.5
"""Times that slices along X or Y may be thicker than the finest axis before they are interpolated."""


@dataclass(frozen=True)
class View:
    """A side from which a stack of axial slices is seen: slices along another of its axes."""

    name: str
    axis: int
    """Of [Z, H, W]: the axis that counts the slices. It changes places with Z."""
    symmetric: bool
    """Whether left and right are along the last axis, so that a mirrored slice shows a head too."""


VIEWS = (
    View("axial", axis=0, symmetric=True),
    View("coronal", axis=1, symmetric=True),
    View("sagittal", axis=2, symmetric=False),
)
"""All views, in the order in which networks see them: a network of two views sees the first two."""


@dataclass(frozen=True)
class SliceStack:
    """The brain's slices, and where they lie in the volume."""

    slices_ZCHW: npt.NDArray[Any]
    """Z-scored, fp16; H and W are multiples of the stride, Z too where the brain can be seen from other sides. A whole
    volume, for imported networks of patches, is fp32 and as large as it is."""
    brain_ZHW: npt.NDArray[np.bool_]
    """Where any modality is not 0."""
    flat: bool
    """Whether the brain can be seen axially only, as `is_flat`."""
    origin_ZHW: tuple[int, int, int]
    """Volume index (z, y, x) of the first slice's first pixel; y and x may be negative where padding was needed."""
    shape_XYZ: tuple[int, int, int]
    """Shape of the volume."""
    stretch_HW: tuple[int, int] = (1, 1)
    """How many pixels along H and W stand for one voxel: more than 1 where sagittal or coronal slices are thick."""

    @property
    def notes(self) -> list[str]:
        """What was done that a user should know."""
        thick = [(view.name, k) for view, k in zip(VIEWS[1:], self.stretch_HW, strict=True) if k > 1]
        return [f"thick {name} slices are interpolated to {k} times as many for the networks" for name, k in thick]


def zscore_brain(images_CXYZ: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Z-score each modality over its own non-zero voxels; zeros stay 0, an all-zero modality too. New array."""
    scored_CXYZ = np.zeros_like(images_CXYZ)
    for image_XYZ, scored_XYZ in zip(images_CXYZ, scored_CXYZ, strict=True):
        brain_XYZ = image_XYZ != 0
        values = image_XYZ[brain_XYZ]
        if values.size:
            deviation = values.std(dtype=np.float64) or 1.0
            scored_XYZ[brain_XYZ] = (values - values.mean(dtype=np.float64)) / deviation
    return scored_CXYZ


def prepare(
    images_CXYZ: npt.NDArray[np.float32], stride: int, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> SliceStack:
    """Z-score a case, crop it to the brain, and cut it into axial slices, which `views_of` shows from other sides.

    `images_CXYZ`: float32, background 0, at least one voxel not 0; `stride`: H and W become multiples of it, and Z
    unless the brain `is_flat`; `spacing_mm`: voxel size along X, Y, Z. The crop grows around the brain's bounding box,
    beyond the volume's edge with zeros where it must. Where voxels are long along X or Y (sagittal or coronal slices),
    they are interpolated, since from every other side the brain would look squashed.
    """
    brain_XYZ = (images_CXYZ != 0).any(axis=0)
    x_first, x_last = _extent(brain_XYZ.any(axis=(1, 2)))
    y_first, y_last = _extent(brain_XYZ.any(axis=(0, 2)))
    z_first, z_last = _extent(brain_XYZ.any(axis=(0, 1)))
    x, width = _grow(x_first, x_last, stride)
    y, height = _grow(y_first, y_last, stride)
    cropped_ZYX = brain_XYZ[x_first : x_last + 1, y_first : y_last + 1, z_first : z_last + 1].transpose()
    flat = is_flat(cropped_ZYX)
    z, depth = _grow(z_first, z_last, 1 if flat else stride)
    box = np.s_[:, x_first : x_last + 1, y_first : y_last + 1, z_first : z_last + 1]
    scored_CXYZ = zscore_brain(images_CXYZ[box])
    slices_ZCHW = np.zeros((depth, len(images_CXYZ), height, width), np.float16)
    rows, columns = slice(y_first - y, y_last + 1 - y), slice(x_first - x, x_last + 1 - x)
    slices_ZCHW[z_first - z : z_last + 1 - z, :, rows, columns] = scored_CXYZ.transpose(3, 0, 2, 1)
    brain_ZHW = np.zeros((depth, height, width), np.bool_)
    brain_ZHW[z_first - z : z_last + 1 - z, rows, columns] = brain_XYZ[box[1:]].transpose(2, 1, 0)
    stretch_HW = _times_thicker(spacing_mm[1], spacing_mm), _times_thicker(spacing_mm[0], spacing_mm)
    for axis, factor in zip((-2, -1), stretch_HW, strict=True):
        if factor > 1:
            slices_ZCHW, brain_ZHW = _interpolate(slices_ZCHW, brain_ZHW, axis, factor)
    shape_X, shape_Y, shape_Z = brain_XYZ.shape
    return SliceStack(slices_ZCHW, brain_ZHW, flat, (z, y, x), (shape_X, shape_Y, shape_Z), stretch_HW)


def _times_thicker(size_mm: float, spacing_mm: tuple[float, float, float]) -> int:
    ratio = size_mm / min(spacing_mm)
    return round(ratio) if ratio >= THICK else 1


def _interpolate(
    slices_ZCHW: npt.NDArray[np.float16], brain_ZHW: npt.NDArray[np.bool_], axis: int, factor: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """Split each pixel along an axis into `factor`, interpolating linearly between the centres of brain pixels only.

    A new pixel is brain if it lies nearer to a brain pixel than to background.
    """
    place = (np.arange(brain_ZHW.shape[axis] * factor) + 0.5) / factor - 0.5
    before = np.floor(place).astype(int)
    shape = np.ones(3, int)
    shape[axis] = -1
    share = (place - before).reshape(shape).astype(np.float32)
    first, second = (np.clip(index, 0, brain_ZHW.shape[axis] - 1) for index in (before, before + 1))
    weights = (1 - share) * brain_ZHW.take(first, axis), share * brain_ZHW.take(second, axis)
    fine_ZHW = weights[0] + weights[1]
    fine_ZCHW = (
        slices_ZCHW.take(first, axis) * weights[0][:, None] + slices_ZCHW.take(second, axis) * weights[1][:, None]
    )
    inside_ZHW = fine_ZHW >= 0.5
    fine_ZCHW /= np.maximum(fine_ZHW, 0.5)[:, None]
    return np.where(inside_ZHW[:, None], fine_ZCHW, 0).astype(np.float16), inside_ZHW


def to_voxels(sum_KZHW: npt.NDArray[np.float32], stack: SliceStack) -> npt.NDArray[np.float32]:
    """Average logits over the pixels that stand for one voxel: undoes the interpolation of thick slices."""
    k, z, height, width = sum_KZHW.shape
    rows, columns = stack.stretch_HW
    if rows == columns == 1:
        return sum_KZHW
    blocks = sum_KZHW.reshape(k, z, height // rows, rows, width // columns, columns)
    mean_KZHW: npt.NDArray[np.float32] = blocks.mean(axis=(3, 5))
    return mean_KZHW


def usable(views: int, flat: bool) -> int:
    """From how many of the first `views` views a stack can be seen."""
    return 1 if flat else views


def seen_from(view: int, stack: npt.NDArray[Any], axis: int = 0) -> npt.NDArray[Any]:
    """A stack of axial slices as the stack of slices of one of VIEWS, not copied.

    `axis`: where Z is; the last two are H and W. Coronal slices are [Z, W], sagittal ones [H, Z], so neither is larger
    than an axial slice of a brain.
    """
    return np.swapaxes(stack, axis, (axis, -2, -1)[VIEWS[view].axis])


def views_of(stack: npt.NDArray[Any], views: int, axis: int = 0) -> list[npt.NDArray[Any]]:
    """A stack of axial slices seen from the first `views` of VIEWS; arguments as `seen_from`."""
    return [seen_from(view, stack, axis) for view in range(views)]


def slice_sizes(shape_ZHW: tuple[int, int, int], views: int) -> list[tuple[int, int]]:
    """Rows and columns of the slices in each of the first `views` of VIEWS, of a stack of this shape."""
    outline_ZHW = np.broadcast_to(np.False_, shape_ZHW)  # takes no memory
    return [(seen.shape[1], seen.shape[2]) for seen in views_of(outline_ZHW, views)]


def with_context(
    stack_NCHW: npt.NDArray[np.float16], chosen_n: npt.NDArray[np.intp], context: int, flat: bool = False
) -> npt.NDArray[np.float16]:
    """The chosen slices with their neighbours as further channels: [n, (1 + 2 · context) · C, H, W], a new array.

    First come a slice's own C channels, then those of the slice before it, after it, two before it, and so on; zeros
    beyond the stack. `flat`: slices lie too far apart to tell of each other, and all neighbours are zeros.
    """
    n, c = len(chosen_n), stack_NCHW.shape[1]
    seen_nCHW = np.zeros((n, (1 + 2 * context) * c, *stack_NCHW.shape[2:]), stack_NCHW.dtype)
    seen_nCHW[:, :c] = stack_NCHW[chosen_n]
    steps = [] if flat else [sign * distance for distance in range(1, context + 1) for sign in (-1, 1)]
    for place, step in enumerate(steps, 1):
        inside_n = (chosen_n + step >= 0) & (chosen_n + step < len(stack_NCHW))
        seen_nCHW[inside_n, place * c : (place + 1) * c] = stack_NCHW[chosen_n[inside_n] + step]
    return seen_nCHW


def occupied(mask_ZHW: npt.NDArray[np.bool_], views: int) -> list[npt.NDArray[np.bool_]]:
    """For each view, which of its slices hold any of the mask."""
    return [np.logical_or.reduce(seen, axis=(1, 2)) for seen in views_of(mask_ZHW, views)]


def in_volume(chosen_N: npt.NDArray[np.bool_], view: View, stack: SliceStack) -> list[list[int]]:
    """Which slices of the volume the chosen ones of a view are: [first, one after the last] of each run of them.

    Slices are counted in LPS order. Those that lie in the padding are none of the volume's.
    """
    full, origin, stretch = (
        each[view.axis] for each in (stack.shape_XYZ[::-1], stack.origin_ZHW, (1, *stack.stretch_HW))
    )
    number = origin + np.flatnonzero(chosen_N) // stretch
    held_N = np.zeros(full + 2, np.int8)  # with an edge on both sides
    held_N[1 + number[(number >= 0) & (number < full)]] = 1
    edges = np.flatnonzero(np.diff(held_N))
    return edges.reshape(-1, 2).tolist()


def active_slices(
    brain_VN: Sequence[npt.NDArray[np.bool_]], parent_VN: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.bool_]]:
    """For each view, which slices a region's network sees: those with brain and with the region's parent.

    Both as `occupied`. Fusion is nested, so no other slice can hold any of the region.
    """
    return [brain_N & parent_N for brain_N, parent_N in zip(brain_VN, parent_VN, strict=True)]


def is_flat(brain_ZHW: npt.NDArray[np.bool_]) -> bool:
    """Whether a brain's axial slices lie so far apart, or are so few, that from the other sides it looks like none."""
    sizes = [int(used.sum()) for used in occupied(brain_ZHW, len(VIEWS))]
    return sizes[0] * FLATTEST < max(sizes)


def to_volume(label_ZHW: npt.NDArray[np.uint8], stack: SliceStack) -> npt.NDArray[np.uint8]:
    """Put label slices back into the full volume: [Z, H, W] → [X, Y, Z], uint8; 0 outside the stack.

    H and W in voxels, as after `to_voxels`.
    """
    label_XYZ = np.zeros(stack.shape_XYZ, np.uint8)
    inside_ZHW, inside_ZYX = [], []
    for start, size, full in zip(stack.origin_ZHW, label_ZHW.shape, reversed(stack.shape_XYZ), strict=True):
        first, end = max(start, 0), min(start + size, full)
        inside_ZHW.append(slice(first - start, end - start))
        inside_ZYX.append(slice(first, end))
    label_XYZ.transpose(2, 1, 0)[tuple(inside_ZYX)] = label_ZHW[tuple(inside_ZHW)]
    return label_XYZ


def cut_label(label_XYZ: npt.NDArray[np.uint8], stack: SliceStack) -> npt.NDArray[np.uint8]:
    """Cut a label volume as its images were cut: [X, Y, Z] → [Z, H, W], uint8, each voxel as often as they hold it."""
    z, y, x = stack.origin_ZHW
    rows, columns = stack.stretch_HW
    depth, height, width = len(stack.slices_ZCHW), stack.brain_ZHW.shape[1] // rows, stack.brain_ZHW.shape[2] // columns
    margin = ((max(-z, 0), depth), (max(-y, 0), height), (max(-x, 0), width))
    padded_ZYX = np.pad(label_XYZ.transpose(2, 1, 0), margin)
    z, y, x = max(z, 0), max(y, 0), max(x, 0)
    cut_ZHW = padded_ZYX[z : z + depth, y : y + height, x : x + width]
    return cut_ZHW.repeat(rows, axis=1).repeat(columns, axis=2)


def _extent(occupied: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """First and last True."""
    indices = np.flatnonzero(occupied)
    return int(indices[0]), int(indices[-1])


def _grow(first: int, last: int, multiple: int) -> tuple[int, int]:
    """Start and size of the smallest interval around [first, last] whose size is a multiple."""
    size = -(-(last + 1 - first) // multiple) * multiple
    return first - (size - (last + 1 - first)) // 2, size

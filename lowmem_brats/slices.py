"""From a volume to the stack of axial slices that the networks see, and back.

Axes: C modalities, X Y Z voxels in LPS order, H W in-plane (H = Y, rows run to posterior; W = X, columns run to the
patient's left: the usual radiological view), N or Z slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SliceStack:
    """The brain's slices, and where they lie in the volume."""

    slices_ZCHW: npt.NDArray[np.float16]
    """Z-scored; H and W are multiples of the stride."""
    brain_Z: npt.NDArray[np.bool_]
    """Which slices hold brain."""
    origin_ZHW: tuple[int, int, int]
    """Volume index (z, y, x) of the first slice's first pixel; y and x may be negative where padding was needed."""
    shape_XYZ: tuple[int, int, int]
    """Shape of the volume."""


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


def prepare(images_CXYZ: npt.NDArray[np.float32], stride: int) -> SliceStack:
    """Z-score a case, crop it to the brain, and cut it into axial slices.

    `images_CXYZ`: float32, background 0, at least one voxel not 0; `stride`: H and W become multiples of it.
    The crop grows around the brain's bounding box, beyond the volume's edge with zeros where it must.
    """
    brain_XYZ = (images_CXYZ != 0).any(axis=0)
    x_first, x_last = _extent(brain_XYZ.any(axis=(1, 2)))
    y_first, y_last = _extent(brain_XYZ.any(axis=(0, 2)))
    z_first, z_last = _extent(brain_XYZ.any(axis=(0, 1)))
    x, width = _grow(x_first, x_last, stride)
    y, height = _grow(y_first, y_last, stride)
    box = np.s_[:, x_first : x_last + 1, y_first : y_last + 1, z_first : z_last + 1]
    scored_CXYZ = zscore_brain(images_CXYZ[box])
    slices_ZCHW = np.zeros((z_last + 1 - z_first, len(images_CXYZ), height, width), np.float16)
    rows, columns = slice(y_first - y, y_last + 1 - y), slice(x_first - x, x_last + 1 - x)
    slices_ZCHW[:, :, rows, columns] = scored_CXYZ.transpose(3, 0, 2, 1)
    brain_Z = brain_XYZ[:, :, z_first : z_last + 1].any(axis=(0, 1))
    shape_X, shape_Y, shape_Z = brain_XYZ.shape
    return SliceStack(slices_ZCHW, brain_Z, (z_first, y, x), (shape_X, shape_Y, shape_Z))


def to_volume(label_ZHW: npt.NDArray[np.uint8], stack: SliceStack) -> npt.NDArray[np.uint8]:
    """Put a stack of label slices back into the full volume: [Z, H, W] → [X, Y, Z], uint8; 0 outside the stack."""
    label_XYZ = np.zeros(stack.shape_XYZ, np.uint8)
    inside_ZHW, inside_ZYX = [], []
    for start, size, full in zip(stack.origin_ZHW, label_ZHW.shape, reversed(stack.shape_XYZ), strict=True):
        first, end = max(start, 0), min(start + size, full)
        inside_ZHW.append(slice(first - start, end - start))
        inside_ZYX.append(slice(first, end))
    label_XYZ.transpose(2, 1, 0)[tuple(inside_ZYX)] = label_ZHW[tuple(inside_ZHW)]
    return label_XYZ


def cut_label(label_XYZ: npt.NDArray[np.uint8], stack: SliceStack) -> npt.NDArray[np.uint8]:
    """Cut a label volume as its images were cut: [X, Y, Z] → [Z, H, W], uint8; the inverse of `to_volume`."""
    z, y, x = stack.origin_ZHW
    depth, _, height, width = stack.slices_ZCHW.shape
    margin = ((max(-z, 0), depth), (max(-y, 0), height), (max(-x, 0), width))
    padded_ZYX = np.pad(label_XYZ.transpose(2, 1, 0), margin)
    z, y, x = max(z, 0), max(y, 0), max(x, 0)
    return padded_ZYX[z : z + depth, y : y + height, x : x + width]


def centre_in(frame_HW: tuple[int, int], array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Zero-pad the last two axes to `frame_HW`, content in the middle; they must not exceed it."""
    missing = [frame - size for frame, size in zip(frame_HW, array.shape[-2:], strict=True)]
    margin = [(0, 0)] * (array.ndim - 2) + [(m // 2, m - m // 2) for m in missing]
    return np.pad(array, margin)


def _extent(occupied: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """First and last True."""
    indices = np.flatnonzero(occupied)
    return int(indices[0]), int(indices[-1])


def _grow(first: int, last: int, multiple: int) -> tuple[int, int]:
    """Start and size of the smallest interval around [first, last] whose size is a multiple."""
    size = -(-(last + 1 - first) // multiple) * multiple
    return first - (size - (last + 1 - first)) // 2, size

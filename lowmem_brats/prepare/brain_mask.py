"""Find the brain in a T1-weighted image with its skull on.

The two networks are deepbet's (Fisch et al. 2024, MIT licence), as TorchScript in its wheel: one finds the box that
holds the brain, the other the brain in it. Only these two files of the package are used, in the way its own code does:
importing it would load a window toolkit. On T2 its masks reach into the scalp, so it is never given one.

Axes: X Y Z voxels in LPS order.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.data.brain import brain_of_stripped
from lowmem_brats.data.geometry import Volume
from lowmem_brats.errors import InputError
from lowmem_brats.prepare.extra import data_file
from lowmem_brats.prepare.itk import THICK_MM

Mask = npt.NDArray[np.bool_]

BOX_SIDE, SIDE = 128, 256
"""Voxels along each side of what the two networks see."""
MARGIN = 0.1
"""Share of the brain's box that is added at each side."""
EMPTY = 0.02
"""A plane belongs to the box if more than this share of it is brain."""
SPECK = 0.01
"""Pieces smaller than this share of the largest do not count as pieces."""


@dataclass(frozen=True)
class Brain:
    """The brain in one image."""

    mask_XYZ: Mask
    made_by: str
    """`deepbet`, `skull-stripped before`, or `given`."""
    pieces: int = 1
    """In how many pieces it was found, specks apart; only the largest is kept."""

    def millilitres(self, volume: Volume) -> float:
        """Its volume; `volume`: the image in which it was found."""
        return float(self.mask_XYZ.sum() * np.prod(volume.spacing_mm)) / 1000


def find_brain(t1: Volume) -> Brain:
    """Find the brain in a T1 or T1ce image; where the skull is off already, it is what is left.

    Raises InputError where nothing looks like a brain.
    """
    stripped_XYZ = brain_of_stripped(t1.data.astype(np.float32), float(np.prod(t1.spacing_mm)))
    if stripped_XYZ is not None:
        return Brain(stripped_XYZ, "skull-stripped before")
    likely_XYZ = _predict(t1.data[::-1, ::-1].astype(np.float32))[::-1, ::-1] > 0.5  # the networks know RAS order
    if not likely_XYZ.any():
        raise InputError(
            "brain mask", "no brain in the image", "a T1-weighted image of a head", "Pass --brain-mask FILE."
        )
    piece_XYZ, _ = ndimage.label(likely_XYZ)
    voxels = np.bincount(piece_XYZ.ravel())[1:]
    largest_XYZ: Mask = ndimage.binary_fill_holes(piece_XYZ == 1 + voxels.argmax())
    return Brain(largest_XYZ, "deepbet", int((voxels >= SPECK * voxels.max()).sum()))


def grown(mask_XYZ: Mask, t1: Volume) -> Mask:
    """The mask and the voxels beside it, for the tumour at the brain's edge; not along thick slices."""
    cross_XYZ = np.zeros((3, 3, 3), np.bool_)
    cross_XYZ[1, 1, 1] = True
    for axis, size in enumerate(t1.spacing_mm):
        if size < THICK_MM:
            cross_XYZ[tuple(slice(None) if each == axis else 1 for each in range(3))] = True
    wider_XYZ: Mask = ndimage.binary_dilation(mask_XYZ, cross_XYZ)
    return wider_XYZ


def overlap(first_XYZ: Mask, second_XYZ: Mask) -> float:
    """Dice of two masks; 0 where both are empty."""
    return float(2 * (first_XYZ & second_XYZ).sum() / max(first_XYZ.sum() + second_XYZ.sum(), 1))


def _predict(image_XYZ: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How likely each voxel is brain, 0 to 1; `image_XYZ` in RAS order."""
    import torch
    from torch.nn.functional import interpolate

    def resized(image: Any, shape: tuple[int, ...]) -> Any:
        return interpolate(image[None, None], shape, mode="nearest-exact")[0, 0]

    def look(name: str, image: Any, low: Any, high: Any) -> Any:
        load: Any = torch.jit.load  # has no annotations
        network = load(str(data_file("deepbet", f"data/models/{name}.pt"))).eval()
        seen = ((image - low) / (high - low)).clamp(0, 1)
        return network((0.226 * (seen - seen.mean()) / seen.std() + 0.449)[None, None])[0, 1]

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, the only form of deepbet's networks
        image = torch.from_numpy(np.ascontiguousarray(image_XYZ))
        small = resized(image, (BOX_SIDE,) * 3)
        low, high = small.quantile(0.005), small.quantile(0.995)
        box = _box(look("bbox_model", small, low, high).numpy() > 0.5, image_XYZ.shape)
        found = np.zeros(image_XYZ.shape, np.float32)
        if box:
            inside = image[box]
            found[box] = resized(look("model", resized(inside, (SIDE,) * 3), low, high), tuple(inside.shape)).numpy()
    return found


def _box(small_XYZ: Mask, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of an image of `shape` that holds the brain found in its reduced copy; empty where there is none."""
    piece_XYZ, count = ndimage.label(small_XYZ)
    if not count:
        return ()
    brain_XYZ = piece_XYZ == 1 + np.bincount(piece_XYZ.ravel())[1:].argmax()
    box = []
    for axis, size in enumerate(shape):
        planes = np.flatnonzero(brain_XYZ.mean(tuple({0, 1, 2} - {axis})) > EMPTY)
        if not planes.size:
            return ()
        scale, (first, last) = size / BOX_SIDE, (planes[0], planes[-1] + 1)
        middle, half = round(scale * (first + last) / 2), round((1 + 2 * MARGIN) * scale * (last - first)) / 2
        box.append(slice(max(0, int(middle - half)), min(size, int(middle + half))))
    return tuple(box)

"""Images and rigid transforms between this program and SimpleITK, and resampling.

Axes: X Y Z voxels in LPS order. Affines of this program place voxels in RAS+ mm, as NIfTI does; those of SimpleITK in
LPS+ mm, as DICOM does. Transforms, also those written to .tfm files, are SimpleITK's: a point of the T1ce image → the
point of the other image that shows the same place, in LPS+ mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.geometry import Affine, Volume
from lowmem_brats.prepare.extra import library

Image = npt.NDArray[np.float32]
THREADS = 1
"""Of SimpleITK: with several, a registration adds up in another order each time, and its last digits differ."""
THICK_MM = 2.0
"""From this spacing on, the grid keeps T1ce's own slices: segmenting thick slices loses less than interpolating between
them does."""
FINE_MM = 1.0
NEAR = 0.1
"""T1ce's own spacing is kept along an axis where it is this near to 1 mm: then nothing is interpolated along it."""
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a prepared case lie."""

    shape: tuple[int, int, int]
    affine: Affine
    """4 × 4: voxel → RAS+ mm."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)


def grid_around(t1ce: Volume) -> Grid:
    """The grid of 1 mm along T1ce's own axes that covers the same field of view; thick slices stay as they are."""
    spacing = np.array(t1ce.spacing_mm)
    steps = np.where((spacing >= THICK_MM) | (np.abs(spacing - FINE_MM) <= NEAR), spacing, FINE_MM)
    x, y, z = np.maximum(np.round(spacing * t1ce.data.shape / steps), 1).astype(int)
    first = (steps / spacing - 1) / 2  # the outer faces of the first voxels coincide
    affine = t1ce.affine.copy()
    affine[:3, :3] *= steps / spacing
    affine[:3, 3] = (t1ce.affine @ np.append(first, 1))[:3]
    return Grid((int(x), int(y), int(z)), affine)


@contextmanager
def threads() -> Iterator[None]:
    """Let SimpleITK work in one thread, so that the same input gives the same bytes."""
    process = library("SimpleITK").ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(THREADS)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def to_itk(data_XYZ: npt.NDArray[Any], affine: Affine) -> Any:
    """A SimpleITK image (float32) of an array in LPS order."""
    image = library("SimpleITK").GetImageFromArray(np.ascontiguousarray(data_XYZ.T, np.float32))
    _place(image, affine)
    return image


def filled_like(image: Any) -> Any:
    """An image of ones on another's grid: resampled, it tells where that one's field of view is."""
    sitk = library("SimpleITK")
    ones = sitk.Image(image.GetSize(), sitk.sitkFloat32) + 1.0
    ones.CopyInformation(image)
    return ones


def resample(moving: Any, grid: Grid, transform: Any = None, fine: bool = False) -> Image:
    """Interpolate a SimpleITK image at the voxels of `grid`; 0 outside its field of view.

    `transform`: point of the grid's image → point of `moving`; None: they share their space. `fine`: cubic B-splines,
    which keep edges; else linear.
    """
    sitk = library("SimpleITK")
    wanted = sitk.Image([int(n) for n in grid.shape], sitk.sitkUInt8)
    _place(wanted, grid.affine)
    how = sitk.sitkBSpline if fine else sitk.sitkLinear
    found = sitk.Resample(moving, wanted, transform or sitk.Transform(), how, 0.0, sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(found).T, np.float32)


def _place(image: Any, affine: Affine) -> None:
    placed = _RAS_TO_LPS @ affine
    spacing = np.sqrt((placed[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing([float(mm) for mm in spacing])
    image.SetDirection([float(cosine) for cosine in (placed[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(mm) for mm in placed[:3, 3]])

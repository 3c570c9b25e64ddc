"""Find the rigid transform that lays one image of a head on another.

Settings measured on real scans (docs/prepare.md). Mattes' mutual information of the whole heads, skull and all, is
climbed with regular steps; SimpleITK's plain gradient descent stops after ten iterations a level and leaves 3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowmem_brats.errors import InputError
from lowmem_brats.prepare.extra import library

STARTS = ("moments", "headers", "centres")
"""Where to begin, the first that leads to a good end is taken: centres of mass laid on each other; as the headers say,
as for scans of one sitting; middles of the fields of view laid on each other."""
BINS, SEED = 50, 1
LEVELS = ((4.0, 2.0, 0.4), (2.0, 1.0, 0.2))
"""Size of a pixel in mm to which the fixed image is shrunk, smoothing in mm, share of the voxels that are looked at."""


@dataclass(frozen=True)
class Registration:
    """A rigid transform and what it does."""

    transform: Any
    """SimpleITK's Euler3DTransform: point of the fixed image → point of the moving image, LPS+ mm."""
    start: str
    """Which of STARTS it was found from."""
    rotation_degrees: float
    shift_mm: float
    """How far the middle of the fixed image moves."""


def register(fixed: Any, moving: Any, start: str = STARTS[0]) -> Registration:
    """Lay `moving` on `fixed`, both SimpleITK images (float32) of one head, of any grids.

    Raises InputError where SimpleITK cannot: nothing overlaps at the start, an image is empty or has too few slices.
    """
    sitk = library("SimpleITK")
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    sizes_mm, smooth, share = (list(each) for each in zip(*LEVELS, strict=True))
    shrink = [max(1, round(size / min(fixed.GetSpacing()))) for size in sizes_mm]
    method.SetMetricSamplingPercentagePerLevel(share, SEED)
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(smooth)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-4,
        numberOfIterations=200,
        relaxationFactor=0.5,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    try:
        transform = _initial(sitk, fixed, moving, start)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(fixed, moving)
    except RuntimeError as error:  # SimpleITK's for everything
        found = f"SimpleITK cannot begin ({str(error).strip().splitlines()[-1][:160]})"
        raise InputError("registration", found, "two images of one head", "Look at the image.") from error
    return described(transform, fixed, start)


def described(transform: Any, fixed: Any, start: str) -> Registration:
    """A transform with its rotation and the shift of the middle of `fixed`."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    degrees = float(np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))))
    middle = np.array(_middle(fixed))
    shift = float(np.linalg.norm(np.array(transform.TransformPoint(middle.tolist())) - middle))
    return Registration(transform, start, degrees, shift)


def _initial(sitk: Any, fixed: Any, moving: Any, start: str) -> Any:
    if start == "headers":
        transform = sitk.Euler3DTransform()
        transform.SetCenter(_middle(fixed))
        return transform
    kind = sitk.CenteredTransformInitializerFilter
    how = kind.MOMENTS if start == "moments" else kind.GEOMETRY
    return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), how))


def _middle(image: Any) -> list[float]:
    """The middle of an image's field of view, LPS+ mm."""
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))

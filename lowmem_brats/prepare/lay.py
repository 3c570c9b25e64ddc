"""Lay one modality on T1ce: register it, resample it once, measure how well it lies.

Axes: X Y Z voxels of the case's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.labels import Mask
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import itk
from lowmem_brats.prepare.gate import Measures, judge_modality
from lowmem_brats.prepare.probes import over_probes
from lowmem_brats.prepare.register import STARTS, Registration, register

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Anchor:
    """T1ce, on which the others are laid."""

    fixed: Any
    """As it came from the scanner; SimpleITK's image."""
    grid: itk.Grid
    """The case's."""
    mask_XYZ: Mask
    """The brain."""
    image_XYZ: Image
    """T1ce in the case's grid, 0 outside the brain."""


@dataclass(frozen=True)
class Laid:
    """A modality laid on T1ce."""

    registration: Registration
    image_XYZ: Image
    """0 outside the brain, and where the modality shows nothing."""
    measures: Measures


def lay_on(modality: str, moving: Any, anchor: Anchor) -> Laid:
    """Register a modality from each start until the result passes the checks; else keep the one that fits best.

    `moving`: SimpleITK's image, as it came from the scanner. Raises InputError where no start leads anywhere.
    """
    tries, problem = [], ""
    for start in STARTS:
        try:
            tries.append(laid_by(register(anchor.fixed, moving, start), moving, anchor))
        except InputError as error:
            problem = error.found
            continue
        if not judge_modality(modality, tries[-1].measures):
            return tries[-1]
    if not tries:
        found = f"cannot be laid on T1ce: {problem}"
        raise InputError(modality, found, "an image of the same head", "Look at both images.")
    return max(tries, key=lambda laid: laid.measures.over_probes)


def laid_by(found: Registration, moving: Any, anchor: Anchor) -> Laid:
    """Resample a registered modality and measure how well it lies on T1ce."""
    image_XYZ = kept(itk.resample(moving, anchor.grid, found.transform, fine=True), anchor.mask_XYZ)
    inside_XYZ = itk.resample(itk.filled_like(moving), anchor.grid, found.transform) > 0.5
    image_XYZ[~inside_XYZ] = 0
    covered = float(inside_XYZ[anchor.mask_XYZ].mean()) if anchor.mask_XYZ.any() else 0.0
    fit = over_probes(anchor.image_XYZ, image_XYZ, anchor.grid.spacing_mm)
    return Laid(found, image_XYZ, Measures(found.rotation_degrees, found.shift_mm, fit, covered))


def dark_share(image_XYZ: Image) -> float:
    """Share of an image's brain that has its lowest value, as what was 0 or less has after `kept`."""
    inside = image_XYZ[image_XYZ != 0]
    return float((inside == inside.min()).mean()) if inside.size else 0.0


def kept(image_XYZ: Image, mask_XYZ: Mask) -> Image:
    """The image inside the mask, 0 outside; inside, nothing is 0, so that all of the mask counts as brain."""
    inside = image_XYZ[mask_XYZ]
    kept_XYZ = np.zeros_like(image_XYZ)
    if inside.size:
        kept_XYZ[mask_XYZ] = np.maximum(inside, max(1e-3 * float(np.percentile(inside, 99)), 1e-6))
    return kept_XYZ

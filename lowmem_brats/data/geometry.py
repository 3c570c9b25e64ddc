"""Find where a NIfTI header places its voxels, in millimetres, and refuse headers that contradict themselves.

A header says it three times: in `sform`, `qform` and `pixdim`. This program follows nibabel: it takes the sform if its
code is above 0; else the qform with the voxel sizes of pixdim; else pixdim with a made-up orientation. Some viewers
take the qform first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.errors import InputError

Affine = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.float64]
"""Voxel edges along the array's axes."""
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Code of length in `xyzt_units` → mm: unknown, which is taken for mm; metre; millimetre; micrometre."""
AFFINE_TOLERANCE_MM = 0.1
"""Largest distance between the places that two files of a case give the same corner voxel."""
FORM_CODES = range(6)
"""All that NIfTI defines for sform_code and qform_code."""
SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 0.05, 20.0
"""Edges outside these come from a wrong unit of length, not from a scanner of heads."""
LARGEST_EXTENT_MM = 600.0
"""Along an axis of the volume: as wide as a scanner's bore. Heads are 130 to 250 mm long."""
ROUNDED = 0.01
"""Share by which two statements of a voxel's size may differ without a warning."""
CONTRADICTORY = 0.05
"""Share above which the header is refused: which of the sizes is right cannot be told."""
NOTICEABLE_SHIFT_MM = 1.0
"""How far apart sform and qform may place a corner voxel without a warning."""
NOTICEABLE_SHEAR, LARGEST_SHEAR = 1.0, 10.0
"""Degrees by which two axes may miss a right angle without a warning, and at all. At 10 a volume is 1.5 % too large."""


@dataclass
class Volume:
    """One image as stored, and what is needed to write another into its grid."""

    data: npt.NDArray[Any]
    """In LPS order."""
    affine: npt.NDArray[np.float64]
    """4 × 4: voxel of `data` → mm, whatever the file's unit."""
    header: Any
    """nibabel's header as it stands in the file."""
    to_disk: npt.NDArray[np.float64]
    """Orientation transform from LPS order to the file's own."""
    warnings: list[str] = field(default_factory=list)
    """One for each thing in the header that does not fit the rest."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return _voxel_sizes(self.affine)


def place_voxels(path: Path, image: Any, stored: Any) -> tuple[Affine, list[str]]:
    """Return the 4 × 4 affine voxel on disk → mm, and a warning of each thing in the header that does not fit the rest.

    `image`: nibabel's, of three or more axes; `stored`: its header as it stands in the file, as nibabel repairs some
    fields of the image's own. Raises InputError where the size of the voxels is unknown, impossible or told in two
    ways, and where the affine cannot be inverted or its axes are far from perpendicular.
    """
    source = _source(path, stored)
    unit_mm, warnings = _unit(stored)
    to_mm = np.diag([unit_mm, unit_mm, unit_mm, 1])
    affine_mm = to_mm @ np.asarray(image.affine, np.float64)
    shape = np.array(image.shape[:3])
    if source != "sform":
        _check_pixdim(path, stored, source)
    warnings += _check_axes(path, stored, affine_mm, source)
    sizes_mm = np.array(_voxel_sizes(affine_mm))
    if source == "sform":
        warnings += _compare_sizes(path, stored, sizes_mm, unit_mm, shape)
    _check_sizes(path, sizes_mm, shape)
    if source == "sform" and stored["qform_code"]:
        warnings += _compare_forms(affine_mm, _qform(image, to_mm), image.shape)
    return affine_mm, warnings


def check_same_grid(volume: Volume, path: Path, reference: Volume, reference_path: Path) -> None:
    """Raise InputError unless two volumes have one shape and place their corner voxels alike."""
    expected = f"the grid of {reference_path.name}"
    advice = "Co-register and resample the images first: lowmem-brats prepare."
    if volume.data.shape != reference.data.shape:
        raise InputError(path, f"shape {volume.data.shape}", f"{expected}, {reference.data.shape}", advice)
    apart = round(_distance_of_corners(volume.affine, reference.affine, volume.data.shape), 3)
    if apart > AFFINE_TOLERANCE_MM:
        found = f"its affine places a corner {apart:g} mm away"
        raise InputError(path, found, f"{expected} to {AFFINE_TOLERANCE_MM} mm", advice)


def _voxel_sizes(affine: Affine) -> tuple[float, float, float]:
    """Lengths of a voxel's edges along the array's first three axes, in the affine's unit."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def _distance_of_corners(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """How far apart two affines place a corner voxel of an array at most, along any axis of the world."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], [1])).reshape(4, -1)
    return float(np.abs((first - second) @ corners).max())


def _times(values: npt.ArrayLike) -> str:
    return " × ".join(f"{value:.4g}" for value in np.asarray(values, np.float64))


def _source(path: Path, stored: Any) -> str:
    """Return which field places the voxels, `sform`, `qform` or `pixdim`. Raises InputError for an unknown code."""
    for name in ("sform", "qform"):
        code = int(stored[f"{name}_code"])
        if code not in FORM_CODES:
            advice = "Set it to 1 if that form is right, else to 0."
            raise InputError(path, f"{name}_code {code}", "a code from 0 to 5", advice)
    return "sform" if stored["sform_code"] else "qform" if stored["qform_code"] else "pixdim"


def _unit(stored: Any) -> tuple[float, list[str]]:
    code = int(stored["xyzt_units"]) & 7
    if code in UNIT_MM:
        return UNIT_MM[code], []
    return 1.0, [f"the header names a unit of length that does not exist (code {code}): millimetres are assumed"]


def _check_pixdim(path: Path, stored: Any, source: str) -> None:
    """Raise InputError for voxel sizes that are not above 0, and for a qfac that leaves left and right open."""
    factor, *sizes = (float(value) for value in stored["pixdim"][:4])
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        found = f"pixdim {_times(sizes)}, and no sform beside it"
        raise InputError(path, found, "three voxel sizes above 0", "Write the right sizes into the header.")
    if source == "qform" and factor not in (-1, 0, 1):
        advice = "Write the right one into the header: it decides which side is left."
        raise InputError(path, f"pixdim[0] (qfac) {factor:g}", "1 or -1", advice)


def _check_axes(path: Path, stored: Any, affine_mm: Affine, source: str) -> list[str]:
    """Refuse axes that span no volume, and those far from perpendicular; a warning where they are not quite."""
    sizes_mm = np.array(_voxel_sizes(affine_mm))
    unit_axes = affine_mm[:3, :3] / np.where(sizes_mm > 0, sizes_mm, 1)
    # The determinant of axes of length 1 is 1 if they are perpendicular, and 0 if they lie in one plane.
    if not np.isfinite(affine_mm).all() or abs(np.linalg.det(unit_axes)) < 1e-3:
        advice = "Repair the header first."
        if source == "sform" and stored["qform_code"]:
            advice = "If the qform is right, set the sform_code to 0."
        raise InputError(path, "an affine that is not invertible", "a valid sform or qform", advice)
    cosine = np.abs(np.triu(unit_axes.T @ unit_axes, 1)).max()
    degrees = round(math.degrees(math.asin(min(cosine, 1))), 1)  # compared as it is shown, here and below
    if degrees > LARGEST_SHEAR:
        advice = "Resample the image to perpendicular axes, or repair its sform."
        raise InputError(path, f"axes {degrees}° from perpendicular", f"at most {LARGEST_SHEAR}°", advice)
    if degrees > NOTICEABLE_SHEAR:
        return [f"the sform's axes are {degrees}° from perpendicular: distances are computed as if they were not"]
    return []


def _compare_sizes(path: Path, stored: Any, sform_mm: Sizes, unit_mm: float, shape: npt.NDArray[np.int_]) -> list[str]:
    """Refuse a pixdim that makes another volume of a voxel than the sform; a warning where it differs a little."""
    pixdim_mm = np.asarray(stored["pixdim"][1:4], np.float64) * unit_mm
    if not (np.isfinite(pixdim_mm) & (pixdim_mm > 0)).all():
        return [f"pixdim is {_times(pixdim_mm)}, which is no voxel size: the sform's is used, {_times(sform_mm)} mm"]
    ratios = pixdim_mm / sform_mm
    apart = max(max(ratio, 1 / ratio) for ratio in (*ratios, ratios.prod())) - 1
    found = f"voxels are {_times(sform_mm)} mm by the sform, but {_times(pixdim_mm)} mm by pixdim"
    if apart <= CONTRADICTORY:
        others = "the sform is used, and programs that go by pixdim will measure otherwise"
        return [f"{found}: {others}"] if apart > ROUNDED else []
    scaled = f"image.affine @ numpy.diag([{', '.join(f'{ratio:.6g}' for ratio in ratios)}, 1])"
    raise InputError(
        path,
        found,
        "one size, as volumes and distances follow from it",
        f"Find out which is right: the image is {_times(sform_mm * shape)} mm large by the sform and "
        f"{_times(pixdim_mm * shape)} mm by pixdim; a head is 130 to 250 mm long. Then write it over the other with "
        "nibabel: image.set_qform(image.affine) if the sform is right, "
        f"image.set_sform({'image.get_qform()' if stored['qform_code'] else scaled}) if pixdim is.",
    )


def _check_sizes(path: Path, sizes_mm: Sizes, shape: npt.NDArray[np.int_]) -> None:
    """Refuse voxels, and volumes, of a size that no scanner makes."""
    advice = "Check the header's unit of length (xyzt_units) and its voxel sizes (pixdim, sform)."
    shown = [float(f"{size:.4g}") for size in sizes_mm]
    if not all(SMALLEST_VOXEL_MM <= size <= LARGEST_VOXEL_MM for size in shown):
        expected = f"edges of {SMALLEST_VOXEL_MM} to {LARGEST_VOXEL_MM:.0f} mm"
        raise InputError(path, f"voxels of {_times(sizes_mm)} mm", expected, advice)
    extent_mm = [float(f"{extent:.4g}") for extent in sizes_mm * shape]
    if max(extent_mm) > LARGEST_EXTENT_MM:
        found = f"a volume of {_times(extent_mm)} mm"
        raise InputError(path, found, f"at most {LARGEST_EXTENT_MM:.0f} mm, as heads are smaller", advice)


def _qform(image: Any, to_mm: Affine) -> Affine | None:
    """The qform in mm; None where it is not valid."""
    try:
        qform_mm: Affine = to_mm @ image.get_qform()
    except ValueError:  # a quaternion longer than 1
        return None
    return qform_mm if np.isfinite(qform_mm).all() else None


def _compare_forms(sform_mm: Affine, qform_mm: Affine | None, shape: tuple[int, ...]) -> list[str]:
    """A warning where the qform, which counts for some viewers, places voxels elsewhere than the sform."""
    used = "the sform is used, and programs that go by the qform will"
    if qform_mm is None:
        return [f"the qform is not valid: {used} fail or show the image elsewhere"]
    if np.linalg.det(qform_mm[:3, :3]) * np.linalg.det(sform_mm[:3, :3]) < 0:
        return [f"sform and qform are mirror images of each other: {used} swap left and right"]
    apart = round(_distance_of_corners(sform_mm, qform_mm, shape), 1)
    if apart > NOTICEABLE_SHIFT_MM:
        return [f"sform and qform place a corner voxel {apart} mm apart: {used} show the image elsewhere"]
    return []

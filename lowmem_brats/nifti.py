"""Read a case from NIfTI and write its label map back into the same grid; the only module that knows nibabel.

In memory every volume has axes X Y Z in LPS order (X rises to the patient's left, Y to posterior, Z to superior), which
is how BraTS stores its cases and how the networks were trained; C are the modalities. On disk it may have any order.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.arrayproxy import ArrayProxy

from lowmem_brats import __version__
from lowmem_brats.case_files import CaseFiles
from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete

Float32 = npt.NDArray[np.float32]
AFFINE_TOLERANCE_MM = 0.1
"""How far apart two files of a case may place the same corner voxel."""
LEAST_BACKGROUND = 0.25
"""A skull-stripped volume has at least this share of zero voxels (BraTS: 0.8 to 0.9)."""
MOST_COMPRESSION = 1032
"""No file compressed by deflate expands more."""
MSD_ORDER = ("flair", "t1", "t1ce", "t2")
NUMBERED = (
    "_0000 to _0003 are taken for T1, T1ce, T2, FLAIR, as in nnU-Net's Dataset 137; where they are in another order, "
    "name the files with --t1, --t1ce, --t2, --flair"
)
_PROGRAM = "lowmem-brats"
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, zlib.error)
_NOT_NIFTI = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, *_UNREADABLE)
_QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_GRID_FIELDS = (*_QFORM, "sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units")
"""Header fields that place voxels in space."""


@dataclass
class Volume:
    """One image as stored, and what is needed to write another into its grid."""

    data: npt.NDArray[Any]
    """In LPS order."""
    affine: npt.NDArray[np.float64]
    """Of `data`: voxel (LPS order) → mm."""
    header: Any
    """As on disk."""
    to_disk: npt.NDArray[np.float64]
    """Orientation transform from LPS order to the file's own."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)


@dataclass
class Case:
    """One patient in memory."""

    case_id: str
    images_CXYZ: Float32
    """Modalities in the order of `config.MODALITIES`; a missing one is all zero."""
    reference: Volume
    """The first modality; label maps are written into its grid."""
    missing: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return self.reference.spacing_mm


@np.errstate(over="ignore", invalid="ignore")  # what no float32 can hold becomes infinite and is refused here
def read_volume(path: Path, dimensions: int = 3) -> Volume:
    """Read one NIfTI file and bring its first three axes to LPS order.

    Trailing axes of length 1 are dropped. Data as stored after scaling: float32, or the stored integers when unscaled.
    Raises InputError: not NIfTI, truncated, other than `dimensions` axes, not finite.
    """
    image = _load(path)
    shape = tuple(image.shape)
    while len(shape) > dimensions and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != dimensions or min(shape) < 1:
        wanted = {3: "Pass a 4-D file as the case itself.", 4: "Pass the case's folder."}
        advice = wanted[dimensions] if {len(shape), dimensions} == {3, 4} else "Check the file."
        raise InputError(path, f"{len(shape)}-D array of shape {shape}", f"a {dimensions}-D volume", advice)
    _check_voxels(path, image)
    try:
        raw = _read_voxels(image).reshape(shape)
        data = raw if raw.dtype.kind in "iu" else raw.astype(np.float32)
    except _UNREADABLE as error:
        raise InputError(path, f"truncated or damaged ({error})", "a complete NIfTI file", "Copy it again.") from error
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise InputError(path, f"{count} voxels are NaN or infinite", "finite intensities", "Repair the file first.")
    return _to_lps(path, data, image)


def _load(path: Path) -> Any:
    expected = "a NIfTI file (.nii or .nii.gz)"
    if not path.is_file():
        raise InputError(path, "does not exist", expected, "Check the path.")
    try:
        image = nibabel.load(path)
    except _NOT_NIFTI as error:
        raise InputError(path, f"not a NIfTI file ({error})", expected, "Convert or copy it again.") from error
    if not isinstance(image, nibabel.nifti1.Nifti1Pair):
        raise InputError(path, f"a {type(image).__name__}", expected, "Convert it to NIfTI first.")
    return image


def _check_voxels(path: Path, image: Any) -> None:
    """Refuse voxels that are no numbers, and more of them than the file can hold before memory is taken for them."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(path, f"voxels of type {dtype}", "one real number per voxel", "Convert it to float32 first.")
    stored = Path(image.get_filename())
    announced = math.prod(image.shape) * dtype.itemsize
    if announced > stored.stat().st_size * (MOST_COMPRESSION if stored.suffix.lower() == ".gz" else 1):
        found = f"truncated or damaged (a header for {announced / 2**20:.1f} MiB of voxels)"
        raise InputError(path, found, "a complete NIfTI file", "Copy it again.")


def _read_voxels(image: Any) -> npt.NDArray[Any]:
    """Read the scaled voxels, and a compressed file to its very end: its checksum stands there, and nibabel alone stops
    at the last voxel, so that nine of ten single-bit errors would pass for intensities."""
    stored = image.dataobj
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        spec = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
        voxels = np.asanyarray(ArrayProxy(stream.fobj, spec))
        while stream.read(2**20):
            pass
    return voxels


def _to_lps(path: Path, data: npt.NDArray[Any], image: Any) -> Volume:
    affine = np.asarray(image.affine, np.float64)
    on_disk = orientations.io_orientation(affine) if np.isfinite(affine).all() else np.array(np.nan)
    if np.isnan(on_disk).any():
        raise InputError(path, "an affine that is not invertible", "a valid sform or qform", "Repair the header first.")
    to_lps = orientations.ornt_transform(on_disk, orientations.axcodes2ornt("LPS"))
    to_disk = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), on_disk)
    lps_affine = affine @ orientations.inv_ornt_aff(to_lps, data.shape[:3])
    return Volume(orientations.apply_orientation(data, to_lps), lps_affine, image.header, to_disk)


def read_case(files: CaseFiles) -> Case:
    """Read and check the modalities of a case.

    Missing modalities become zeros with a warning. Raises InputError: unreadable file, constant image, shapes or
    affines that differ between the modalities (more than AFFINE_TOLERANCE_MM at a corner).
    """
    volumes = _read_stacked(files.stacked) if files.stacked else {m: read_volume(p) for m, p in files.images.items()}
    paths = {m: files.stacked or files.images[m] for m in volumes}
    first = next(iter(volumes))
    reference = volumes[first]
    for modality, volume in volumes.items():
        check_same_grid(volume, paths[modality], reference, paths[first])
        if volume.data.min() == volume.data.max():
            found = f"every voxel is {volume.data.flat[0]}"
            raise InputError(paths[modality], found, f"a {modality} image", "Leave the file out if it has no content.")
    images_CXYZ = np.zeros((len(MODALITIES), *reference.data.shape), np.float32)
    for channel, modality in enumerate(MODALITIES):
        if modality in volumes:
            images_CXYZ[channel] = volumes[modality].data
    case = Case(files.case_id, images_CXYZ, reference, files.missing)
    case.warnings = _warnings(case, files)
    return case


def _read_stacked(path: Path) -> dict[str, Volume]:
    volume = read_volume(path, dimensions=4)
    if volume.data.shape[3] != len(MSD_ORDER):
        found = f"{volume.data.shape[3]} volumes"
        raise InputError(
            path, found, "4 volumes in the order FLAIR, T1w, T1gd, T2w", "Pass --t1, --t1ce, --t2, --flair."
        )
    return {
        modality: Volume(volume.data[..., i], volume.affine, volume.header, volume.to_disk)
        for i, modality in enumerate(MSD_ORDER)
    }


def check_same_grid(volume: Volume, path: Path, reference: Volume, reference_path: Path) -> None:
    """Raise InputError unless two volumes have one shape and place their corner voxels alike."""
    expected = f"the grid of {reference_path.name}"
    advice = "Co-register and resample the images first."
    if volume.data.shape != reference.data.shape:
        raise InputError(path, f"shape {volume.data.shape}", f"{expected}, {reference.data.shape}", advice)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.data.shape], [1])).reshape(4, -1)
    apart = float(np.abs((volume.affine - reference.affine) @ corners).max())
    if apart > AFFINE_TOLERANCE_MM:
        raise InputError(path, f"its affine places a corner {apart:.2f} mm away", f"{expected} to 0.1 mm", advice)


def _warnings(case: Case, files: CaseFiles) -> list[str]:
    warnings = [NUMBERED] if files.numbered else []
    warnings += [f"{m} is missing: zeros are used in its place and the result may suffer" for m in case.missing]
    background = float((case.images_CXYZ == 0).all(axis=0).mean())
    if background < LEAST_BACKGROUND:
        warnings.append(
            f"only {background:.0%} of the voxels are zero: the images do not look skull-stripped, and the result may "
            "suffer; remove the skull first (HD-BET, SynthStrip)"
        )
    if any(abs(s - 1) > 0.1 for s in case.spacing_mm):
        spacing = " × ".join(f"{s:.2f}" for s in case.spacing_mm)
        warnings.append(f"spacing is {spacing} mm; the networks were trained on 1 mm, and the result may suffer")
    header = case.reference.header
    if not header["sform_code"] and not header["qform_code"]:
        warnings.append("the header holds no orientation (sform and qform codes are 0): left/right cannot be trusted")
    return warnings


@np.errstate(invalid="ignore")  # negative values are found by comparison
def read_label(path: Path) -> Volume:
    """Read a label map; `data` is uint8 in LPS order. Raises InputError, also when a value is no integer in 0–255."""
    volume = read_volume(path)
    labels = volume.data.astype(np.uint8)
    if not np.array_equal(labels, volume.data):
        low, high = volume.data.min(), volume.data.max()
        raise InputError(path, f"values from {low} to {high}", "whole-number labels", "Check that it is a label map.")
    volume.data = labels
    return volume


def write_label_map(
    label_XYZ: npt.NDArray[np.uint8], reference: Volume, path: Path, origin: str = "", overwrite: bool = True
) -> None:
    """Write a label map (uint8, LPS order) into the reference's own grid on disk: axis order, affine, form codes.

    `origin`: a checksum of what it was made from, at most 16 letters, for `origin_of`. Nothing is left behind when
    writing fails. Raises InputError when the disk is full or the folder not writable, and where `path` exists already
    without `overwrite`.
    """
    # Without an affine of its own the image keeps the header's fields, which are the reference's to the bit.
    image = nibabel.Nifti1Image(orientations.apply_orientation(label_XYZ, reference.to_disk), None)
    for name in _GRID_FIELDS:
        image.header[name] = reference.header[name]
    made_from = f"of {origin}, " if origin else ""
    image.header["descrip"] = f"{_PROGRAM} {__version__}, {made_from}voxels {_checksum(label_XYZ)}".encode()
    image.header["cal_max"] = label_XYZ.max()
    _save(image, path, overwrite)


def write_volume(
    data_XYZ: npt.NDArray[Any], affine: npt.NDArray[np.float64], path: Path, overwrite: bool = True
) -> None:
    """Write a synthetic volume in LPS order with its affine, as BraTS stores its files. Raises InputError as above."""
    image = nibabel.Nifti1Image(data_XYZ, affine)
    image.header["descrip"] = b"synthetic, no patient"
    image.header.set_xyzt_units("mm")
    _save(image, path, overwrite)


def _save(image: Any, path: Path, overwrite: bool) -> None:
    with replace_when_complete(path, overwrite) as partial:
        nibabel.save(image, partial)


def origin_of(path: Path) -> str | None:
    """The `origin` that a label map was written with, corrected since or not; None for a file of another program.

    Raises InputError for a file that cannot be read.
    """
    description = _load(path).header["descrip"].item().decode("latin-1")
    match = re.match(rf"{_PROGRAM} \S+, of (\w+), ", description)
    return match[1] if match else None


def is_own_result(path: Path) -> bool:
    """Whether the file is a label map that `write_label_map` wrote and nobody has corrected since.

    Editors keep the description, so the voxels decide. Raises InputError for a file that cannot be read.
    """
    description: bytes = _load(path).header["descrip"].item()
    if not description.startswith(_PROGRAM.encode()):
        return False
    return description.endswith(f"voxels {_checksum(read_label(path).data)}".encode())


def _checksum(label_XYZ: npt.NDArray[np.uint8]) -> str:
    """Of the labels in LPS order."""
    return f"{zlib.crc32(label_XYZ.tobytes()):08x}"

"""Read a case from NIfTI and write its label map back into the same grid; the only module that knows nibabel.

In memory every volume has axes X Y Z in LPS order (X rises to the patient's left, Y to posterior, Z to superior), which
is how BraTS stores its cases and how the networks were trained; C are the modalities. On disk it may have any order.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.arrayproxy import ArrayProxy

from lowmem_brats import __version__
from lowmem_brats.brain import isolate_brain
from lowmem_brats.case_files import CaseFiles
from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.geometry import Volume, check_same_grid, place_voxels
from lowmem_brats.labels import LabelMap, as_labels

Float32 = npt.NDArray[np.float32]
MOST_COMPRESSION = 1032
"""No file compressed by deflate expands more."""
MOST_VOXELS = 512 * 512 * 256
"""Of one volume: eight times BraTS's 240 × 240 × 155, and 1 GiB for four modalities in float32. A file of 0.3 MiB can
claim as many and more; images this fine have to be resampled to 1 mm anyway."""
MOST_TRAILING = 2**20
"""Bytes that are read behind the last voxel on the way to a compressed file's checksum."""
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


@dataclass(frozen=True)
class _Kind:
    """What a file is read as."""

    dimensions: int
    values: str
    advice: Mapping[int, str]
    """Number of axes found → what to do."""


_ONE_PER_CLASS = (
    "It looks like one map per class: make one map of them, 0 for background and for each tissue its label, with "
    "numpy.argmax along the classes."
)
_IMAGE = _Kind(3, "intensities", {2: "Stack the slices into a volume.", 4: "Pass a 4-D file as the case itself."})
_STACK = _Kind(4, "intensities", {3: "Pass the case's folder."})
_LABEL = _Kind(3, "labels", {2: "Stack the slices into a volume.", 4: _ONE_PER_CLASS, 5: _ONE_PER_CLASS})


@dataclass
class Case:
    """One patient in memory."""

    case_id: str
    images_CXYZ: Float32
    """Modalities in the order of `config.MODALITIES`, 0 outside the brain (`isolate_brain`); a missing one is 0."""
    reference: Volume
    """The first modality; label maps are written into its grid."""
    missing: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return self.reference.spacing_mm


def read_volume(path: Path) -> Volume:
    """Read one NIfTI file and bring its three axes to LPS order.

    Trailing axes of length 1 are dropped. Data as stored after scaling: float32, or the stored integers when unscaled.
    Raises InputError: not NIfTI, truncated, not 3-D, too large, not finite, a header that contradicts itself.
    """
    return _read(path, _IMAGE)


@np.errstate(over="ignore", invalid="ignore")  # what no float32 can hold becomes infinite and is refused here
def _read(path: Path, kind: _Kind) -> Volume:
    image, stored = _load(path)
    shape = _shape(path, image, kind)
    _check_voxels(path, image, stored)
    affine_mm, warnings = place_voxels(path, image, stored)
    try:
        raw = _read_voxels(path, image).reshape(shape)
        data = raw if raw.dtype.kind in "iu" else raw.astype(np.float32)
    except _UNREADABLE as error:
        raise InputError(path, f"truncated or damaged ({error})", "a complete NIfTI file", "Copy it again.") from error
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        found = f"{data.size - np.isfinite(data).sum()} voxels are NaN or infinite"
        raise InputError(path, found, f"finite {kind.values}", "Repair the file first.")
    on_disk = orientations.io_orientation(affine_mm)
    to_lps = orientations.ornt_transform(on_disk, orientations.axcodes2ornt("LPS"))
    to_disk = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), on_disk)
    lps_affine = affine_mm @ orientations.inv_ornt_aff(to_lps, shape[:3])
    return Volume(orientations.apply_orientation(data, to_lps), lps_affine, stored, to_disk, warnings)


def _load(path: Path) -> tuple[Any, Any]:
    """nibabel's image without its voxels, and its header as it stands in the file."""
    expected = "a NIfTI file (.nii or .nii.gz)"
    if not path.is_file():
        raise InputError(path, "does not exist", expected, "Check the path.")
    log = nibabel.imageglobals.logger
    silent, log.disabled = log.disabled, True  # it tells what it repairs without the file; place_voxels tells it with
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.nifti1.Nifti1Pair):
            raise InputError(path, f"a {type(image).__name__}", expected, "Convert it to NIfTI first.")
        with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as stream:
            stored = type(image.header).from_fileobj(stream, check=False)
    except _NOT_NIFTI as error:
        raise InputError(path, f"not a NIfTI file ({error})", expected, "Convert or copy it again.") from error
    finally:
        log.disabled = silent
    return image, stored


def _shape(path: Path, image: Any, kind: _Kind) -> tuple[int, ...]:
    """The array's shape without trailing axes of length 1. Raises InputError for another than is read."""
    shape = tuple(image.shape)
    while len(shape) > kind.dimensions and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != kind.dimensions or min(shape) < 1:
        advice = kind.advice.get(len(shape), "Check the file.")
        raise InputError(path, f"{len(shape)}-D array of shape {shape}", f"a {kind.dimensions}-D volume", advice)
    if len(shape) == 4 and shape[3] != len(MSD_ORDER):
        expected = "4 volumes in the order FLAIR, T1w, T1gd, T2w"
        raise InputError(path, f"{shape[3]} volumes", expected, "Pass --t1, --t1ce, --t2, --flair.")
    return shape


def _check_voxels(path: Path, image: Any, stored: Any) -> None:
    """Refuse voxels that are no numbers, and more of them than the file can hold or anyone needs, before memory is
    taken for them."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        found = "colours (RGB)" if dtype.names else f"voxels of type {dtype}"
        advice = "Save labels or grey values as whole numbers." if dtype.names else "Convert it to float32 first."
        raise InputError(path, found, "one real number per voxel", advice)
    first = image.header.single_vox_offset if isinstance(image, nibabel.nifti1.Nifti1Image) else 0
    if stored["vox_offset"] < first:
        found = f"voxels from byte {stored['vox_offset']:g}, inside the header"
        raise InputError(path, found, f"a vox_offset of {first} or more", "Convert or copy it again.")
    if np.isinf(stored["scl_slope"]):
        raise InputError(path, "an infinite scl_slope", "a finite scale of intensities", "Convert or copy it again.")
    file = Path(image.get_filename())
    size, announced = file.stat().st_size, math.prod(image.shape) * dtype.itemsize
    if announced > size * (MOST_COMPRESSION if file.suffix.lower() == ".gz" else 1):
        found = f"truncated or damaged (a header for {announced} bytes of voxels in a file of {size} bytes)"
        raise InputError(path, found, "a complete NIfTI file", "Copy it again.")
    if (voxels := math.prod(image.shape[:3])) > MOST_VOXELS:
        advice = "Resample the images to 1 mm first."
        raise InputError(path, f"a volume of {voxels} voxels", f"at most {MOST_VOXELS}", advice)


def _read_voxels(path: Path, image: Any) -> npt.NDArray[Any]:
    """Read the scaled voxels, and a compressed file to its very end: its checksum stands there, and nibabel alone stops
    at the last voxel, so that nine of ten single-bit errors would pass for intensities."""
    stored, trailing = image.dataobj, 0
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        spec = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
        voxels = np.asanyarray(ArrayProxy(stream.fobj, spec, mmap=False))
        while more := len(stream.read(2**16)):
            trailing += more
            if trailing > MOST_TRAILING:
                found = f"more than {MOST_TRAILING} bytes after the last voxel"
                raise InputError(path, found, f"{math.prod(stored.shape)} voxels, as the header says", "Copy it again.")
    return voxels


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
    notes = isolate_brain(case.images_CXYZ, files.missing, float(np.prod(case.spacing_mm)))
    case.warnings = _warnings(case, files) + _warnings_of_headers(volumes) + notes
    return case


def _read_stacked(path: Path) -> dict[str, Volume]:
    volume = _read(path, _STACK)
    return {modality: replace(volume, data=volume.data[..., i]) for i, modality in enumerate(MSD_ORDER)}


def _warnings(case: Case, files: CaseFiles) -> list[str]:
    warnings = [NUMBERED] if files.numbered else []
    warnings += [f"{m} is missing: zeros are used in its place and the result may suffer" for m in case.missing]
    if any(abs(s - 1) > 0.1 for s in case.spacing_mm):
        spacing = " × ".join(f"{s:.2f}" for s in case.spacing_mm)
        warnings.append(f"spacing is {spacing} mm; the networks were trained on 1 mm, and the result may suffer")
    header = case.reference.header
    if not header["sform_code"] and not header["qform_code"]:
        warnings.append("the header holds no orientation (sform and qform codes are 0): left/right cannot be trusted")
    return warnings


def _warnings_of_headers(volumes: Mapping[str, Volume]) -> list[str]:
    """Each warning once, with the modalities whose headers it is about."""
    about: dict[str, list[str]] = {}
    for modality, volume in volumes.items():
        for warning in volume.warnings:
            about.setdefault(warning, []).append(modality)
    return [f"{', '.join(modalities)}: {warning}" for warning, modalities in about.items()]


def read_label(path: Path) -> Volume:
    """Read a label map; `data` is uint8 in LPS order. Raises InputError as `read_volume`, and as `labels.as_labels`."""
    volume = _read(path, _LABEL)
    return replace(volume, data=as_labels(volume.data, path))


def count_voxels(path: Path) -> int:
    """How many voxels a volume has by its header, which alone is read; 0 for a file that is none."""
    try:
        image: Any = nibabel.load(path)
        announced = int(math.prod(image.shape[:3]))
        return min(announced, path.stat().st_size * MOST_COMPRESSION)  # a damaged header may announce any number
    except (AttributeError, *_NOT_NIFTI):  # a file of another kind, such as a surface, has no shape
        return 0


def write_label_map(label_XYZ: LabelMap, reference: Volume, path: Path) -> None:
    """Write a label map (uint8, LPS order) into the reference's own grid on disk: axis order, affine, form codes.

    Nothing is left behind when writing fails. Raises InputError when the disk is full or the folder not writable.
    """
    # Without an affine of its own the image keeps the header's fields, which are the reference's to the bit.
    image = nibabel.Nifti1Image(orientations.apply_orientation(label_XYZ, reference.to_disk), None)
    for name in _GRID_FIELDS:
        image.header[name] = reference.header[name]
    image.header["descrip"] = f"{_PROGRAM} {__version__}, voxels {_checksum(label_XYZ)}".encode()
    image.header["cal_max"] = label_XYZ.max()
    _save(image, path)


def write_volume(data_XYZ: npt.NDArray[Any], affine: npt.NDArray[np.float64], path: Path) -> None:
    """Write a synthetic volume in LPS order with its affine, as BraTS stores its files. Raises InputError as above."""
    image = nibabel.Nifti1Image(data_XYZ, affine)
    image.header["descrip"] = b"synthetic, no patient"
    image.header.set_xyzt_units("mm")
    _save(image, path)


def _save(image: Any, path: Path) -> None:
    with replace_when_complete(path) as partial:
        nibabel.save(image, partial)


def is_own_result(path: Path) -> bool:
    """Whether the file is a label map that `write_label_map` wrote and nobody has corrected since.

    Editors keep the description, so the voxels decide. Raises InputError for a file that cannot be read.
    """
    description: bytes = _load(path)[1]["descrip"].item()
    if not description.startswith(_PROGRAM.encode()):
        return False
    return description.endswith(f"voxels {_checksum(read_label(path).data)}".encode())


def _checksum(label_XYZ: LabelMap) -> str:
    """Of the labels in LPS order."""
    return f"{zlib.crc32(label_XYZ.tobytes()):08x}"

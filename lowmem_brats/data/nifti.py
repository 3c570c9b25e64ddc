"""Read images and label maps from NIfTI, and write label maps back into an image's grid; the only door to nibabel.

In memory every volume has axes X Y Z in LPS order (X rises to the patient's left, Y to posterior, Z to superior), which
is how BraTS stores its cases and how the networks were trained; C are the modalities. On disk it may have any order.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.arrayproxy import ArrayProxy

from lowmem_brats import __version__
from lowmem_brats.data.geometry import Affine, Volume, place_voxels
from lowmem_brats.data.labels import LabelMap, as_labels
from lowmem_brats.data.readable import problem_of
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete

MOST_COMPRESSION = 1032
"""Times that a .gz file can be larger unpacked: deflate cannot compress more."""
MOST_VOXELS = 512 * 512 * 256
"""Most voxels of one volume: eight times BraTS's 240 × 240 × 155, or 1 GiB for four modalities in float32. Without it a
damaged file of 0.3 MiB could claim any amount of memory. Images this fine have to be resampled to 1 mm anyway."""
STACKED = 4
"""Most volumes of that size in a 4-D file."""
MOST_TRAILING = 2**20
"""Most bytes after the last voxel: they have to be read to reach a compressed file's checksum."""
NiftiImage = nibabel.nifti1.Nifti1Pair
"""What nibabel makes of a NIfTI file: Nifti1Image, Nifti2Image, or a pair of .hdr and .img."""
_PROGRAM, _SYNTHETIC = "lowmem-brats", "synthetic, no patient"
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, zlib.error)
_NOT_NIFTI = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, *_UNREADABLE)
_QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_GRID_FIELDS = (*_QFORM, "sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units")
"""Header fields that place voxels in space."""


@dataclass(frozen=True)
class _Kind:
    """How a file is read: as an image, a stack of images or a label map."""

    dimensions: int
    values: str
    advice: Mapping[int, str]
    """Number of axes found → what to do."""


_ONE_PER_CLASS = (
    "It looks like one map per class: make one map of them, 0 for background and for each tissue its label, with "
    "numpy.argmax along the classes."
)
_IMAGE = _Kind(3, "intensities", {2: "Stack the slices into a volume.", 4: "Pass a 4-D file as the case itself."})
_STACK = _Kind(4, "intensities", {3: "Pass a case folder that holds a file for each modality."})
_LABEL = _Kind(3, "labels", {2: "Stack the slices into a volume.", 4: _ONE_PER_CLASS, 5: _ONE_PER_CLASS})


def read_volume(path: Path) -> Volume:
    """Read one NIfTI file and bring its three axes to LPS order.

    Trailing axes of length 1 are dropped. Data as stored after scaling: float32, or the stored integers when unscaled.
    Raises InputError: not NIfTI, truncated, not 3-D, too large, not finite, a header that contradicts itself.
    """
    return _read(path, _IMAGE)


def read_stack(path: Path) -> Volume:
    """Read one NIfTI file of several volumes, [X, Y, Z, volumes]; otherwise as `read_volume`."""
    return _read(path, _STACK)


@np.errstate(over="ignore", invalid="ignore")  # what no float32 can hold becomes infinite and is refused here
def _read(path: Path, kind: _Kind) -> Volume:
    image, stored = _load(path)
    shape = _shape(path, image, kind)
    _check_voxels(path, image, stored, MOST_VOXELS * (STACKED if kind is _STACK else 1))
    affine_mm, warnings = place_voxels(path, image, stored)
    try:
        raw = _read_voxels(path, image).reshape(shape)
    except _UNREADABLE as error:
        raise InputError(path, f"truncated or damaged ({error})", "a complete NIfTI file", "Copy it again.") from error
    return _in_lps_order(path, raw, affine_mm, stored, warnings, kind)


@np.errstate(over="ignore", invalid="ignore")  # as in _read
def volume_of(image: NiftiImage, name: str) -> Volume:
    """Bring the three axes of a nibabel image to LPS order; its array is not changed.

    `name` stands for the file in errors. Otherwise as `read_volume`.
    """
    where = Path(name)
    if not isinstance(image, NiftiImage) or image.affine is None:
        found = "an image without an affine" if isinstance(image, NiftiImage) else f"a {type(image).__name__}"
        raise InputError(where, found, "a nibabel.Nifti1Image", "Make one with nibabel.Nifti1Image(array, affine).")
    shape = _shape(where, image, _IMAGE)
    _check_count(where, image, MOST_VOXELS)
    affine_mm, warnings = place_voxels(where, image, image.header)
    try:
        raw = np.asanyarray(image.dataobj).reshape(shape)
    except _UNREADABLE as error:
        raise InputError(where, f"voxels cannot be read ({error})", "a complete image", "Load it again.") from error
    _check_numbers(where, raw.dtype)
    return _in_lps_order(where, raw, affine_mm, image.header.copy(), warnings, _IMAGE)


def _in_lps_order(
    path: Path, raw: npt.NDArray[Any], affine_mm: npt.NDArray[np.float64], header: Any, warnings: list[str], kind: _Kind
) -> Volume:
    """The volume of an array in its order on disk. Raises InputError where a voxel is not finite."""
    data = raw if raw.dtype.kind in "iu" else raw.astype(np.float32)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        found = f"{data.size - np.isfinite(data).sum()} voxels are NaN or infinite"
        raise InputError(path, found, f"finite {kind.values}", "Repair the file first.")
    on_disk = orientations.io_orientation(affine_mm)
    to_lps = orientations.ornt_transform(on_disk, orientations.axcodes2ornt("LPS"))
    to_disk = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), on_disk)
    lps_affine = affine_mm @ orientations.inv_ornt_aff(to_lps, data.shape[:3])
    return Volume(orientations.apply_orientation(data, to_lps), lps_affine, header, to_disk, warnings)


def _load(path: Path) -> tuple[Any, Any]:
    """nibabel's image without its voxels, and its header as it stands in the file."""
    expected = "a NIfTI file (.nii or .nii.gz)"
    if problem := problem_of(path):
        raise InputError(path, problem[0], expected, problem[1])
    log = nibabel.imageglobals.logger
    silent, log.disabled = log.disabled, True  # its messages name no file; place_voxels warns of the same with it
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
    # Many programs write a fourth axis of length 1, for time.
    while len(shape) > kind.dimensions and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != kind.dimensions or min(shape) < 1:
        advice = kind.advice.get(len(shape), "Check the file.")
        raise InputError(path, f"{len(shape)}-D array of shape {shape}", f"a {kind.dimensions}-D volume", advice)
    return shape


def _check_voxels(path: Path, image: Any, stored: Any, most: int) -> None:
    """Raise InputError for voxels that are no numbers, and for more of them than the file can hold or than `most`.

    Only the header is read, so no memory is taken for them before.
    """
    dtype = image.get_data_dtype()
    _check_numbers(path, dtype)
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
    _check_count(path, image, most)


def _check_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iuf":
        found = "colours (RGB)" if dtype.names else f"voxels of type {dtype}"
        advice = "Save labels or grey values as whole numbers." if dtype.names else "Convert it to float32 first."
        raise InputError(path, found, "one real number per voxel", advice)


def _check_count(path: Path, image: Any, most: int) -> None:
    if (voxels := math.prod(image.shape)) > most:
        raise InputError(path, f"{voxels} voxels", f"at most {most}", "Resample the images to 1 mm first.")


def _read_voxels(path: Path, image: Any) -> npt.NDArray[Any]:
    """Read the scaled voxels, and a compressed file to its end, where its checksum stands.

    nibabel alone stops at the last voxel and never compares the checksum: nine of ten single-bit errors would pass for
    intensities.
    """
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


def read_label(path: Path) -> Volume:
    """Read a label map; `data` is uint8 in LPS order. Raises InputError as `read_volume`, and as `labels.as_labels`."""
    volume = _read(path, _LABEL)
    return replace(volume, data=as_labels(volume.data, path))


def count_voxels(path: Path) -> int:
    """Return the number of voxels that a file's header announces; only the header is read. 0 if it is not NIfTI."""
    try:
        image, _ = _load(path)
    except InputError:
        return 0
    announced = int(math.prod(image.shape[:3]))
    return min(announced, path.stat().st_size * MOST_COMPRESSION)  # a damaged header may announce any number


def write_label_map(
    label_XYZ: LabelMap, reference: Volume, path: Path, origin: str = "", overwrite: bool = True
) -> None:
    """Write a label map to `path`, as `label_image` makes it; nothing is left behind when writing fails.

    Raises InputError when the disk is full or the folder not writable, and where `path` exists already without
    `overwrite`.
    """
    _save(label_image(label_XYZ, reference, origin), path, overwrite)


def label_image(label_XYZ: LabelMap, reference: Volume, origin: str = "") -> NiftiImage:
    """A label map (uint8, LPS order) as an image in the reference's own grid: its axis order, affine and form codes.

    `origin`: a checksum of what it was made from, at most 16 letters, for `origin_of`.
    """
    image = _in_grid_of(reference, label_XYZ)
    made_from = f"of {origin}, " if origin else ""
    image.header["descrip"] = f"{_PROGRAM} {__version__}, {made_from}voxels {_checksum(label_XYZ)}".encode()
    image.header["cal_max"] = label_XYZ.max()
    return image


def _in_grid_of(reference: Volume, data_XYZ: npt.NDArray[Any]) -> NiftiImage:
    # Without an affine of its own the image keeps the header's fields, which are the reference's to the bit.
    image = nibabel.Nifti1Image(orientations.apply_orientation(data_XYZ, reference.to_disk), None)
    for name in _GRID_FIELDS:
        image.header[name] = reference.header[name]
    return image


def write_volume(
    data_XYZ: npt.NDArray[Any], grid: Affine | Volume, path: Path, overwrite: bool = True, about: str = _SYNTHETIC
) -> None:
    """Write a volume in LPS order: with an affine as BraTS stores its files, or in another's grid. Errors as above."""
    image = _in_grid_of(grid, data_XYZ) if isinstance(grid, Volume) else nibabel.Nifti1Image(data_XYZ, grid)
    if not isinstance(grid, Volume):
        image.header.set_xyzt_units("mm")
    image.header["descrip"] = about.encode()
    _save(image, path, overwrite)


def _save(image: Any, path: Path, overwrite: bool) -> None:
    with replace_when_complete(path, overwrite) as partial:
        nibabel.save(image, partial)


def origin_of(path: Path) -> str | None:
    """The `origin` that a label map was written with, corrected since or not; None for a file of another program.

    Raises InputError for a file that cannot be read.
    """
    description = _load(path)[1]["descrip"].item().decode("latin-1")
    match = re.match(rf"{_PROGRAM} \S+, of (\w+), ", description)
    return match[1] if match else None


def is_own_result(path: Path) -> bool:
    """Whether the file is a label map that `write_label_map` wrote and nobody has corrected since.

    Editors keep the description, so the voxels decide. Raises InputError for a file that cannot be read.
    """
    description: bytes = _load(path)[1]["descrip"].item()
    if not description.startswith(_PROGRAM.encode()):
        return False
    return description.endswith(f"voxels {_checksum(read_label(path).data)}".encode())


def _checksum(label_XYZ: LabelMap) -> str:
    """CRC-32 of the labels in LPS order, so that it does not depend on the axis order on disk."""
    return f"{zlib.crc32(label_XYZ.tobytes()):08x}"

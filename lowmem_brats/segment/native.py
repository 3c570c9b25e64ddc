"""Carry the label map of a prepared case back onto the T1ce that came from the scanner.

`prepare` leaves that image in the case's folder. It lies in the same space as the case's images, so no transform is
needed but those of the two grids.

Axes: X Y Z voxels in LPS order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.data.case_files import stem
from lowmem_brats.data.geometry import Affine, Volume
from lowmem_brats.data.labels import LabelConvention, LabelMap
from lowmem_brats.data.nifti import read_volume, write_label_map
from lowmem_brats.errors import InputError

RECORD, NATIVE = "prepare.json", "native"
"""In the folder of a prepared case: how it was made, and the folder of what lies on the raw T1ce's grid."""
FORCED = "prepared with --force although checks failed, so the result may be wrong"
MARGIN = 2
"""Voxels around the lesion that are looked at."""


@dataclass(frozen=True)
class PreparedFolder:
    """What a case's folder says of its preparation."""

    native: Path
    """T1ce as it came from the scanner."""
    problems: tuple[str, ...]
    """Checks that failed; the case was prepared all the same, with --force."""
    t1ce_checksum: str
    """Of the files that T1ce was made of."""


@dataclass(frozen=True)
class Target:
    """Where a label map goes back to."""

    native: Path
    """T1ce as it came from the scanner."""
    path: Path
    """The file to write."""
    overwrite: bool = False


def prepared_folder(folder: Path) -> PreparedFolder | None:
    """What `prepare` left in a case's folder; None where the case was not prepared by it.

    Raises InputError for a record that cannot be read or names an image that is not there.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        native, problems = folder / str(record["native_image"]), tuple(map(str, record["problems"]))
        checksum = str(record["inputs"]["t1ce"]["checksum"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"cannot be read ({error})"
        raise InputError(path, found, "the record that prepare wrote", "Prepare the case again.") from error
    if not native.is_file():
        found = f"names {native.name}, which is not there"
        raise InputError(path, found, "T1ce as it came from the scanner", "Prepare the case again.")
    return PreparedFolder(native, problems, checksum)


def native_path(target: Path) -> Path:
    """Where the label map on the raw T1ce's grid goes: beside `target`, in a folder in which no case is looked for."""
    return target.parent / NATIVE / f"{stem(target)}_native.nii.gz"


def dicom_seg_path(target: Path) -> Path:
    """Where the DICOM segmentation goes: beside the label map on the raw T1ce's grid."""
    return target.parent / NATIVE / f"{stem(target)}.dcm"


def write_native(
    label_XYZ: LabelMap, affine: Affine, target: Target, convention: LabelConvention, origin: str
) -> dict[str, float]:
    """Write a label map of the case's grid on the raw T1ce's grid; returns tissue → mL, measured there.

    `affine`: voxel of `label_XYZ` → RAS+ mm. Raises InputError as `write_label_map`.
    """
    reference = read_volume(target.native)
    native_XYZ = carried(label_XYZ, affine, reference)
    write_label_map(native_XYZ, reference, target.path, origin, target.overwrite)
    voxel_ml = float(np.prod(reference.spacing_mm)) / 1000
    return {tissue: int((native_XYZ == label).sum()) * voxel_ml for tissue, label in convention.tissues.items()}


def carried(label_XYZ: LabelMap, affine: Affine, reference: Volume) -> LabelMap:
    """A label map on the grid of `reference`: each voxel gets the label with the most weight around its centre.

    The map of each label is interpolated linearly, which keeps borders and volumes better than taking the nearest
    voxel. `affine`: voxel of `label_XYZ` → RAS+ mm. Only the part that can hold the lesion is computed.
    """
    found_XYZ = np.zeros(reference.data.shape, np.uint8)
    filled = ndimage.find_objects((label_XYZ != 0).view(np.uint8))
    if not filled:
        return found_XYZ
    to_label = np.linalg.inv(affine) @ reference.affine
    corners = np.array(np.meshgrid(*[(each.start - MARGIN, each.stop + MARGIN) for each in filled[0]], [1]))
    places = (np.linalg.inv(to_label) @ corners.reshape(4, -1))[:3]
    first = np.clip(np.floor(places.min(1)), 0, found_XYZ.shape).astype(int)
    last = np.clip(np.ceil(places.max(1)) + 1, 0, found_XYZ.shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    if any(each.start >= each.stop for each in box):
        return found_XYZ
    shape = tuple(each.stop - each.start for each in box)
    offset = to_label[:3, :3] @ first + to_label[:3, 3]
    labels = [0, *(int(label) for label in np.unique(label_XYZ) if label)]
    most: npt.NDArray[np.float32] = np.full(shape, -1, np.float32)
    for label in labels:
        here = (label_XYZ == label).astype(np.float32)
        weight = ndimage.affine_transform(
            here, to_label[:3, :3], offset, shape, order=1, mode="constant", cval=float(label == 0)
        )
        better = weight > most
        found_XYZ[box][better], most[better] = label, weight[better]
    return found_XYZ

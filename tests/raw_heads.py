"""Synthetic heads as a scanner would show them: skull on, sequences not registered; as NIfTI files or DICOM series.

They are made of the phantoms' geometry, and come from no patient; the names in their DICOM headers are made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.phantom import make_phantom

SHAPE, SPACING_MM = (60, 60, 39), 4.0
AFFINE = np.array([[-4.0, 0, 0, 118], [0, -4, 0, 120], [0, 0, 4, -70], [0, 0, 0, 1]])
SCALP = {"t1": 900.0, "t1ce": 950.0, "t2": 700.0, "flair": 600.0}
PATIENT = {"PatientName": "Doe^Jane^Quux", "PatientBirthDate": "19510203", "PatientID": "MRN0042317"}
"""What no output may hold."""
EMPTY = dict.fromkeys(("PatientSex", "StudyID", "StudyTime", "AccessionNumber", "ReferringPhysicianName"), "")
"""What a DICOM segmentation asks of its source."""
TIMES = {
    "t1": (550.0, 12.0, None),
    "t1ce": (550.0, 14.0, None),
    "t2": (4000.0, 95.0, None),
    "flair": (9000.0, 110.0, 2500.0),
}
"""Modality → TR, TE and TI in ms."""
MOVES = {"t1": ((2, -3, 4), (3, -2, 1)), "t2": ((-5, 4, 8), (-4, 5, 3)), "flair": ((6, 3, -7), (5, 4, -6))}
"""Modality → degrees about X, Y, Z and shift in mm, by which its head lies otherwise than T1ce's."""


@dataclass(frozen=True)
class Head:
    """One synthetic head, all sequences on one grid."""

    images: Mapping[str, npt.NDArray[np.float32]]
    brain_XYZ: npt.NDArray[np.bool_]


def make_head(seed: int = 0) -> Head:
    """A phantom's brain in fluid, skull and scalp, with noise in the air."""
    phantom, rng = make_phantom(seed, SHAPE), np.random.default_rng(seed)
    brain_XYZ = ndimage.binary_fill_holes(phantom.images_CXYZ.any(0))
    away_mm = ndimage.distance_transform_edt(~brain_XYZ, SPACING_MM)
    images = {}
    for modality, image_XYZ in zip(MODALITIES, phantom.images_CXYZ.astype(np.float32), strict=True):
        head_XYZ = np.where(brain_XYZ, image_XYZ, 0.0)
        head_XYZ[(away_mm > 0) & (away_mm <= 3)] = 120.0 if modality.startswith("t1") else 500.0
        head_XYZ[(away_mm > 3) & (away_mm <= 9)] = 60.0
        head_XYZ[(away_mm > 9) & (away_mm <= 16)] = SCALP[modality]
        images[modality] = (head_XYZ + np.abs(rng.normal(0, 12, SHAPE))).astype(np.float32)
    return Head(images, brain_XYZ)


def rigid(degrees: tuple[float, ...], shift_mm: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """4 × 4, in RAS+ mm about the middle of the grid: where a point of T1ce's head lies in the other head."""
    middle = AFFINE[:3] @ [*(np.array(SHAPE) - 1) / 2, 1]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift_mm
    return matrix


def moved(image_XYZ: npt.NDArray[np.float32], transform: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The image of a head that was moved by `transform`, on the same grid."""
    back = np.linalg.inv(AFFINE) @ np.linalg.inv(transform) @ AFFINE
    return ndimage.affine_transform(image_XYZ, back[:3, :3], back[:3, 3], order=1)


def write_study(folder: Path, head: Head, moves: Mapping[str, Any] = MOVES) -> Path:
    """Write the raw study as NIfTI files t1.nii.gz …, each modality moved as `moves` says; returns the folder."""
    folder.mkdir(parents=True)
    for modality, image_XYZ in head.images.items():
        seen_XYZ = moved(image_XYZ, rigid(*moves[modality])) if modality in moves else image_XYZ
        nibabel.save(nibabel.Nifti1Image(seen_XYZ.astype(np.int16), AFFINE), folder / f"{modality}.nii.gz")
    return folder


def write_mask(path: Path, head: Head) -> Path:
    """Write the head's brain as a mask on T1ce's grid."""
    nibabel.save(nibabel.Nifti1Image(head.brain_XYZ.astype(np.uint8), AFFINE), path)
    return path


def write_series(
    folder: Path,
    number: int,
    description: str,
    image_XYZ: npt.NDArray[np.float32],
    times: tuple[float, float, float | None],
    leave_out: tuple[int, ...] = (),
    **tags: Any,
) -> Path:
    """Write one DICOM series, a file for each slice but those in `leave_out`; returns `folder`.

    `image_XYZ`: in LPS order, placed by AFFINE. `times`: TR, TE, TI in ms.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True, exist_ok=True)
    repetition, echo, inversion = times
    first = (AFFINE[:3, 3] * (-1, -1, 1)).tolist()
    root = "1.2.826.0.1.3680043.8.498"
    for z in range(image_XYZ.shape[2]):
        if z in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{root}.{number}.{z + 1}"
        path = folder / f"IM_{number:02d}_{z:03d}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{root}.1", f"{root}.1.{number}"
        data.FrameOfReferenceUID = f"{root}.2"
        data.Modality, data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "MR", "SIEMENS", number, z + 1
        data.SeriesDescription, data.ProtocolName, data.ImageType = description, description, ["ORIGINAL", "PRIMARY"]
        data.StudyDate, data.SeriesTime, data.AcquisitionTime = "20200102", "101010", "101010"
        data.RepetitionTime, data.EchoTime, data.FlipAngle = repetition, echo, 90
        if inversion:
            data.InversionTime = inversion
        for name, value in {**PATIENT, **tags}.items():
            setattr(data, name, value)
        data.Rows, data.Columns = image_XYZ.shape[1], image_XYZ.shape[0]
        data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [SPACING_MM] * 2, SPACING_MM, SPACING_MM
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [first[0], first[1], first[2] + z * SPACING_MM]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = np.ascontiguousarray(image_XYZ[:, :, z].T).astype("<u2").tobytes()
        data.save_as(path, enforce_file_format=True)
    return folder


def write_dicom_study(folder: Path, head: Head, moves: Mapping[str, Any] = MOVES) -> Path:
    """Write the four sequences, a localizer, diffusion and a T1 with a missing slice, all files in one folder."""
    names = {"t1": "AX T1 FLAIR", "t1ce": "AX T1 +C", "t2": "AX T2 PROPELLER", "flair": "AX FLAIR"}
    for number, (modality, description) in enumerate(names.items(), 2):
        image_XYZ = head.images[modality]
        seen_XYZ = moved(image_XYZ, rigid(*moves[modality])) if modality in moves else image_XYZ
        agent = {"ContrastBolusAgent": "GADAVIST"} if modality == "t1ce" else {}
        write_series(folder, number, description, seen_XYZ, TIMES[modality], **agent, **EMPTY)
    write_series(folder, 1, "3-PLANE LOC", head.images["t1"][:, :, :5], (8.0, 3.0, None))
    write_series(folder, 6, "AX T1 REPEAT", head.images["t1"], TIMES["t1"], leave_out=(20,))
    write_series(folder, 7, "ep2d_diff_b1000", head.images["t2"][:, :, :12], (6000.0, 90.0, None))
    return folder

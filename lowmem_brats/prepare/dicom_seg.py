"""Write the label map of a prepared case as a DICOM segmentation of the T1ce series that it was made of.

highdicom copies the patient's and the study's data from the series, as archives need them: of all that this program
writes, only this file names the patient. Axes: X Y Z voxels in LPS order; F R C frames, rows and columns of DICOM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats import __version__
from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.labels import LabelConvention
from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.prepare.dicom import dicom_files, series_in
from lowmem_brats.prepare.extra import library
from lowmem_brats.prepare.source import checksum_of

PROGRAM, SERIES_NUMBER = "lowmem-brats", 9000
CODES = {
    "necrotic core": ("6574001", "SCT", "Necrosis"),
    "oedema": ("79654002", "SCT", "Edema"),
    "enhancing tumour": ("C113842", "NCIt", "Enhancing Lesion"),
}
"""Tissue → code, its scheme and its meaning."""
CATEGORY = ("49755003", "SCT", "Morphologically Altered Structure")
NEEDED = (
    "PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID StudyID StudyDate StudyTime AccessionNumber "
    "ReferringPhysicianName FrameOfReferenceUID PixelSpacing ImagePositionPatient ImageOrientationPatient"
)
"""What a DICOM segmentation takes from its source; most of it may be empty, but has to be there."""
OFF_GRID = 0.1
"""How far, in voxels, a pixel of the series may lie from a voxel of the label map."""


def find_t1ce(folder: Path, checksum: str) -> list[Any]:
    """The headers of the series in a folder, at any depth, of which a case's T1ce was made.

    `checksum`: of its files, as in the case's record. Raises InputError where it is not there, is no series of single
    slices, or its headers lack what a segmentation needs.
    """
    library("highdicom")  # told before any work where it is missing
    pydicom = library("pydicom")
    all_series = series_in(dicom_files(folder))
    files = next((files for files in all_series.values() if checksum_of(files) == checksum), None)
    if files is None:
        shown = ", ".join(each.named for each in all_series) or "no DICOM series"
        advice = "Pass the folder from which the case was prepared, files unchanged."
        raise InputError(folder, shown, "the T1ce series of which the case was made", advice)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    if "NumberOfFrames" in headers[0]:
        advice = "Convert it to single slices and prepare the case of those."
        raise InputError(folder, "T1ce in one file of many frames", "a series of single slices", advice)
    missing = [name for name in NEEDED.split() if any(name not in header for header in headers)]
    if missing:
        found, advice = f"T1ce's headers lack {', '.join(missing)}", "Export the series again, with empty values there."
        raise InputError(folder, found, "the headers that a DICOM segmentation copies", advice)
    return headers


def write_dicom_seg(
    label: Volume, headers: Sequence[Any], convention: LabelConvention, path: Path, overwrite: bool = False
) -> None:
    """Write a label map on the raw T1ce's grid as a DICOM segmentation with a segment for each tissue.

    `headers`: of the T1ce series, one for each slice. Raises InputError: nothing is segmented, slices that do not lie
    on the grid, headers that highdicom does not accept, a file that cannot be written.
    """
    highdicom = library("highdicom")
    label_FRC = np.stack([_slice_of(label, header, path) for header in headers])
    tissues = {name: value for name, value in convention.tissues.items() if (label_FRC == value).any()}
    if not tissues:
        raise InputError(path, "a label map without tumour", "something to write", "Leave --dicom-seg out.")
    segment_FRC = np.zeros_like(label_FRC)
    for number, value in enumerate(tissues.values(), 1):
        segment_FRC[label_FRC == value] = number
    try:
        made = highdicom.seg.Segmentation(
            source_images=list(headers),
            pixel_array=segment_FRC,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(tissues),
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=PROGRAM,
            manufacturer_model_name=PROGRAM,
            software_versions=__version__,
            device_serial_number="0",
            content_label="TUMOUR",
            series_description=f"{PROGRAM}: not for diagnosis",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"T1ce's headers are not accepted ({error})"
        raise InputError(
            path, found, "what a DICOM segmentation copies from them", "Export the series again."
        ) from error
    with replace_when_complete(path, overwrite) as partial:
        made.save_as(partial)


def _descriptions(tissues: Iterable[str]) -> list[Any]:
    """What each segment shows, numbered from 1."""
    highdicom, code = library("highdicom"), library("pydicom.sr.coding").Code
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=PROGRAM, version=__version__, family=code("123110", "DCM", "Artificial Intelligence")
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=tissue,
            segmented_property_category=code(*CATEGORY),
            segmented_property_type=code(*CODES[tissue]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, tissue in enumerate(tissues, 1)
    ]


def _slice_of(label: Volume, header: Any, path: Path) -> npt.NDArray[np.uint8]:
    """The labels at the pixels of one slice, rows × columns."""
    along_row, along_column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(size) for size in header.PixelSpacing)  # between rows, between columns
    to_lps = np.eye(4)
    to_lps[:3, 0], to_lps[:3, 1] = along_column * row_mm, along_row * column_mm
    to_lps[:3, 3] = np.array(header.ImagePositionPatient, float)
    to_voxel = np.linalg.inv(label.affine) @ np.diag([-1.0, -1, 1, 1]) @ to_lps
    rows, columns = int(header.Rows), int(header.Columns)
    r, c = np.indices((rows, columns)).reshape(2, -1)
    places = to_voxel @ np.stack([r, c, np.zeros_like(r), np.ones_like(r)])
    nearest = np.round(places[:3]).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(label.data.shape)[:, None])).all()
    if not inside or np.abs(places[:3] - nearest).max() > OFF_GRID:
        found = "a slice of T1ce that does not lie on the label map's grid"
        raise InputError(path, found, "the series of which the case was made", "Prepare the case again.")
    found_RC: npt.NDArray[np.uint8] = label.data[tuple(nearest)].reshape(rows, columns)
    return found_RC

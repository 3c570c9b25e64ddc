"""A label map as a DICOM segmentation: the right voxels at the right places, and what is asked of the source files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from raw_heads import AFFINE, EMPTY, PATIENT, TIMES, write_series

from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import extra as libraries
from lowmem_brats.prepare.dicom_seg import find_t1ce, write_dicom_seg
from lowmem_brats.prepare.source import checksum_of

pytestmark = pytest.mark.usefixtures("extra")
SHAPE = (24, 20, 12)
LABELS = CONVENTIONS["brats2020"]


@pytest.fixture(scope="module")
def label() -> Volume:
    label_XYZ = np.zeros(SHAPE, np.uint8)
    label_XYZ[4:16, 5:15, 3:9], label_XYZ[6:10, 7:12, 4:7], label_XYZ[7, 8, 5] = 2, 4, 1
    return Volume(label_XYZ, AFFINE, None, np.zeros((3, 2)))


def series(folder: Path, **tags: str) -> str:
    """Write T1ce with another series beside it; returns the checksum of its files."""
    image_XYZ = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    write_series(folder / "t2", 4, "T2", image_XYZ, TIMES["t2"], **tags)
    write_series(folder / "t1ce", 3, "T1 POST", image_XYZ, TIMES["t1ce"], **tags)
    return checksum_of(sorted((folder / "t1ce").iterdir()))


def test_every_voxel_is_where_its_slice_is(label: Volume, tmp_path: Path) -> None:
    from pydicom import dcmread

    headers = find_t1ce(tmp_path, series(tmp_path, **EMPTY))
    write_dicom_seg(label, headers, LABELS, tmp_path / "seg.dcm")
    made = dcmread(tmp_path / "seg.dcm")
    told = [(each.SegmentLabel, each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for each in made.SegmentSequence]
    assert told == [("necrotic core", "Necrosis"), ("oedema", "Edema"), ("enhancing tumour", "Enhancing Lesion")]
    found_XYZ = np.zeros(SHAPE, np.uint8)
    for frame_RC, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        height_mm = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        z = round((height_mm - AFFINE[2, 3]) / AFFINE[2, 2])
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found_XYZ[:, :, z][frame_RC.T == 1] = (1, 2, 4)[number - 1]
    assert np.array_equal(found_XYZ, label.data)
    assert (made.Modality, made.PatientID, str(made.PatientName)) == (
        "SEG",
        PATIENT["PatientID"],
        PATIENT["PatientName"],
    )
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == headers[0].SeriesInstanceUID
    with pytest.raises(InputError, match="exists"):
        write_dicom_seg(label, headers, LABELS, tmp_path / "seg.dcm")


def test_a_sagittal_series_is_read_along_its_own_rows(label: Volume, tmp_path: Path) -> None:
    from lowmem_brats.prepare.dicom_seg import _slice_of

    first = (AFFINE @ [9, 0, SHAPE[2] - 1, 1])[:3] * (-1, -1, 1)  # the place of voxel X = 9, in front, at the top
    header = SimpleNamespace(
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        PixelSpacing=[4, 4],
        ImagePositionPatient=first.tolist(),
        Rows=SHAPE[2],
        Columns=SHAPE[1],
    )
    assert np.array_equal(_slice_of(label, header, tmp_path), label.data[9, :, ::-1].T)
    header.ImagePositionPatient = (first + np.array([1, 0, 0])).tolist()
    with pytest.raises(InputError, match="does not lie on the label map's grid"):
        _slice_of(label, header, tmp_path)


def test_another_series_is_not_taken(tmp_path: Path) -> None:
    series(tmp_path)
    with pytest.raises(InputError, match=r"series 3 \(T1 POST\), series 4 \(T2\)"):
        find_t1ce(tmp_path, "0")


def test_headers_that_lack_what_is_copied(tmp_path: Path) -> None:
    checksum = series(tmp_path)
    with pytest.raises(
        InputError, match="lack PatientSex, StudyID, StudyTime, AccessionNumber, ReferringPhysicianName"
    ):
        find_t1ce(tmp_path, checksum)


def test_a_label_map_without_tumour(label: Volume, tmp_path: Path) -> None:
    headers = find_t1ce(tmp_path, series(tmp_path, **EMPTY))
    empty = Volume(np.zeros_like(label.data), AFFINE, None, label.to_disk)
    with pytest.raises(InputError, match="without tumour"):
        write_dicom_seg(empty, headers, LABELS, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=r"pip install 'lowmem-brats\[dicom\]'"):
        find_t1ce(tmp_path, "0")

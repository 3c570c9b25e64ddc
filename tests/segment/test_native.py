"""Label maps carried back onto the raw T1ce."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.data.nifti import origin_of, read_label, read_volume, write_volume
from lowmem_brats.errors import InputError
from lowmem_brats.segment.native import RECORD, Target, carried, native_path, prepared_folder, write_native

LABELS = CONVENTIONS["brats2020"]
RECORDED = {"native_image": "raw.nii.gz", "problems": ["a", "b"], "inputs": {"t1ce": {"checksum": "f00d"}}}


def volume(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    return Volume(np.zeros(shape, np.int16), affine, None, np.zeros((3, 2)))


def ball(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Nested balls of the three labels around the place (−20, −22, 21) mm."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm(places - (-20, -22, 21), axis=-1)
    return np.select([radius < 5, radius < 8, radius < 12], [1, 4, 2]).astype(np.uint8)


FINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def test_on_its_own_grid_nothing_changes() -> None:
    label_XYZ = ball((40, 44, 42), FINE)
    assert np.array_equal(carried(label_XYZ, FINE, volume((40, 44, 42), FINE)), label_XYZ)


def test_a_shift_by_whole_voxels_is_exact_and_what_lies_outside_is_lost() -> None:
    label_XYZ = ball((40, 44, 42), FINE)
    there = FINE.copy()
    there[:3, 3] = FINE @ [16, 3, 0, 1] @ np.eye(4)[:, :3]
    found_XYZ = carried(label_XYZ, FINE, volume((40, 44, 42), there))
    assert np.array_equal(found_XYZ[:24, :41], label_XYZ[16:, 3:])
    assert not found_XYZ[24:].any()


@pytest.mark.parametrize("degrees", [0, 11])
def test_a_turned_grid_shows_the_same_lesion(degrees: float) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [
        [np.cos(np.radians(degrees)), -np.sin(np.radians(degrees))],
        [np.sin(np.radians(degrees)), np.cos(np.radians(degrees))],
    ]
    native = turn @ np.diag([-0.7, -0.7, 0.9, 1.0])
    native[:3, 3] = (8, 10, -1)
    shape, label_XYZ = (80, 80, 50), ball((40, 44, 42), FINE)
    found_XYZ, true_XYZ = carried(label_XYZ, FINE, volume(shape, native)), ball(shape, native)
    for label in (1, 2, 4):
        found, true = found_XYZ == label, true_XYZ == label
        assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9
        assert found.sum() == pytest.approx(true.sum(), rel=0.1), "the smallest ball has 0.5 mL"


@pytest.mark.parametrize("apart_mm", [0, 900])
def test_no_lesion_on_the_grid(apart_mm: float) -> None:
    label_XYZ = ball((40, 44, 42), FINE) * bool(apart_mm)
    there = FINE.copy()
    there[0, 3] = apart_mm
    assert not carried(label_XYZ, FINE, volume((40, 44, 42), there)).any()


def test_the_file_lies_on_the_raw_grid_and_volumes_are_measured_there(tmp_path: Path) -> None:
    label_XYZ, native = ball((40, 44, 42), FINE), np.diag([-2.0, -2.0, 3.0, 1.0])
    write_volume(np.zeros((20, 22, 14), np.int16), native, tmp_path / "raw.nii.gz")
    found_ml = write_native(label_XYZ, FINE, Target(tmp_path / "raw.nii.gz", tmp_path / "seg.nii.gz"), LABELS, "abc12")
    written = read_label(tmp_path / "seg.nii.gz")
    assert written.affine == pytest.approx(read_volume(tmp_path / "raw.nii.gz").affine)
    voxels = {tissue: int((written.data == label).sum()) for tissue, label in LABELS.tissues.items()}
    assert found_ml == pytest.approx({tissue: count * 12 / 1000 for tissue, count in voxels.items()})
    assert sum(found_ml.values()) == pytest.approx((label_XYZ != 0).sum() / 1000, rel=0.1)
    assert origin_of(tmp_path / "seg.nii.gz") == "abc12"


def test_where_it_goes() -> None:
    assert native_path(Path("out/x_seg.nii.gz")) == Path("out/native/x_seg_native.nii.gz")


def test_a_folder_that_was_not_prepared(tmp_path: Path) -> None:
    assert prepared_folder(tmp_path) is None


def test_what_a_prepared_folder_says(tmp_path: Path) -> None:
    (tmp_path / "raw.nii.gz").touch()
    (tmp_path / RECORD).write_text(json.dumps(RECORDED))
    found = prepared_folder(tmp_path)
    assert found is not None
    assert (found.native, found.problems, found.t1ce_checksum) == (tmp_path / "raw.nii.gz", ("a", "b"), "f00d")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps(RECORDED | {"native_image": "gone.nii.gz"}), "names gone.nii.gz, which is not there"),
    ],
)
def test_a_record_that_cannot_be_used(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InputError, match=told):
        prepared_folder(tmp_path)

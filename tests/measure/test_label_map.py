"""A label map's volumes and lesions, from files of any axis order, and as CSV and JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.data.nifti import write_volume
from lowmem_brats.errors import InputError
from lowmem_brats.measure.label_map import measure_file, to_csv, to_json

BRATS2020, BRATS2023, MSD = (CONVENTIONS[name] for name in ("brats2020", "brats2023", "msd"))
AFFINE = np.array([[-0.5, 0, 0, 10], [0, -1, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1.0]])
"""LPS order, voxels of 0.5 × 1 × 2 mm, which is 1 mm³."""


@pytest.fixture
def label_map(tmp_path: Path) -> Path:
    """Oedema of 2000 voxels, in it core of 240, in it enhancing tumour of 2 × 60 voxels."""
    label = np.zeros((60, 40, 12), np.uint8)
    label[10:30, 10:30, 2:7] = 2
    label[11:23, 11:16, 3:7] = 1
    label[11:23, 11:16, 3] = label[11:23, 11:16, 5] = 4
    write_volume(label, AFFINE, tmp_path / "A_seg.nii.gz")
    return tmp_path / "A_seg.nii.gz"


def test_volumes_by_hand(label_map: Path) -> None:
    measured = measure_file("A", label_map, BRATS2020)
    assert measured.volumes_ml == pytest.approx(
        {"wt": 2.0, "tc": 0.24, "et": 0.12, "necrotic core": 0.12, "oedema": 1.76}
    )
    assert [lesion.slice for lesion in measured.lesions] == [3, 5]
    assert [lesion.side for lesion in measured.lesions] == ["unknown", "unknown"]
    assert (measured.measurable, measured.sum_of_products_mm2, measured.warnings) == (0, 0, ())


@pytest.mark.parametrize("order", ["RAS", "LPI", "SLA", "PIR"])
def test_the_axis_order_on_disk_changes_nothing(label_map: Path, tmp_path: Path, order: str) -> None:
    image = nibabel.load(label_map)
    codes = nibabel.orientations.axcodes2ornt(order)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    assert (
        measure_file("A", tmp_path / "turned.nii.gz", BRATS2020).lesions
        == measure_file("A", label_map, BRATS2020).lesions
    )


def test_conventions(label_map: Path, tmp_path: Path) -> None:
    label = np.asarray(nibabel.load(label_map).dataobj)
    for convention, values in ((BRATS2023, [0, 1, 2, 0, 3]), (MSD, [0, 2, 1, 0, 3])):
        write_volume(np.array(values, np.uint8)[label], AFFINE, tmp_path / "other.nii.gz")
        other = measure_file("A", tmp_path / "other.nii.gz", convention)
        assert other.volumes_ml == measure_file("A", label_map, BRATS2020).volumes_ml
    with pytest.raises(InputError, match=r"A_seg\.nii\.gz: unknown label 4"):
        measure_file("A", label_map, BRATS2023)


def test_no_tumour(tmp_path: Path) -> None:
    write_volume(np.zeros((5, 5, 5), np.uint8), AFFINE, tmp_path / "empty.nii.gz")
    measured = measure_file("A", tmp_path / "empty.nii.gz", BRATS2020)
    assert set(measured.volumes_ml.values()) == {0.0}
    assert measured.lesions == []
    header, row = csv.reader(to_csv([measured]).splitlines())
    assert dict(zip(header, row, strict=False))["lesions"] == "0"


def test_a_mask_is_warned_of(tmp_path: Path) -> None:
    write_volume(np.ones((5, 5, 5), np.uint8), AFFINE, tmp_path / "mask.nii.gz")
    (warning,) = measure_file("A", tmp_path / "mask.nii.gz", BRATS2020).warnings
    assert warning.startswith("its only label is 1")


def test_the_images_tell_the_side(pristine: Path, label_map: Path) -> None:
    """The phantom's lesion and its mirror image lie on opposite sides."""
    case, path = read_case(find_case(pristine)), pristine / "phantom_000_seg.nii.gz"
    found = measure_file("phantom_000", path, BRATS2020, case).lesions[0]
    brain_XYZ = case.images_CXYZ.any(axis=0)
    middle = np.argwhere(brain_XYZ)[:, 0].mean()
    enhancing = np.argwhere(np.asarray(nibabel.load(path).dataobj) == 4)[:, 0].mean()
    assert found.side == ("left" if enhancing > middle else "right")
    with pytest.raises(InputError, match="expected the grid of phantom_000"):
        measure_file("A", label_map, BRATS2020, case)


def test_csv_has_a_row_per_label_map_and_json_all_lesions(label_map: Path) -> None:
    measured = [measure_file(name, label_map, BRATS2020) for name in ("A", "B")]
    rows = list(csv.DictReader(to_csv(measured).splitlines()))
    assert [row["case"] for row in rows] == ["A", "B"]
    assert rows[0]["file"] == str(label_map)
    assert (float(rows[0]["tc_ml"]), rows[0]["lesions"], rows[0]["slice"], rows[0]["side"]) == (
        0.24,
        "2",
        "3",
        "unknown",
    )
    assert float(rows[0]["longest_mm"]) == measured[0].lesions[0].longest_mm
    content = json.loads(to_json(measured))["label_maps"]
    assert [each["case_id"] for each in content] == ["A", "B"]
    assert len(content[0]["lesions"]) == 2
    assert content[0]["lesions"][1]["centroid_ras_mm"] == pytest.approx([10 - 16.5 / 2, 20 - 13, -30 + 2 * 5])

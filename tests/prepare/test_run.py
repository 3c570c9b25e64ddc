"""A whole study prepared, written, read and segmented; what no output may hold; what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from raw_heads import AFFINE, MOVES, PATIENT, Head, moved, rigid, write_dicom_study, write_mask

from lowmem_brats.cli import main
from lowmem_brats.config import MODALITIES, PrepareConfig
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.nifti import read_label, read_volume
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import run
from lowmem_brats.prepare.brain_mask import Brain
from lowmem_brats.prepare.case_folder import check_case_folder, write_case
from lowmem_brats.prepare.extra import library
from lowmem_brats.prepare.run import Prepared, prepare_study

pytestmark = pytest.mark.usefixtures("extra")
_SWAP = np.diag([-1.0, -1.0, 1.0, 1.0])
SECRETS = ["Doe", "Jane", "Quux", PATIENT["PatientBirthDate"], PATIENT["PatientID"], "20200102", "101010"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Prepared:
    """The DICOM study of a moved head; the mask that deepbet would find is given."""
    folder = tmp_path_factory.mktemp("study")
    write_dicom_study(folder / "Doe_Jane", head)
    mask = write_mask(folder / "mask.nii.gz", head)
    return prepare_study(folder / "Doe_Jane", {}, (), PrepareConfig(brain_mask=str(mask)))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Path:
    folder = tmp_path_factory.mktemp("cases") / "case_7"
    write_case(prepared, folder, Image.new("RGB", (4, 4)))
    return folder


def test_each_modality_is_laid_where_it_belongs(prepared: Prepared, head: Head) -> None:
    voxels = np.argwhere(head.brain_XYZ)[::500]
    points = np.column_stack([voxels, np.ones(len(voxels))]) @ (_SWAP @ AFFINE).T
    for modality, move in MOVES.items():
        true = points @ (_SWAP @ rigid(*move) @ _SWAP).T
        transform = prepared.registrations[modality].transform
        found = np.array([transform.TransformPoint(point[:3].tolist()) for point in points])
        assert np.linalg.norm(found - true[:, :3], axis=1).mean() < 0.5, "voxels are 4 mm"


def test_a_good_study_passes_the_gate(prepared: Prepared) -> None:
    assert prepared.problems == []
    assert len(prepared.warnings) == 1
    assert "T1ce has slices 4.0 mm apart: they are kept as they are" in prepared.warnings[0]
    assert prepared.measures.keys() == MOVES.keys()
    assert all(each.over_probes > 1.2 for each in prepared.measures.values())


def test_the_case_is_one_that_segment_reads_without_a_doubt(case: Path, head: Head) -> None:
    found = read_case(find_case(case))
    assert (found.case_id, found.missing) == ("case_7", [])
    assert [text for text in found.warnings if "spacing" not in text] == []
    assert np.array_equal(found.images_CXYZ.any(0), head.brain_XYZ)
    for channel, modality in enumerate(MODALITIES):
        inside = head.brain_XYZ
        pair = found.images_CXYZ[channel][inside], head.images[modality][inside]
        assert np.corrcoef(*pair)[0, 1] > (0.99 if modality == "t1ce" else 0.6), modality


def test_t1ce_as_it_came_lies_beside_the_case(case: Path, head: Head) -> None:
    native = read_volume(case / "native" / "case_7_t1ce.nii.gz")
    assert np.array_equal(native.data, head.images["t1ce"].astype(np.uint16))
    assert native.affine == pytest.approx(AFFINE, abs=1e-4)
    mask = read_volume(case / "native" / "case_7_brain_mask.nii.gz")
    assert np.array_equal(mask.data != 0, head.brain_XYZ)


def test_the_transforms_are_what_itk_reads(case: Path, prepared: Prepared) -> None:
    import SimpleITK as sitk  # noqa: N813

    record = json.loads((case / "prepare.json").read_text())
    for modality, found in prepared.registrations.items():
        stored = sitk.ReadTransform(str(case / "transforms" / f"t1ce_to_{modality}.tfm"))
        point = (11.0, -7.0, 23.0)
        assert stored.TransformPoint(point) == pytest.approx(found.transform.TransformPoint(point), abs=1e-4)
        matrix = np.array(record["registration"][modality]["transform_lps_mm"])
        assert (matrix @ [*point, 1])[:3] == pytest.approx(stored.TransformPoint(point), abs=1e-3)


def test_the_record_tells_how_the_case_was_made(case: Path) -> None:
    record = json.loads((case / "prepare.json").read_text())
    assert record["kind"] == "DICOM"
    assert {m: (each["files"], each["taken_because"]) for m, each in record["inputs"].items()} == {
        "t1": (39, "TE 12 ms, no contrast agent"),
        "t1ce": (39, "TE 14 ms, a contrast agent in its header"),
        "t2": (39, "TE 95 ms, TR 4000 ms"),
        "flair": (39, "TI 2500 ms, TE 110 ms"),
    }
    assert all(len(each["checksum"]) == 32 for each in record["inputs"].values())
    assert record["native_image"] == "native/case_7_t1ce.nii.gz"
    assert list(record["seconds"]) == ["find", "read", "brain", "t1", "t2", "flair"]


def test_its_result_goes_back_to_dicom(case: Path, prepared: Prepared, tiny: Path, tmp_path: Path) -> None:
    from pydicom import dcmread

    t1ce = prepared.study.sources["t1ce"].files[0]
    out = tmp_path / "out"
    options = ["-o", str(out), "--weights", str(tiny), "--no-page", "--no-preview"]
    shown = CliRunner().invoke(main, ["segment", str(case), "--dicom-seg", str(t1ce.parent), *options])
    assert shown.exit_code == 0, shown.output
    made = dcmread(out / "native" / "case_7_seg.dcm")
    label_XYZ = read_label(out / "native" / "case_7_seg_native.nii.gz").data
    assert made.pixel_array.sum() == np.count_nonzero(label_XYZ) > 0
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == dcmread(t1ce).SeriesInstanceUID
    assert "case_7_seg.dcm" in shown.output


def test_no_output_holds_anything_personal(case: Path) -> None:
    files = [path for path in case.rglob("*") if path.is_file()]
    assert len(files) == 11
    for path in files:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        header = content[:352] if path.suffix == ".gz" else content
        for secret in SECRETS:
            assert secret.encode() not in header, path.name
            assert secret not in str(path.relative_to(case))
        assert not [secret for secret in SECRETS[:5] if len(secret) > 4 and secret.encode() in content]


def test_a_case_is_not_overwritten_unasked(case: Path, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a prepared case"):
        check_case_folder(case, overwrite=False)
    check_case_folder(case, overwrite=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files already"):
        check_case_folder(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is not a folder"):
        check_case_folder(tmp_path / "no" / "case", overwrite=False)
    before = sorted(case.rglob("*"))
    write_case(prepared, case, Image.new("RGB", (4, 4)))
    assert sorted(case.rglob("*")) == before


def test_a_transform_that_cannot_be_written_leaves_nothing(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        @staticmethod
        def WriteTransform(*_: object) -> None:
            raise RuntimeError("Failed to write transform")

    monkeypatch.setattr("lowmem_brats.prepare.case_folder.library", lambda module: Full)
    with pytest.raises(InputError, match="Failed to write transform"):
        write_case(prepared, tmp_path / "case", Image.new("RGB", (4, 4)))
    assert not list(tmp_path.iterdir())


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr("lowmem_brats.prepare.extra.import_module", broken)
    with pytest.raises(InputError, match=r"SimpleITK cannot be loaded \(libGL"):
        library("SimpleITK")


def test_a_case_written_anew_keeps_no_image_of_before(prepared: Prepared, tmp_path: Path) -> None:
    case = tmp_path / "case"
    write_case(prepared, case, Image.new("RGB", (4, 4)))
    (case / "case_seg.nii.gz").write_bytes(b"a label map")
    rest = {modality: source for modality, source in prepared.study.sources.items() if modality != "t2"}
    laid = {modality: found for modality, found in prepared.registrations.items() if modality != "t2"}
    without_t2 = replace(prepared, study=replace(prepared.study, sources=rest), registrations=laid)
    write_case(without_t2, case, Image.new("RGB", (4, 4)))
    assert find_case(case, allow_missing=["t2"]).images.keys() == rest.keys()
    assert not (case / "transforms" / "t1ce_to_t2.tfm").exists()
    assert (case / "case_seg.nii.gz").exists()


def test_a_full_disk_leaves_nothing(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowmem_brats.prepare.case_folder.record_of", full)
    with pytest.raises(InputError, match="No space left"):
        write_case(prepared, tmp_path / "case", Image.new("RGB", (4, 4)))
    assert list(tmp_path.iterdir()) == []


def test_the_brain_of_t1_must_agree_with_that_of_t1ce(
    prepared: Prepared, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = head.brain_XYZ, head.brain_XYZ & (np.arange(head.brain_XYZ.shape[0]) < 30)[:, None, None]
    for mask_XYZ, least, most in (
        (moved(whole.astype(np.float32), rigid(*MOVES["t1"])) > 0.5, 0.95, 1.0),
        (half, 0.3, 0.8),
    ):
        monkeypatch.setattr(run, "find_brain", lambda t1, found=mask_XYZ: Brain(found, "deepbet"))
        assert least < run.overlap_with_t1(prepared, prepared.t1ce) < most


def test_the_command_shows_what_it_did_and_marks_a_forced_case(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = replace(prepared, problems=["t2 does not lie on T1ce"])

    def stub(
        path: Path, explicit: object, missing: object, config: PrepareConfig, on_study: Any, stage: Any
    ) -> Prepared:
        on_study(prepared.study)
        return forced if config.force else prepared

    monkeypatch.setattr(run, "prepare_study", stub)
    out = tmp_path / "good"
    shown = CliRunner().invoke(main, ["prepare", str(tmp_path), "-o", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "t1ce         series 3 (AX T1 +C): TE 14 ms, a contrast agent in its header" in shown.output
    assert "not used: series 6 (AX T1 REPEAT): has a missing slice" in shown.output
    assert f"next         lowmem-brats segment {out}" in shown.output
    with Image.open(out / "good_check.png") as picture:
        assert picture.width > 800
    assert json.loads((out / "prepare.json").read_text())["forced"] is False
    shown = CliRunner().invoke(main, ["prepare", str(tmp_path), "-o", str(tmp_path / "bad"), "--force", "-q"])
    assert shown.exit_code == 0
    assert "prepared all the same, as --force says: t2 does not lie on T1ce" in shown.stderr
    assert json.loads((tmp_path / "bad" / "prepare.json").read_text())["forced"] is True
    header = gzip.decompress((tmp_path / "bad" / "bad_t1.nii.gz").read_bytes())[:352]
    assert b"prepared, FORCED" in header


def test_a_mask_of_another_grid_or_without_brain(study: Path, tmp_path: Path, head: Head) -> None:
    empty = write_mask(tmp_path / "empty.nii.gz", Head(head.images, np.zeros_like(head.brain_XYZ)))
    small = write_mask(tmp_path / "small.nii.gz", Head(head.images, head.brain_XYZ[:-1]))
    for path, told in ((empty, "without a voxel of brain"), (small, "the grid of t1ce.nii.gz")):
        with pytest.raises(InputError, match=told):
            prepare_study(study, {}, (), PrepareConfig(brain_mask=str(path)))


def test_a_study_without_t1ce(study: Path) -> None:
    path = study.parent / "three"
    path.mkdir()
    for modality in ("t1", "t2", "flair"):
        (path / f"{modality}.nii.gz").symlink_to(study / f"{modality}.nii.gz")
    with pytest.raises(InputError, match="no T1ce"):
        prepare_study(path, {}, ("t1ce",), PrepareConfig())

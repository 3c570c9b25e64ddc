"""The promised names: imported late, the same results as the commands, errors of one family, examples that run."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

import lowmem_brats
from lowmem_brats import (
    LowmemError,
    NetworkConfig,
    Segmentation,
    SegmentConfig,
    api,
    plan_segmenting,
    plan_training,
    score_label_map,
    segment_tumour,
)
from lowmem_brats.cli import main
from lowmem_brats.config import BRATS_SHAPE, MODALITIES
from lowmem_brats.data.nifti import is_own_result, origin_of
from lowmem_brats.memory.budget import MIB, MemoryBudget
from lowmem_brats.memory.planner import plan_inference, plan_train
from lowmem_brats.weights.store import open_set

DOCUMENT = Path(__file__).parents[1] / "docs" / "python.md"


def config(tiny: Path, **settings: Any) -> SegmentConfig:
    return SegmentConfig(weights=str(tiny), device="cpu", **settings)


def load(case: Path, modality: str) -> nibabel.Nifti1Image:
    return nibabel.load(case / f"{case.name}_{modality}.nii.gz")


@pytest.fixture(scope="module")
def result(pristine: Path, tiny: Path) -> Segmentation:
    return segment_tumour(pristine, config(tiny))


def test_the_promised_names_are_those_of_the_module_and_of_the_document() -> None:
    assert {*lowmem_brats.__all__} == {*api.__all__, "__version__"}
    promised = DOCUMENT.read_text().split("promised to stay: ")[1].split(".\n")[0].split(". They")[0]
    assert {*re.findall(r"`(\w+)`", promised)} == {*api.__all__}
    assert {*lowmem_brats.__all__} <= {*dir(lowmem_brats)}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, lowmem_brats; dir(lowmem_brats); lowmem_brats.__version__; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "nibabel", "lowmem_brats.api"} & set(shown.split())


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'lowmem_brats' has no attribute 'segment_tumor'"):
        lowmem_brats.segment_tumor  # noqa: B018


def test_a_case_gets_the_file_that_the_command_writes(
    tmp_path: Path, pristine: Path, tiny: Path, result: Segmentation
) -> None:
    ours, commands = tmp_path / "ours" / f"{pristine.name}_seg.nii.gz", tmp_path / "command.nii.gz"
    ours.parent.mkdir()
    result.save(ours)
    words = ["segment", str(pristine), "--weights", str(tiny), "--device", "cpu", "--no-preview", "-q"]
    assert CliRunner().invoke(main, [*words, "-o", str(commands)]).exit_code == 0
    first, second = nibabel.load(ours), nibabel.load(commands)
    assert np.array_equal(first.dataobj, second.dataobj)
    assert first.header == second.header
    assert origin_of(ours) == result.origin
    assert is_own_result(ours)
    assert result.report.output == str(ours)


def test_images_in_memory_give_the_same_label_map_in_their_own_order(
    pristine: Path, tiny: Path, result: Segmentation, tmp_path: Path
) -> None:
    images = {m: load(pristine, m).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])) for m in reversed(MODALITIES)}
    before = {m: image.get_fdata().copy() for m, image in images.items()}
    turned = segment_tumour(images, config(tiny))
    assert turned.label.shape == images["t1"].shape != result.label.shape
    assert np.array_equal(turned.affine, images["t1"].affine)
    assert np.array_equal(turned.label_XYZ, result.label_XYZ)
    assert turned.volumes_ml == result.volumes_ml
    assert all(np.array_equal(image.get_fdata(), before[m]) for m, image in images.items())
    turned.save(tmp_path / "seg.nii.gz")
    saved = nibabel.load(tmp_path / "seg.nii.gz")
    assert np.array_equal(saved.dataobj, turned.label)
    assert np.array_equal(saved.affine, turned.affine)
    assert is_own_result(tmp_path / "seg.nii.gz")
    assert origin_of(tmp_path / "seg.nii.gz") is None


def test_an_array_with_an_affine_is_enough(pristine: Path, tiny: Path, result: Segmentation) -> None:
    images = {m: nibabel.Nifti1Image(load(pristine, m).get_fdata(), load(pristine, m).affine) for m in MODALITIES}
    assert np.array_equal(segment_tumour(images, config(tiny)).label, result.label)


def test_a_missing_modality_is_allowed_by_name_and_shown(pristine: Path, tiny: Path) -> None:
    images = {m: load(pristine, m) for m in ("t1", "t1ce", "t2")}
    shown = repr(segment_tumour(images, config(tiny), allow_missing=["flair"]))
    volumes, *warnings = shown.split("\n")
    assert re.fullmatch(r"case: necrotic core [\d.]+ mL, oedema [\d.]+ mL, enhancing tumour [\d.]+ mL", volumes)
    assert "warning: flair is missing: zeros are used in its place and the result may suffer" in warnings


def test_an_existing_file_is_kept_unless_told(tmp_path: Path, result: Segmentation) -> None:
    path = tmp_path / "seg.nii.gz"
    path.write_bytes(b"mine")
    with pytest.raises(LowmemError, match="exists"):
        result.save(path)
    assert path.read_bytes() == b"mine"
    result.save(path, overwrite=True)
    assert is_own_result(path)
    with pytest.raises(LowmemError, match=r"\.nii"):
        result.save(tmp_path / "seg.png")
    assert not (tmp_path / "seg.png").exists()
    with pytest.raises(LowmemError, match="no file for a label map"):
        result.save(tmp_path)


IMAGE = nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"t1": IMAGE}, "images: no t1ce, t2, flair; expected t1, t1ce, t2, flair, of which allow_missing may name 2"),
        ({"T1": IMAGE}, "images: modality 'T1'; expected only t1, t1ce, t2, flair. Did you mean 't1'"),
        (dict.fromkeys(MODALITIES, np.ones((4, 4, 4))), "t1: a ndarray; expected a nibabel.Nifti1Image"),
        (dict.fromkeys(MODALITIES, nibabel.Nifti1Image(np.ones((4, 4, 4)), None)), "t1: an image without an affine"),
        (dict.fromkeys(MODALITIES, IMAGE.slicer[:, :, :1]), "every voxel is 1"),
        (
            dict.fromkeys(MODALITIES, nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4))),
            "t1: 64 voxels are NaN or infinite; expected finite intensities",
        ),
        (
            dict.fromkeys(MODALITIES, nibabel.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4))),
            "t1: voxels of type complex64; expected one real number per voxel",
        ),
        (dict.fromkeys(MODALITIES, nibabel.Nifti1Image(np.ones((4, 4, 4, 2)), np.eye(4))), "t1: 4-D array"),
        (dict.fromkeys(MODALITIES, nibabel.Nifti1Image(np.ones((4, 4, 4)), np.diag([30, 1, 1, 1]))), "t1: voxels of"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tiny: Path, images: dict[str, Any], message: str) -> None:
    with pytest.raises(LowmemError) as raised:
        segment_tumour(images, config(tiny))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "brats2021"}, "--labels: brats2021; expected one of brats2020, brats2023, msd."),
        ({"precision": "half"}, "--precision: half"),
        ({"vram": "much"}, "--vram: 'much'"),
        ({"vram": "0.001M"}, "too little for unet2d"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    pristine: Path, tiny: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(LowmemError) as raised:
        segment_tumour(pristine, config(tiny, **settings))
    assert message in str(raised.value)


def test_a_name_that_is_not_understood_is_given_as_an_image(tmp_path: Path, pristine: Path, tiny: Path) -> None:
    case = Path(shutil.copytree(pristine, tmp_path / "case"))
    (case / f"{pristine.name}_t1ce.nii.gz").rename(case / "later.nii.gz")
    with pytest.raises(LowmemError) as raised:
        segment_tumour(case, config(tiny))
    path = case / "later.nii.gz"
    assert f"pass images in place of the folder, with 't1ce': nibabel.load('{path}') among them" in str(raised.value)


def test_plans_are_those_of_the_planner() -> None:
    shipped, network = open_set(()).network, NetworkConfig(width=16)
    budget = MemoryBudget(64 * MIB)
    assert plan_segmenting("64M", device="cpu", precision="fp32") == plan_inference(
        shipped, BRATS_SHAPE[:2], budget, "cpu", "fp32"
    )
    assert plan_training("64M", network, batch=2, size_HW=(64, 64), device="cpu") == plan_train(
        network, (64, 64), 2, budget, "cpu", "fp16"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_segmenting("1M"), "too little for unet2d of width 16"),
        (lambda: plan_segmenting("1G", device="cuda:0"), "device: 'cuda:0'; expected one of cpu, cuda"),
        (lambda: plan_training("1G", precision="auto"), "precision: 'auto'; expected one of fp32, fp16, bf16"),
        (lambda: plan_segmenting("75%"), "total memory is unknown"),
        (lambda: plan_training("1G", NetworkConfig(name="unet")), "network: 'unet'"),
        (lambda: plan_training("1G", batch=0), "--batch: 0"),
        (lambda: plan_training("1G", size_HW=(100, 100)), "100 × 100"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LowmemError) as raised:
        call()
    assert message in str(raised.value)


def test_scores_of_a_result_of_files_and_of_arrays_are_alike(
    tmp_path: Path, pristine: Path, result: Segmentation
) -> None:
    reference = pristine / f"{pristine.name}_seg.nii.gz"
    result.save(tmp_path / "seg.nii.gz")
    scores = score_label_map(result, reference)
    label_XYZ = np.asarray(nibabel.load(reference).dataobj)
    assert scores.regions == score_label_map(tmp_path / "seg.nii.gz", str(reference)).regions
    assert scores.regions == score_label_map(result.label, label_XYZ).regions
    far = score_label_map(result.label, label_XYZ, spacing_mm=(2.0, 2.0, 2.0))
    assert far["wt"].hd95_mm == pytest.approx(2 * scores["wt"].hd95_mm)
    assert score_label_map(reference, reference)["et"].dice == 1


def test_a_result_knows_its_own_convention(pristine: Path, tiny: Path, result: Segmentation) -> None:
    reference = pristine / f"{pristine.name}_seg.nii.gz"
    newer = segment_tumour(pristine, config(tiny, labels="brats2023"))
    assert score_label_map(newer, reference, reference_labels="brats2020") == score_label_map(result, reference)


LABEL_XYZ = np.zeros((4, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        (LABEL_XYZ, "seg.nii.gz", "one array; expected two arrays, or none"),
        (LABEL_XYZ, LABEL_XYZ[1:], "predicted: shape (4, 4, 4); expected the grid of reference, (3, 4, 4)"),
        (LABEL_XYZ > 0, LABEL_XYZ, "predicted: a 3-D array of bool; expected a 3-D array of whole numbers"),
        (LABEL_XYZ[0], LABEL_XYZ[0], "predicted: a 2-D array of uint8"),
        (LABEL_XYZ, LABEL_XYZ + 0.5, "reference: 64 voxels of value 0.5; expected whole-number labels"),
        (LABEL_XYZ + 3, LABEL_XYZ, "predicted: unknown label 3"),
        ("no.nii.gz", "neither.nii.gz", "no.nii.gz: does not exist"),
    ],
)
def test_label_maps_that_cannot_be_scored_are_refused(predicted: Any, reference: Any, message: str) -> None:
    with pytest.raises(LowmemError) as raised:
        score_label_map(predicted, reference)
    assert message in str(raised.value)


def examples() -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples("".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)))


def test_the_examples_of_the_document_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: Path, tiny: Path
) -> None:
    """On a small case and with tiny weights, so other numbers come out."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pristine, tmp_path / "cases" / pristine.name)
    monkeypatch.setattr("lowmem_brats.segment.case.open_set", lambda names, **how: open_set(str(tiny), **how))
    names: dict[str, Any] = {}
    for example in examples():
        exec(compile(example.source, str(DOCUMENT), "single"), names)
    assert len(examples()) > 10
    assert (tmp_path / "phantom_000_seg.nii.gz").is_file()


@pytest.mark.slow
def test_the_examples_of_the_document_print_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["phantom", "cases/", "-q"]).exit_code == 0
    test = doctest.DocTest(examples(), {}, DOCUMENT.name, str(DOCUMENT), 0, None)
    shown: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=shown.append).failed == 0, "".join(shown)

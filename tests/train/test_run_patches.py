"""A training of a network of patches: it keeps to its plan, goes on to the bit, and leaves a set to segment with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from easy_cases import EASY, write_easy_case

from lowmem_brats.config import NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.data.nifti import read_label
from lowmem_brats.data.slice_cache import build_cache
from lowmem_brats.engine import step
from lowmem_brats.engine.precision import PrecisionController
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.evaluate.metrics import mask_dice
from lowmem_brats.memory.budget import MIB, MemoryBudget
from lowmem_brats.memory.planner import plan_inference, plan_train
from lowmem_brats.networks import PatchNetwork, build_patch_network
from lowmem_brats.networks.segresnet import SegResNet
from lowmem_brats.segment.case import segment_case
from lowmem_brats.train import networks as module
from lowmem_brats.train.networks import TrainListener
from lowmem_brats.train.report import TrainReport, read_run
from lowmem_brats.train.run import train_set
from lowmem_brats.train.validate import validate
from lowmem_brats.weights.file import load_patch_network, save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import open_set

pytest.importorskip("monai")

SEGRESNET = NetworkConfig(name="segresnet", width=8, outputs=3)
CROPPED = replace(SEGRESNET, patch="24x24x24", cropped=True)
SHORT = replace(EASY, network=SEGRESNET, loss="squared-dice+ce", batch=1, epochs=2, augment=True, test=0.0)
NAME = "wt tc et"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of 20 × 20 × 20 voxels, one of them to validate on."""
    folder = tmp_path_factory.mktemp("easy") / "data"
    for number in range(3):
        write_easy_case(folder / f"easy_{number}", number, 20)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    """A finished training of two epochs of two steps each."""
    out = tmp_path_factory.mktemp("out") / "run"
    return out, run(data, out, SHORT)


def run(data: Path, out: Path, config: TrainConfig, **options: object) -> TrainReport:
    report = train_set(data, out, config, **options)  # type: ignore[arg-type]
    assert report is not None
    return report


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = open_set(str(folder)).files
    return load_patch_network(file).state_dict()


def test_the_measured_peak_is_the_predicted_one(trained: tuple[Path, TrainReport]) -> None:
    out, report = trained
    (plan,) = report.plans
    assert (plan.crop_ZHW, plan.conceded) == ((24, 24, 24), "")
    assert report.networks[NAME].peak_bytes == {"fp32": plan.predicted_bytes}
    assert json.loads((out / "run.json").read_text())["plans"][0]["crop_ZHW"] == [24, 24, 24]
    assert [epoch.steps for epoch in report.networks[NAME].epochs] == [2, 4]
    assert report.notes == []


def test_the_run_folder_is_a_set_that_is_planned_and_segments(
    trained: tuple[Path, TrainReport], data: Path, tmp_path: Path
) -> None:
    out, report = trained
    (file,) = open_set(str(out)).files
    assert (file.network, file.regions, file.fusion) == (CROPPED, tuple(Region), "nested")
    assert read_run(out).config.network == CROPPED
    plan = plan_inference(file.network, (20, 40, 40), MemoryBudget(None), "cpu", "fp32", brain_ZHW=(20, 20, 20))
    assert (plan.patch_ZHW, plan.cropped, plan.relative_time) == ((24, 24, 24), True, 1.0), "the brain, as it learnt"
    (case,) = report.validation_cases
    settings = SegmentConfig(weights=str(out), device="cpu", precision="fp32", min_confidence=0.0)
    result = segment_case(find_case(data / case), tmp_path / "seg.nii.gz", settings)
    assert result.report.patches == {NAME: 1}
    assert result.report.warnings == []
    assert result.report.peak_bytes == plan.predicted_bytes
    validated = report.networks[NAME].thresholds
    truth = read_label(data / case / f"{case}_seg.nii.gz").data
    dice = mask_dice(np.asarray(result.label_XYZ) > 0, np.asarray(truth) > 0)
    assert dice == pytest.approx(validated["wt"][1], abs=0.02), "as validation saw it, but for weights in fp16"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[npt.NDArray[np.float32]]:
    """Every batch of patches that a network is shown."""
    shown, plain = list[npt.NDArray[np.float32]](), step.predict_patches

    def remember(network: PatchNetwork, patches: torch.Tensor) -> torch.Tensor:
        shown.append(patches.float().numpy().copy())
        return plain(network, patches)

    monkeypatch.setattr(step, "predict_patches", remember)
    return shown


@pytest.mark.parametrize(("axis", "name"), [(0, "sagittal"), (1, "coronal")])
def test_thick_slices_are_interpolated_for_segmenting_as_for_training(
    pristine: Path, tmp_path: Path, seen: list[npt.NDArray[np.float32]], axis: int, name: str
) -> None:
    """The same voxels to the bit, also where some are so bright that they are clipped; the result on the case's grid"""
    case = every_third_slice(pristine, tmp_path / "thick", axis)
    torch.manual_seed(0)
    network = build_patch_network(replace(CROPPED, patch="48x56x48")).eval()
    network.take_masks_at([-3.5, -3.0, -2.5])
    path = tmp_path / "set" / "all.safetensors"
    path.parent.mkdir()
    save_network(network, WeightsFile(path, tuple(Region), replace(CROPPED, patch="48x56x48"), {}, {}))
    write_index(path.parent, "set", dict.fromkeys(Region, path))
    (cached,), _ = build_cache([find_case(case)], tmp_path / "cache", 8, CONVENTIONS["brats2020"])
    validate(network.state_dict(), replace(CROPPED, patch="48x56x48"), [cached], tuple(Region), "cpu", "fp32")
    settings = SegmentConfig(weights=str(path.parent), device="cpu", precision="fp32", min_confidence=0.0)
    result = segment_case(find_case(case), tmp_path / "seg.nii.gz", settings)
    learnt, segmented = seen
    np.testing.assert_array_equal(segmented, learnt)
    told = f"thick {name} slices are interpolated to 3 times as many for the networks"
    assert told in cached.warnings
    assert told in result.report.warnings
    assert result.label_XYZ.any()
    written, image = (nibabel.load(file) for file in (tmp_path / "seg.nii.gz", next(case.glob("*_t1.nii.gz"))))
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, image.affine)
    assert result.report.peak_bytes == result.report.plan.predicted_bytes


def every_third_slice(case: Path, folder: Path, axis: int) -> Path:
    """Write the case with slices three times as far apart along X or Y, and a few very bright voxels."""
    folder.mkdir()
    for path in case.glob("*.nii.gz"):
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).take(range(0, image.shape[axis], 3), axis)
        if not path.name.endswith("_seg.nii.gz"):
            voxels[tuple(side // 2 for side in voxels.shape)] = 30000
        affine = image.affine @ np.diag([3.0 if each == axis else 1.0 for each in range(4)])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / path.name)
    return folder


def test_going_on_gives_the_same_weights_to_the_bit(
    trained: tuple[Path, TrainReport], data: Path, tmp_path: Path
) -> None:
    out, report = trained

    def stop(stage: str, done: int, total: int) -> None:
        if "epoch 2" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", SHORT, tell=TrainListener(on_progress=stop))
    assert read_run(tmp_path / "cut").config.network == CROPPED
    with pytest.raises(BudgetError, match="too little for segresnet"):  # with the crop that it began with
        run(data, tmp_path / "cut", replace(SHORT, vram="16M"), resume=True)
    resumed = run(data, tmp_path / "cut", SHORT, resume=True)
    assert [e.loss for e in resumed.networks[NAME].epochs] == [e.loss for e in report.networks[NAME].epochs]
    expected, found = weights_of(out), weights_of(tmp_path / "cut")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_smaller_crop_is_told_on_the_screen_and_in_the_report(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegResNet, "crops_ZHW", ((24, 24, 24), (16, 16, 16)))
    size, told = (20, 20, 20), list[str]()
    smallest = plan_train(SEGRESNET, size, 1, MemoryBudget(None), "cpu", "fp32", SHORT.objective, smallest=True)
    vram = f"{-(-smallest.predicted_bytes // MIB)}M"
    config = replace(SHORT, epochs=1, vram=vram, validation=0.0)
    report = run(data, tmp_path / "run", config, tell=TrainListener(on_note=told.append))
    (plan,) = report.plans
    assert plan.crop_ZHW == (16, 16, 16)
    (note,) = [text for text in told if "crops of" in text]
    assert note.startswith(f"more does not fit in {vram}: crops of 16 × 16 × 16 voxels in place of 24 × 24 × 24")
    assert note in json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    (file,) = open_set(str(tmp_path / "run")).files
    assert file.network == replace(CROPPED, patch="16x16x16")


def test_assorted_precision_falls_back_with_the_same_crop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "choose_precision", lambda requested, device: "bf16")
    monkeypatch.setattr(PrecisionController, "_trouble", lambda self, loss, norm: None if self.fallbacks else "a try")
    report = run(data, tmp_path / "run", replace(SHORT, epochs=1, precision="auto", validation=0.0))
    fast, safer = report.plans
    assert [(plan.precision, plan.crop_ZHW) for plan in report.plans] == [
        ("bf16", (24, 24, 24)),
        ("fp32", (24, 24, 24)),
    ]
    assert fast.predicted_bytes < safer.predicted_bytes
    network = report.networks[NAME]
    assert network.switches == [(1, "fp32 for 100 steps: a try")]
    assert network.epochs[0].fallback_steps == network.epochs[0].steps - 1 == 2
    assert network.peak_bytes == {"fp32": safer.predicted_bytes}


def test_what_patches_cannot_heed_is_refused_before_a_folder_is_made(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--views: 3 for segresnet"):
        run(data, tmp_path / "run", replace(SHORT, network=replace(SEGRESNET, views=3)))
    assert not (tmp_path / "run").exists()

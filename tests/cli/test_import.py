"""From a model that others have trained to a label map: `import`, `plan --weights`, `segment --weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_models as models
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result

from lowmem_brats.cli import main
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def segmented(case: Path, weights: Path, folder: Path, *more: object) -> tuple[npt.NDArray[Any], dict[str, Any], str]:
    """Label map, report and output of `segment`."""
    report = folder / "report.json"
    arguments = "--device", "cpu", "--precision", "fp32", "--labels", "msd", "--report", report, *more
    output = succeed("segment", case, "--weights", weights, "-o", folder / "seg.nii.gz", *arguments)
    label = np.asarray(nibabel.load(folder / "seg.nii.gz").dataobj)
    (told,) = json.loads(report.read_text())["cases"]
    return label, told, output


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose window holds the whole phantom, imported."""
    folder = tmp_path_factory.mktemp("bundle")
    source = models.write_bundle(folder / "source", models.inference_settings(roi=(48, 64, 48)))
    output = succeed("import", source, "-o", folder / "set")
    assert "imported     MONAI bundle 0.5.2: segresnet of width 8, patches of 48x64x48 (Z × Y × X)" in output
    assert "channels     t1ce t1 t2 flair · outputs tc wt et" in output
    return folder / "set"


def test_the_bundles_label_map_is_the_one_that_monai_paints(bundle: Path, pristine: Path, tmp_path: Path) -> None:
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import NormalizeIntensity

    images_CXYZ = read_case(find_case(pristine)).stored_CXYZ[[1, 0, 2, 3]]
    normal = NormalizeIntensity(nonzero=True, channel_wise=True)(images_CXYZ)
    with torch.inference_mode():
        window = SlidingWindowInferer(roi_size=(48, 64, 48), sw_batch_size=1, overlap=0.5)
        core, whole, enhancing = (window(torch.as_tensor(normal)[None], models.segresnet())[0] > 0).numpy()
    wanted = np.where(enhancing, 3, np.where(core, 2, np.where(whole, 1, 0)))  # the bundle's rule, in msd's labels
    label, report, output = segmented(pristine, bundle, tmp_path)
    np.testing.assert_array_equal(label, wanted)
    assert len(np.unique(label)) == 4
    assert report["plan"]["patch_ZHW"] == [48, 64, 48]
    assert report["patches"] == {"wt tc et": 1}
    assert report["peak_bytes"] == report["plan"]["predicted_bytes"]
    assert not [text for text in report["warnings"] if "authors" in text]
    assert "patches      WT TC ET 1 run" in output
    assert "48 × 64 × 48" in (tmp_path / "phantom_000.html").read_text()


def test_a_small_budget_gets_smaller_patches_and_says_so(bundle: Path, pristine: Path, tmp_path: Path) -> None:
    label, report, _ = segmented(pristine, bundle, tmp_path, "--vram", "8M", "--tta")
    assert report["peak_bytes"] == report["plan"]["predicted_bytes"] <= 8 * 2**20
    assert report["plan"]["cropped"]
    assert report["patches"]["wt tc et"] > 1
    told = " ".join(report["warnings"])
    assert "patches of the brain's box of" in told
    assert "in place of its authors' 48 × 64 × 48: the norms see another part of the case" in told
    assert "--tta is ignored" in told
    assert label.any()
    refused = run("segment", pristine, "--weights", bundle, "-o", tmp_path / "other", "--device", "cpu", "--vram", "1M")
    assert "too little for segresnet of width 8" in refused.output
    assert not list((tmp_path / "other").glob("*.nii.gz"))


@pytest.mark.parametrize("labels", [models.REGIONS, models.TISSUES], ids=["regions", "tissues"])
def test_folds_are_averaged_and_painted_as_nnunet_does(labels: dict[str, Any], pristine: Path, tmp_path: Path) -> None:
    """A patch that holds the whole crop, so each fold makes one pass."""
    stored = models.configuration(patch=(40, 56, 48))
    folds = models.write_nnunet(tmp_path / "model", stored, labels, folds=2)
    output = succeed("import", tmp_path / "model", "-o", tmp_path / "set")
    assert "warning: mirror images, which nnU-Net shows its networks too by default, are not shown" in output
    label, report, _ = segmented(pristine, tmp_path / "set", tmp_path)
    from lowmem_brats.data.whole import box_of, prepare_whole

    stack = prepare_whole(read_case(find_case(pristine)).stored_CXYZ, "zscore-mask")
    inside = box_of(stack.brain_ZHW)
    crop_CZHW = stack.slices_ZCHW.swapaxes(0, 1)[(slice(None), *inside)]
    missing = [patch - size for patch, size in zip((40, 56, 48), crop_CZHW.shape[1:], strict=True)]
    padded = np.pad(crop_CZHW, [(0, 0), *((each // 2, each - each // 2) for each in missing)])
    with torch.inference_mode():
        logits = sum(network(torch.from_numpy(padded)[None])[0] for network in folds).numpy()  # type: ignore[union-attr]
    middle = [slice(each // 2, each // 2 + size) for each, size in zip(missing, crop_CZHW.shape[1:], strict=True)]
    logits = logits[(slice(None), *middle)]
    if labels is models.TISSUES:
        found = logits.argmax(axis=0)
    else:
        found = np.zeros(logits.shape[1:], np.int64)
        for logits_ZHW, value in zip(logits, (1, 2, 3), strict=True):
            found[logits_ZHW > 0] = value
    wanted = np.zeros(stack.brain_ZHW.shape, np.int64)
    wanted[inside] = found
    np.testing.assert_array_equal(label, wanted.transpose(2, 1, 0))
    assert report["patches"] == {"wt tc et": 2}
    assert report["weights"] == "3dfullres-fold0 + 3dfullres-fold1"
    assert [text for text in report["warnings"] if text.startswith("mirror images")]


def test_plan_shows_the_patch_of_each_budget(bundle: Path) -> None:
    output = succeed("plan", "--weights", bundle, "--device", "cpu", "--precision", "fp32")
    assert "segresnet of width 8, volumes of 155 × 240 × 240, cpu, fp32" in output
    assert "48 × 64 × 48  1.00×" in output
    output = succeed("plan", "--network", "segresnet", "--width", 16, "--device", "cpu", "--precision", "fp32")
    assert "160 × 240 × 240  1.00×" in output
    assert "against the authors' own way" in output
    assert "--weights and --width" in run("plan", "--weights", bundle, "--width", 8).output
    assert "--size: a size of slices for segresnet" in run("plan", "--network", "segresnet", "--size", 96, 96).output
    assert "nnunet: no architecture" in run("plan", "--network", "nnunet").output


def test_a_plan_to_train_shows_the_crop_and_says_what_a_smaller_one_means(bundle: Path) -> None:
    train = "plan", "--train", "--batch", 1, "--device", "cpu", "--precision", "bf16"
    output = succeed(*train, "--network", "segresnet", "--width", 8, "--vram", "64M")
    assert "all  device  64 × 64 × 64  1.28×" in output
    assert "crop: smaller than 144 × 224 × 224, it shows less around each voxel" in output
    output = succeed(*train, "--weights", bundle, "--vram", "1G")
    assert "none  device  48 × 64 × 48  1.00×" in output, "the patch of the set, whatever the budget"
    assert "smaller" not in output


def test_a_training_of_patches_does_not_go_on_from_a_set(bundle: Path, pristine: Path, tmp_path: Path) -> None:
    result = run("train", pristine.parent, "-o", tmp_path / "run", "--finetune", bundle)
    assert result.exit_code == 2
    assert "for segresnet, which sees patches; expected fresh weights" in result.output
    assert not (tmp_path / "run").exists()


def test_import_overwrites_no_set_unasked(bundle: Path, tmp_path: Path) -> None:
    source = bundle.parent / "source"
    assert "a set is there already" in run("import", source, "-o", bundle).output
    assert succeed("import", source / "models" / "model.pt", "-o", bundle, "--overwrite", "--quiet") == ""
    assert "no configs/metadata.json and no plans.json in it" in run("import", tmp_path, "-o", tmp_path / "x").output
    assert "not there" in run("import", tmp_path / "nothing", "-o", tmp_path / "x").output
    assert not (tmp_path / "x").exists()

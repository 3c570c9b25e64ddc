"""One case from NIfTI to NIfTI: exact skipping, grids, reports, fallbacks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_weights import (
    write_changed,
    write_seeing_neighbours,
    write_tiny_single,
)

import lowmem_brats.segment.regions as module
from lowmem_brats.cli.phantom import write_phantom
from lowmem_brats.config import NetworkConfig, SegmentConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.data.nifti import is_own_result, origin_of, read_label
from lowmem_brats.data.slices import occupied
from lowmem_brats.engine import step
from lowmem_brats.errors import BudgetError, InputError, WeightsError
from lowmem_brats.memory import planner
from lowmem_brats.networks import SliceNetwork, build_any
from lowmem_brats.segment.case import origin, segment_case
from lowmem_brats.segment.result import Segmentation
from lowmem_brats.segment.result_path import check_not_reference, names_label_map, output_path
from lowmem_brats.weights.file import save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import open_set

REAL_CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"


@pytest.fixture(scope="module")
def tiny(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> str:
    return str(write_tiny_single(tmp_path_factory.mktemp("weights") / "single", Path(tiny)))


@pytest.fixture(scope="module")
def phantom(pristine: Path) -> Path:
    return pristine


def run(case: Path, output: Path, narrow: bool = False, **settings: object) -> Segmentation:
    """Run on every slice unless told otherwise: only then skipping is exact."""
    return segment_case(find_case(case), output, SegmentConfig(narrow=narrow, **settings))  # type: ignore[arg-type]


def run_without_skipping(case: Path, output: Path, **settings: object) -> Segmentation:
    """As `run`, but the networks of TC and ET run on every slice with brain too."""
    first: list[npt.NDArray[np.bool_]] = []

    def with_brain(mask_ZHW: npt.NDArray[np.bool_], views: int) -> list[npt.NDArray[np.bool_]]:
        first.append(mask_ZHW)  # the brain is asked for before anything is found
        return occupied(first[0], views)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "occupied", with_brain)
        return run(case, output, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_skipping_equals_not_skipping(
    tmp_path: Path, tiny: str, phantom: Path, monkeypatch: pytest.MonkeyPatch, batch: int, precision: str
) -> None:
    monkeypatch.setitem(planner.BATCHES, "cpu", (batch,))
    settings = {"weights": tiny, "device": "cpu", "precision": precision}
    skipping = run(phantom, tmp_path / "a.nii.gz", **settings)
    full = run_without_skipping(phantom, tmp_path / "b.nii.gz", **settings)
    np.testing.assert_array_equal(skipping.label_XYZ, full.label_XYZ)
    assert set(np.unique(full.label_XYZ)) == {0, 1, 2, 4}, "the test needs all tissues to mean anything"
    assert all(count["skipped"] == 0 for count in full.report.slices.values())
    run_slices = [count["run"] for count in skipping.report.slices.values()]
    assert run_slices[0] > run_slices[1] > run_slices[2] > 0


@pytest.fixture(scope="module")
def bold(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> dict[int, str]:
    """The tiny set for 1 and for 3 views, with lower thresholds: averages of views are seldom as far from the mean."""

    def lower(region: Region, head: torch.nn.Module) -> None:
        head.bias += 0.4  # type: ignore[operator]

    folder = tmp_path_factory.mktemp("weights")
    return {views: str(write_changed(folder / f"bold{views}", tiny, lower, views)) for views in (1, 3)}


def test_three_views_and_mirror_images_skip_exactly(tmp_path: Path, bold: dict[int, str], phantom: Path) -> None:
    settings = {"weights": bold[3], "device": "cpu", "precision": "fp32"}
    axial = run(phantom, tmp_path / "0.nii.gz", weights=bold[1], device="cpu", precision="fp32")
    found = []
    for tta in (False, True):
        skipping = run(phantom, tmp_path / "a.nii.gz", tta=tta, **settings)
        full = run_without_skipping(phantom, tmp_path / "b.nii.gz", tta=tta, **settings)
        np.testing.assert_array_equal(skipping.label_XYZ, full.label_XYZ)
        counts = [count["run"] for count in skipping.report.slices.values()]
        assert counts[0] > counts[1] > 0
        assert counts[0] > 2 * axial.report.slices["wt"]["run"] * (1 + tta)
        assert full.report.slices["et"] == {"run": counts[0], "skipped": 0}
        assert skipping.report.peak_bytes == skipping.report.plan.predicted_bytes
        found.append(skipping.label_XYZ)
    assert (found[0] != axial.label_XYZ).any()
    assert (found[0] != found[1]).any()


def test_fast_is_axial_only_and_says_nothing(tmp_path: Path, bold: dict[int, str], phantom: Path) -> None:
    axial, fast = (
        run(phantom, tmp_path / f"{views}.nii.gz", weights=bold[views], device="cpu", precision="fp32", fast=views == 3)
        for views in (1, 3)
    )
    np.testing.assert_array_equal(axial.label_XYZ, fast.label_XYZ)
    assert axial.report.slices == fast.report.slices
    assert fast.report.warnings == []


def test_narrowing_leaves_out_slices_but_not_where_they_lie_far_apart(
    tmp_path: Path, bold: dict[int, str], phantom: Path
) -> None:
    settings = {"weights": bold[3], "device": "cpu", "precision": "fp32"}
    full, narrow = (run(phantom, tmp_path / "a.nii.gz", narrow, **settings) for narrow in (False, True))
    assert narrow.report.slices["wt"]["run"] < full.report.slices["wt"]["run"]
    for region in ("wt", "tc", "et"):
        assert sum(narrow.report.slices[region].values()) == full.report.slices["wt"]["run"]
        assert list(narrow.report.looked_at[region]) == ["axial", "coronal", "sagittal"]
        runs = [run for view in narrow.report.looked_at[region].values() for run in view]
        assert sum(end - first for first, end in runs) == narrow.report.slices[region]["run"]
    thick = every_third_slice(phantom, tmp_path / "thick")
    full, narrow = (run(thick, tmp_path / "b.nii.gz", narrow, **settings) for narrow in (False, True))
    assert narrow.report.slices == full.report.slices
    assert list(full.report.looked_at["wt"]) == ["axial"]


def every_third_slice(case: Path, folder: Path) -> Path:
    """Write the case with slices three times as far apart."""
    folder.mkdir()
    for path in case.glob("*.nii.gz"):
        image = nibabel.load(path)
        affine = image.affine @ np.diag([1, 1, 3, 1])
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, ::3], affine), folder / path.name)
    return folder


def test_slices_far_apart_are_seen_axially_only(tmp_path: Path, bold: dict[int, str], phantom: Path) -> None:
    thick = every_third_slice(phantom, tmp_path / "thick")
    results = [
        run(thick, tmp_path / f"{i}.nii.gz", weights=weights, device="cpu", precision="fp32")
        for i, weights in enumerate(bold.values())
    ]
    np.testing.assert_array_equal(results[0].label_XYZ, results[1].label_XYZ)
    assert any("axial slices only" in text for text in results[1].report.warnings)
    assert not any("axial slices only" in text for text in results[0].report.warnings)


def test_neighbours_are_seen_but_not_where_slices_lie_far_apart(tmp_path: Path, single: str, phantom: Path) -> None:
    seeing = str(write_seeing_neighbours(tmp_path / "set", single))
    thick = every_third_slice(phantom, tmp_path / "thick")
    for case, sees in ((phantom, True), (thick, False)):
        alone, found = (
            run(case, tmp_path / f"{case.name}.nii.gz", weights=weights, device="cpu", precision="fp32")
            for weights in (single, seeing)
        )
        assert alone.label_XYZ.any()
        assert (found.label_XYZ == alone.label_XYZ).all() != sees
        assert any("too far apart" in text for text in found.report.warnings) != sees


@pytest.mark.parametrize("batch", [1, 3])
def test_one_network_finds_what_three_networks_find(
    tmp_path: Path, tiny: str, single: str, phantom: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Same trunk, same heads: the maps are equal, as no logit of the brain is nearer to 0 than 0.002."""
    monkeypatch.setitem(planner.BATCHES, "cpu", (batch,))
    settings = {"device": "cpu", "precision": "fp32"}
    three = run(phantom, tmp_path / "a.nii.gz", weights=tiny, **settings)
    assert set(np.unique(three.label_XYZ)) == {0, 1, 2, 4}, "the test needs all tissues to mean anything"
    one = run(phantom, tmp_path / "b.nii.gz", weights=single, **settings)
    np.testing.assert_array_equal(one.label_XYZ, three.label_XYZ)
    assert one.report.slices == {"wt tc et": three.report.slices["wt"]}
    assert one.report.slices["wt tc et"]["skipped"] == 0


def test_every_set_looks_at_a_flat_stack(tmp_path: Path, bold: dict[int, str], phantom: Path) -> None:
    """Two sets whose logits are shifted up and down find together what the set between them finds."""

    def shifted(by: float) -> str:
        def shift(region: Region, head: torch.nn.Module) -> None:
            head.bias += by  # type: ignore[operator]

        return str(write_changed(tmp_path / f"by{by}", bold[3], shift, views=3))

    thick = every_third_slice(phantom, tmp_path / "thick")
    settings = {"device": "cpu", "precision": "fp32"}
    low, high = shifted(-0.25), shifted(0.5)
    between, both = (
        run(thick, tmp_path / "a.nii.gz", weights=weights, **settings) for weights in (shifted(0.125), (low, high))
    )
    assert both.report.weights == "by-0.25 + by0.5"
    assert both.report.peak_bytes == both.report.plan.predicted_bytes == between.report.peak_bytes
    for name, count in between.report.slices.items():
        assert both.report.slices[name] == {key: 2 * number for key, number in count.items()}
    np.testing.assert_array_equal(both.label_XYZ, between.label_XYZ)
    first = run(thick, tmp_path / "b.nii.gz", weights=low, **settings)
    fast = run(thick, tmp_path / "c.nii.gz", weights=(low, high), fast=True, **settings)
    assert (first.label_XYZ != both.label_XYZ).any()
    np.testing.assert_array_equal(fast.label_XYZ, first.label_XYZ)
    assert fast.report.weights == "by-0.25"


def test_several_sets_share_the_views(tmp_path: Path, bold: dict[int, str], phantom: Path) -> None:
    """Shifts that cancel out over the three views: as one set without a shift, at its peak and in its passes."""
    sets = []
    for by in (-0.25, 0.5, -0.25):

        def shift(region: Region, head: torch.nn.Module, by: float = by) -> None:
            head.bias += by  # type: ignore[operator]

        sets.append(str(write_changed(tmp_path / f"set{len(sets)}", bold[3], shift, views=3)))
    settings = {"device": "cpu", "precision": "fp32"}
    alone, shared = (run(phantom, tmp_path / "a.nii.gz", weights=weights, **settings) for weights in (bold[3], sets))
    assert alone.label_XYZ.any()
    np.testing.assert_array_equal(shared.label_XYZ, alone.label_XYZ)
    assert shared.report.slices == alone.report.slices
    assert shared.report.peak_bytes == shared.report.plan.predicted_bytes == alone.report.peak_bytes
    other = run(phantom, tmp_path / "b.nii.gz", weights=sets[:1], **settings)
    assert (other.label_XYZ != alone.label_XYZ).any()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not REAL_CASES.is_dir(), reason="the real cases are not beside this checkout")
def test_boxes_find_the_tumour_of_a_real_case(tmp_path: Path) -> None:
    """With a third of the pixels nearly the same tumour as with every slice: what lies beyond a box is not seen."""
    case = REAL_CASES / "BraTS2021_00006"
    full, narrow = (run(case, tmp_path / "a.nii.gz", narrow, device="cpu") for narrow in (False, True))
    for deepest in ({1, 2, 4}, {1, 4}, {4}):
        one, other = (np.isin(result.label_XYZ, list(deepest)) for result in (full, narrow))
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.98
    assert sum(narrow.report.pixels.values()) < 0.4 * sum(full.report.pixels.values())


@pytest.mark.real
@pytest.mark.skipif(not REAL_CASES.is_dir(), reason="the real cases are not beside this checkout")
def test_the_shipped_weights_find_the_tumour_of_a_real_case(tmp_path: Path) -> None:
    """On the right side of the head: an orientation mistake would not reach this."""
    case = REAL_CASES / "BraTS2021_00006"
    found = run(case, tmp_path / "seg.nii.gz", narrow=True, fast=True).label_XYZ > 0
    reference = read_label(case / "BraTS2021_00006_seg.nii.gz").data > 0
    assert 2 * (found & reference).sum() / (found.sum() + reference.sum()) > 0.8


def test_the_shipped_weights_find_the_tumour_of_a_phantom(tmp_path: Path) -> None:
    case = write_phantom(tmp_path, 0, (96, 96, 64), overwrite=False)
    found = run(case, tmp_path / "seg.nii.gz").label_XYZ > 0
    truth = read_label(case / "phantom_000_seg.nii.gz").data > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7


def test_result_lies_in_the_grid_of_the_input(tmp_path: Path, tiny: str, phantom: Path) -> None:
    result = run(phantom, tmp_path / "seg.nii.gz", weights=tiny)
    written = nibabel.load(tmp_path / "seg.nii.gz")
    image = nibabel.load(next(phantom.glob("*_t1.nii.gz")))
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), result.label_XYZ)


def test_turned_input_gives_the_turned_result(tmp_path: Path, tiny: str, phantom: Path) -> None:
    """The same head stored with other axes must give the same label at the same place in the world."""
    straight = run(phantom, tmp_path / "a.nii.gz", weights=tiny)
    turned = tmp_path / "turned"
    turned.mkdir()
    for path in phantom.glob("*_[tf]*.nii.gz"):
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), turned / path.name)
    result = run(turned, tmp_path / "b.nii.gz", weights=tiny)
    np.testing.assert_array_equal(result.label_XYZ, straight.label_XYZ)
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj)[::-1, ::-1], straight.label_XYZ)


def test_report_counts_what_was_written(tmp_path: Path, tiny: str, phantom: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    result = segment_case(
        find_case(phantom),
        tmp_path / "seg.nii.gz",
        SegmentConfig(weights=tiny, labels="brats2023", device="cpu", narrow=False),
        lambda *step: progress.append(step),
    )
    report = result.report
    tissues = CONVENTIONS["brats2023"].tissues
    assert report.voxels == {name: int((result.label_XYZ == label).sum()) for name, label in tissues.items()}
    assert report.millilitres == pytest.approx({name: count / 1000 for name, count in report.voxels.items()})
    assert list(report.seconds) == ["load", "plan", "wt", "tc", "et", "fuse", "write"]
    assert report.peak_bytes == report.plan.predicted_bytes > 0
    assert (report.weights, report.labels, report.warnings) == ("tiny", "brats2023", [])
    sets = json.loads((Path(tiny) / "index.json").read_text())["sets"]["tiny"]
    assert report.checksums == [(region.value, sets[region.value]["sha256"]) for region in Region]
    assert progress[0] == ("WT", 4, report.slices["wt"]["run"])
    assert [step for step in progress if step[0] == "ET"][-1][1:] == (report.slices["et"]["run"],) * 2
    assert json.loads(json.dumps(asdict(report)))["plan"]["batch"] == 4


def test_report_of_one_network_names_its_regions(tmp_path: Path, single: str, phantom: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    config = SegmentConfig(weights=single, device="cpu", narrow=False)
    report = segment_case(
        find_case(phantom), tmp_path / "seg.nii.gz", config, lambda *step: progress.append(step)
    ).report
    assert list(report.seconds) == ["load", "plan", "wt tc et", "fuse", "write"]
    total = report.slices["wt tc et"]["run"]
    assert progress == [("WT TC ET", done, total) for done in [*range(4, total, 4), total]], "once over the slices"
    assert report.peak_bytes == report.plan.predicted_bytes > 0


def test_missing_modality_is_noted_and_two_are_enough(tmp_path: Path, tiny: str, phantom: Path) -> None:
    case = tmp_path / "case"
    case.mkdir()
    for name in ("flair", "t1ce"):
        source = next(phantom.glob(f"*_{name}.nii.gz"))
        (case / source.name).write_bytes(source.read_bytes())
    files, config = find_case(case, allow_missing=["t1", "t2"]), SegmentConfig(weights=tiny, device="cpu")
    warnings = segment_case(files, tmp_path / "seg.nii.gz", config).report.warnings
    assert [text.split()[0] for text in warnings] == ["t1", "t2"]


def test_doubtful_findings_are_left_out_and_told(tmp_path: Path, tiny: str, phantom: Path) -> None:

    def doubt(region: Region, head: torch.nn.Module) -> None:
        for parameter in head.parameters():
            parameter.mul_(2**-6 if region is Region.ET else 1)  # the same masks, but less sure of them

    settings = {"weights": str(write_changed(tmp_path / "unsure", tiny, doubt)), "device": "cpu", "precision": "fp32"}
    kept = run(phantom, tmp_path / "a.nii.gz", min_confidence=0.0, **settings)
    assert kept.report.doubtful_millilitres == {"wt": 0.0, "et": 0.0}
    cleaned = run(phantom, tmp_path / "b.nii.gz", min_confidence=1.0, **settings)
    gone = cleaned.report.doubtful_millilitres
    assert gone["wt"] == pytest.approx(((kept.label_XYZ > 0) & (cleaned.label_XYZ == 0)).sum() / 1000)
    assert gone["et"] == pytest.approx(((kept.label_XYZ == 4) & (cleaned.label_XYZ == 1)).sum() / 1000)
    assert min(gone.values()) > 0, "the test needs both to mean anything"
    assert not (cleaned.label_XYZ == 4).any()
    assert [text for text in cleaned.report.warnings if "enhancing tumour are doubtful" in text]
    assert not [text for text in kept.report.warnings if "doubtful" in text]


def test_the_share_of_doubtful_findings_is_the_weights_own(tmp_path: Path, tiny: str, phantom: Path) -> None:
    """Off where the set states none; the option counts before the set; the report says which it was."""
    stating = tmp_path / "stating"
    shutil.copytree(tiny, stating)
    index = json.loads((stating / "index.json").read_text())
    index["sets"]["tiny"]["min_confidence"] = 1.0
    (stating / "index.json").write_text(json.dumps(index))
    files, found = find_case(phantom), {}
    for name, weights, asked, used, of in (
        ("silent", tiny, None, 0.0, "tiny"),
        ("off", tiny, 0.0, 0.0, "--min-confidence"),
        ("stating", str(stating), None, 1.0, "tiny"),
        ("asked", tiny, 1.0, 1.0, "--min-confidence"),
        ("off again", str(stating), 0.0, 0.0, "--min-confidence"),
    ):
        config = SegmentConfig(weights=weights, device="cpu", precision="fp32", min_confidence=asked)
        result = segment_case(files, tmp_path / f"{name}.nii.gz", config)
        assert (result.report.min_confidence, result.report.min_confidence_of) == (used, of)
        found[name] = result.label_XYZ.tobytes(), origin_of(tmp_path / f"{name}.nii.gz")
    assert found["silent"] == found["off"] == found["off again"]
    assert found["stating"] == found["asked"]
    assert found["silent"][0] != found["asked"][0]
    assert found["silent"][1] != found["asked"][1], "a result made with another share is not taken for this one"


def test_running_out_of_memory_is_told(
    tmp_path: Path, tiny: str, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = step.predict_batch

    def cramped(network: SliceNetwork, slices_NCHW: torch.Tensor) -> torch.Tensor:
        if len(slices_NCHW) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(network, slices_NCHW)

    monkeypatch.setattr(step, "predict_batch", cramped)
    report = run(phantom, tmp_path / "a.nii.gz", weights=tiny, device="cpu").report
    assert report.warnings == ["the card ran out of memory: batch 2 instead of 4"]
    assert report.plan.batch == 2


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> str:
    """The tiny set with a core so sure of itself that fp16 cannot hold its logits."""

    def sure(region: Region, head: torch.nn.Module) -> None:
        for parameter in head.parameters():
            parameter.mul_(25000 if region is Region.TC else 1)

    return str(write_changed(tmp_path_factory.mktemp("weights") / "sure", tiny, sure))


def test_a_network_that_overflows_in_half_precision_runs_again_in_fp32(
    tmp_path: Path, overflowing: str, phantom: Path
) -> None:
    """The second of three networks: it and the third run in fp32, with a plan for it, and the report says so."""
    plans: list[planner.InferencePlan] = []
    config = SegmentConfig(weights=overflowing, device="cpu", precision="fp16", min_confidence=0.0)
    half = segment_case(find_case(phantom), tmp_path / "a.nii.gz", config, on_plan=plans.append)
    straight = run(phantom, tmp_path / "b.nii.gz", True, weights=overflowing, precision="fp32", device="cpu")
    assert half.report.warnings == [
        "fp16 gives NaN or infinity in TC: it is run again in fp32, and so is every network after it"
    ]
    assert [plan.precision for plan in plans] == ["fp16", "fp32"]
    assert half.report.plan == plans[1] == straight.report.plan
    assert half.report.peak_bytes == straight.report.peak_bytes
    assert set(np.unique(straight.label_XYZ)) == {0, 1, 2, 4}, "the test needs all tissues to mean anything"
    core = np.isin(half.label_XYZ, (1, 4)), np.isin(straight.label_XYZ, (1, 4))
    assert 2 * (core[0] & core[1]).sum() / (core[0].sum() + core[1].sum()) > 0.95


def test_where_fp32_does_not_fit_an_overflow_is_an_error(
    tmp_path: Path, overflowing: str, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(planner.BATCHES, "cpu", (1,))
    need = run(phantom, tmp_path / "a.nii.gz", weights=overflowing, precision="bf16").report.plan.predicted_bytes
    with pytest.raises(BudgetError, match="fp16 gives NaN or infinity in TC, and fp32 does not fit; expected at least"):
        run(phantom, tmp_path / "b.nii.gz", weights=overflowing, precision="fp16", vram=f"{need / 2**20 * 1.1}M")
    assert not (tmp_path / "b.nii.gz").exists()


def test_nan_in_fp32_too_is_an_error(tmp_path: Path, tiny: str, phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty label map, and nothing written."""

    def bad(region: Region, head: torch.nn.Module) -> None:
        head.weight.mul_(1e4)  # type: ignore[operator]
        head.bias.fill_(6e4)  # type: ignore[operator]

    weights = str(write_changed(tmp_path / "bad", tiny, bad))
    true = module.load_network

    def broken(file: object) -> torch.nn.Module:
        network = true(file)  # type: ignore[arg-type]
        network.head.weight.data *= 1e38
        return network

    monkeypatch.setattr(module, "load_network", broken)
    with pytest.raises(WeightsError, match="logits that are NaN or infinite in fp32"):
        run(phantom, tmp_path / "seg.nii.gz", weights=weights, device="cpu")
    assert not (tmp_path / "seg.nii.gz").exists()


def test_a_small_budget_gives_the_same_result_and_too_small_a_one_says_what_would_do(
    tmp_path: Path, tiny: str, phantom: Path
) -> None:
    unlimited = run(phantom, tmp_path / "a.nii.gz", weights=tiny)
    need = unlimited.report.plan.predicted_bytes
    small = run(phantom, tmp_path / "b.nii.gz", weights=tiny, vram=f"{-(-need // 2**20)}M")
    np.testing.assert_array_equal(small.label_XYZ, unlimited.label_XYZ)
    with pytest.raises(BudgetError, match=r"at least \d+M") as caught:
        run(phantom, tmp_path / "c.nii.gz", weights=tiny, vram="0.02M")
    assert not (tmp_path / "c.nii.gz").exists()
    enough = caught.value.expected.removeprefix("at least ")
    assert run(phantom, tmp_path / "c.nii.gz", weights=tiny, vram=enough).report.peak_bytes <= 2**20 * int(enough[:-1])


def test_bad_weights_stop_before_anything_is_written(tmp_path: Path, tiny: str, phantom: Path) -> None:
    with pytest.raises(WeightsError):
        run(phantom, tmp_path / "seg.nii.gz", weights="no-such-set")
    assert not list(tmp_path.iterdir())


def test_output_path(tmp_path: Path, phantom: Path) -> None:
    files = find_case(phantom)
    assert output_path(files, None) == phantom / "phantom_000_seg.nii.gz"
    assert output_path(files, tmp_path) == tmp_path / "phantom_000_seg.nii.gz"
    assert output_path(files, tmp_path / "new") == tmp_path / "new" / "phantom_000_seg.nii.gz"
    assert output_path(files, tmp_path / "x.nii") == tmp_path / "x.nii"


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.NII.GZ", "x.Nii", "v1.2.nii.gz"])
def test_a_name_with_the_suffix_of_a_nifti_is_a_label_map(tmp_path: Path, name: str) -> None:
    assert names_label_map(tmp_path / name)
    assert not names_label_map(f"{tmp_path / name}/")
    (tmp_path / name).touch()
    assert names_label_map(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert not names_label_map(tmp_path / name)


@pytest.mark.parametrize("name", ["out", "out.v2", "2026.11.25", "results.final", "nii", "my.nii-results", "..", "-"])
def test_any_other_name_is_a_folder(tmp_path: Path, name: str) -> None:
    assert not names_label_map(tmp_path / name)
    assert not names_label_map(f"{tmp_path / name}/")


OTHER = "nrrd mha mgz img hdr gz nii.bz2 nii.zst nii.gz.gz nii.gzip json png dcm csv txt NRRD Tif tar.gz npy"


@pytest.mark.parametrize("suffix", OTHER.split())
def test_a_file_of_another_format_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=rf"x\.{suffix}: ends in .*; expected a \.nii or \.nii\.gz file, or a folder"):
        names_label_map(tmp_path / f"x.{suffix}")
    assert not names_label_map(f"{tmp_path}/x.{suffix}/"), "with a slash at its end it is a folder"


def test_an_existing_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(InputError, match=r"notes: is a file, but no \.nii"):
        names_label_map(tmp_path / "notes")


def test_the_origin_is_of_all_that_decides_the_result(tmp_path: Path, tiny: str, single: str, phantom: Path) -> None:
    files, config = find_case(phantom), SegmentConfig(weights=tiny)
    made_of = origin(files, config, open_set(tiny))
    other = tmp_path / "t1.nii.gz"
    other.write_bytes(files.images["t1"].read_bytes())
    for same in (
        origin(replace(files, images=files.images | {"t1": other}), config, open_set(tiny)),  # a copy of the file
        origin(files, replace(config, device="cpu", vram="1G", weights=()), open_set(tiny)),
    ):
        assert same == made_of
    other.write_bytes(other.read_bytes() + b"x")
    t1, t2 = (files.images[name] for name in ("t1", "t2"))
    for different in (
        origin(replace(files, images=files.images | {"t1": other}), config, open_set(tiny)),
        origin(replace(files, images=files.images | {"t1": t2, "t2": t1}), config, open_set(tiny)),
        origin(replace(files, images={"t1": t1, "t2": t2}), config, open_set(tiny)),
        origin(files, config, open_set(single)),
        *(origin(files, replace(config, **{key: value}), open_set(tiny)) for key, value in CHANGES.items()),
    ):
        assert different != made_of


def test_the_budget_is_part_of_the_origin_where_it_decides_the_patch(tmp_path: Path, phantom: Path) -> None:
    config, path = NetworkConfig(name="segresnet", width=8, outputs=3, patch="32x32x32"), tmp_path / "all.safetensors"
    save_network(build_any(config), WeightsFile(path, tuple(Region), config, {}, {}))
    write_index(tmp_path, "patches", dict.fromkeys(Region, path))
    files, settings = find_case(phantom), SegmentConfig(weights=str(tmp_path))
    assert origin(files, settings) == origin(files, replace(settings, device="cpu"))
    assert origin(files, settings) != origin(files, replace(settings, vram="64M"))


CHANGES = {"labels": "msd", "min_confidence": 0.1, "fast": True, "tta": True, "narrow": False}


def test_a_label_map_says_what_it_was_made_of(tmp_path: Path, tiny: str, phantom: Path) -> None:
    run(phantom, tmp_path / "x.nii.gz", weights=tiny)
    expected = origin(find_case(phantom), SegmentConfig(weights=tiny, narrow=False), open_set(tiny))
    assert origin_of(tmp_path / "x.nii.gz") == expected
    assert is_own_result(tmp_path / "x.nii.gz")


def test_only_an_own_result_is_replaced(tmp_path: Path, tiny: str, phantom: Path) -> None:
    case = tmp_path / "case"
    case.mkdir()
    for path in phantom.iterdir():
        (case / path.name).write_bytes(path.read_bytes())
    files = find_case(case)
    (label,) = files.labels
    with pytest.raises(InputError, match="a label map drawn or corrected by a person"):
        check_not_reference(files, label)  # the phantom's reference
    check_not_reference(replace(files, labels=()), label)
    label.unlink()
    run(case, label, weights=tiny)
    check_not_reference(find_case(case), label)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(tmp_path: Path, tiny: str, phantom: Path) -> None:
    cuda = run(phantom, tmp_path / "a.nii.gz", weights=tiny, device="cuda", precision="fp32")
    cpu = run(phantom, tmp_path / "b.nii.gz", weights=tiny, device="cpu", precision="fp32")
    assert (cuda.label_XYZ != cpu.label_XYZ).mean() < 1e-3
    assert cuda.report.plan.device == "cuda:0"
    assert all(count["run"] + count["skipped"] for region in Region if (count := cuda.report.slices[region.value]))

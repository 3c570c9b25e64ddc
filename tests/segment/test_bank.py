"""A bank's slices go where its decision network sends them, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from tiny_bank import COSTS, FRAME_HW, decision_of, undecided, write_bank
from tiny_weights import SMALL_SHAPE

from lowmem_brats.config import MODALITIES, SegmentConfig
from lowmem_brats.data.case import case_of
from lowmem_brats.data.phantom import make_phantom
from lowmem_brats.data.slices import prepare, views_of
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.segment import regions
from lowmem_brats.segment.bank import choose_members, padded, put_together
from lowmem_brats.segment.case import segment_images
from lowmem_brats.segment.result import Segmentation
from lowmem_brats.segment.stack import NotFinite, Prediction, place, predict_stack
from lowmem_brats.weights.file import load_network
from lowmem_brats.weights.store import open_set


def run(weights: Path, **settings: Any) -> Segmentation:
    phantom = make_phantom(0, SMALL_SHAPE)
    images = zip(MODALITIES, phantom.images_CXYZ, strict=True)
    case = case_of({m: nibabel.Nifti1Image(image_XYZ, phantom.affine) for m, image_XYZ in images})
    config = {"device": "cpu", "precision": "fp32", "min_confidence": 0.0} | settings
    return segment_images(case, SegmentConfig(weights=str(weights), **config))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank") / "mixed", undecided())


@pytest.mark.parametrize(("choice", "member"), [(1, "small"), (2, "large")])
def test_a_bank_that_always_chooses_one_member_is_that_member(tmp_path: Path, choice: int, member: str) -> None:
    bank = write_bank(tmp_path / "bank", decision_of(choice))
    routed, alone = run(bank), run(bank, member=member, narrow=False)
    np.testing.assert_array_equal(routed.label_XYZ, alone.label_XYZ)
    assert routed.label_XYZ.any()
    assert routed.report.slices == alone.report.slices
    assert {name: row["slices"] for name, row in routed.report.members.items()} == {
        "decision": alone.report.slices["wt tc et"]["run"],
        "small": 0,
        "large": 0,
    } | {member: alone.report.slices["wt tc et"]["run"]}
    assert alone.report.weights == f"bank, {member}"
    assert alone.report.members == {}


def test_a_bank_that_skips_all_finds_nothing(tmp_path: Path) -> None:
    result = run(write_bank(tmp_path / "bank", decision_of(0)))
    assert not result.label_XYZ.any()
    assert result.report.slices["wt tc et"]["run"] == 0
    assert result.report.pixels == {"wt tc et": 0}


def test_each_slice_is_segmented_by_its_member_alone(mixed: Path) -> None:
    weights, plan = open_set(str(mixed)), InferencePlan("cpu", "fp32", batch=4)
    stack = prepare(make_phantom(0, SMALL_SHAPE).images_CXYZ.astype(np.float32), weights.stride)
    brain_VN = [seen.any(axis=(1, 2)) for seen in views_of(stack.brain_ZHW, 3)]
    choice_VN, _ = choose_members(undecided(), FRAME_HW, stack.slices_ZCHW, brain_VN, plan)
    assert {choice for choice_N in choice_VN for choice in choice_N.tolist()} == {0, 1, 2}
    networks = [place(load_network(file), plan) for file in weights.files]
    parts = [
        predict_stack(lambda _, k=k: networks[k - 1], stack.slices_ZCHW, [c == k for c in choice_VN], plan)  # type: ignore[misc]
        for k in (1, 2)
    ]
    whole_KZHW = np.zeros_like(parts[0].sum_KZHW)
    for view, (seen_NCHW, choice_N) in enumerate(zip(views_of(stack.slices_ZCHW, 3), choice_VN, strict=True)):
        sum_KNHW = views_of(whole_KZHW, 3, axis=1)[view]
        for n, choice in enumerate(choice_N.tolist()):
            if choice:
                with torch.inference_mode():
                    logits = networks[choice - 1](torch.from_numpy(seen_NCHW[n : n + 1].copy()).float())[0].numpy()
                sum_KNHW[:, n] += logits * (seen_NCHW[n] != 0).any(axis=0)
    for view, choice_N in enumerate(choice_VN):
        views_of(whole_KZHW, 3, axis=1)[view][:, choice_N == 0] = 0
    np.testing.assert_allclose(put_together(parts).sum_KZHW, whole_KZHW, atol=1e-4)
    assert whole_KZHW.any()


def test_the_report_says_which_slice_went_where_and_what_it_cost(mixed: Path) -> None:
    report = run(mixed).report
    assert report.members["decision"]["slices"] == sum(report.slices["wt tc et"].values())
    small, large = (report.members[name]["slices"] for name in COSTS)
    assert small + large == report.slices["wt tc et"]["run"]
    assert min(small, large) > 0
    pixels = {name: report.members[name]["gmac"] / cost * 1e6 for name, cost in COSTS.items()}
    assert sum(pixels.values()) == pytest.approx(report.pixels["wt tc et"])
    for view in ("axial", "coronal", "sagittal"):
        runs = [{z for first, end in report.looked_at[of][view] for z in range(first, end)} for of in COSTS]
        assert not runs[0] & runs[1]
        assert runs[0] | runs[1] == {z for a, b in report.looked_at["wt tc et"][view] for z in range(a, b)}
    assert [name for name, _ in report.checksums] == ["small", "large", "decision"]


def test_the_peak_is_that_of_the_largest_member(mixed: Path) -> None:
    routed, large = run(mixed).report, run(mixed, member="large", narrow=False).report
    assert routed.peak_bytes == routed.plan.predicted_bytes == large.peak_bytes == large.plan.predicted_bytes
    small = run(mixed, member="small", narrow=False).report
    assert small.peak_bytes < routed.peak_bytes


def test_every_slice_is_no_way_to_run_a_bank(mixed: Path) -> None:
    with pytest.raises(InputError, match="Name a member of it with --member"):
        run(mixed, narrow=False)


def test_slices_lie_in_the_middle_of_their_frame() -> None:
    slices_nCHW = np.ones((1, 1, 2, 6), np.float16)
    framed_nCHW = padded(slices_nCHW, (5, 4))
    assert framed_nCHW.shape == (1, 1, 5, 6)
    assert framed_nCHW[0, 0, :, 0].tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("frame_HW", "batches"), [((16, 16), [4, 4, 1]), ((32, 16), [2, 2, 2, 2, 1]), ((64, 64), [1] * 9)]
)
def test_a_frame_larger_than_the_slices_needs_no_more_memory_than_was_planned(
    frame_HW: tuple[int, int], batches: list[int]
) -> None:
    network, seen = decision_of(1), list[int]()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    plan, active_VN = InferencePlan("cpu", "fp32", batch=4), [np.ones(9, np.bool_)]
    choice_VN, _ = choose_members(network, frame_HW, np.ones((9, 4, 16, 16), np.float16), active_VN, plan)
    assert choice_VN[0].tolist() == [1] * 9
    assert seen == batches


def test_a_decision_network_that_overflows_skips_nothing_in_silence() -> None:
    network, plan = decision_of(1), InferencePlan("cpu", "fp32", batch=4)
    network.scores.weight.data.fill_(3e38)
    with pytest.raises(WeightsError, match="decision network: scores that are NaN or infinite"):
        choose_members(network, (16, 16), np.ones((1, 4, 16, 16), np.float16), [np.ones(1, np.bool_)], plan)


def test_a_member_whose_logits_overflow_is_named_and_run_again(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `large` fails in half precision: it is run again in fp32, and the warning says which it was."""
    real = regions.predict_stack

    def fail(network_of: Any, slices: Any, active: Any, plan: InferencePlan, *arguments: Any) -> Prediction:
        if plan.precision == "bf16" and width_of(network_of(0)) == 16:
            raise NotFinite
        return real(network_of, slices, active, plan, *arguments)

    monkeypatch.setattr(regions, "predict_stack", fail)
    report = run(mixed, precision="bf16").report
    assert "bf16 gives NaN or infinity in LARGE: it is run again in fp32, and so is every network after it" in (
        report.warnings
    )
    assert report.plan.precision == "fp32"
    assert report.members["large"]["slices"] > 0


def width_of(network: Any) -> int:
    return next(iter(network.parameters())).shape[0]  # type: ignore[no-any-return]


def test_where_a_view_has_not_looked_there_is_nothing() -> None:
    def part(of: int) -> Prediction:
        sum_KZHW = np.zeros((1, 2, 2, 2), np.float32)
        sum_KZHW[:, of] = 1 + of
        ran_VN = [np.arange(2) == of, np.array([of == 0, False])]
        return Prediction(sum_KZHW, 10 + of, 4 - of, ran_VN, pixels=3)

    whole = put_together([part(0), part(1)])
    np.testing.assert_array_equal(whole.sum_KZHW[0], [[[1, 1], [0, 0]], [[2, 2], [0, 0]]])
    assert (whole.peak_bytes, whole.batch, whole.pixels) == (11, 3, 6)

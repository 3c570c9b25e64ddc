"""Each network looks where its parent was found: in boxes that lose nothing, or at whole slices."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from tiny_weights import SMALL_SHAPE, write_pointwise_set

import lowmem_brats.segment.regions as module
from lowmem_brats.config import MODALITIES, SegmentConfig
from lowmem_brats.data.case import Case, case_of
from lowmem_brats.data.phantom import Phantom, make_phantom
from lowmem_brats.segment.case import segment_images
from lowmem_brats.segment.result import Segmentation


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pointwise_set(tmp_path_factory.mktemp("weights") / "pointwise"))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(1, SMALL_SHAPE)


@pytest.fixture(autouse=True)
def narrow_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box of the real margin would hold the whole of a small head."""
    monkeypatch.setattr(module, "MARGIN", 2)


def run(weights: str, images_CXYZ: npt.NDArray[Any], affine: npt.NDArray[Any], **settings: Any) -> Segmentation:
    images = {m: nibabel.Nifti1Image(image_XYZ, affine) for m, image_XYZ in zip(MODALITIES, images_CXYZ, strict=True)}
    case: Case = case_of(images)
    config = {"weights": weights, "device": "cpu", "precision": "fp32", "min_confidence": 0.5} | settings
    return segment_images(case, SegmentConfig(**config))


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_find_what_every_slice_finds(pointwise: str, phantom: Phantom, mirror: bool) -> None:
    """Where a voxel's logit depends on that voxel alone, and doubtful islands are dropped in both."""
    boxes, slices = (
        run(pointwise, phantom.images_CXYZ, phantom.affine, tta=mirror, narrow=narrow) for narrow in (True, False)
    )
    np.testing.assert_array_equal(boxes.label_XYZ, slices.label_XYZ)
    assert set(np.unique(boxes.label_XYZ)) == {0, 1, 2, 4}
    for region in ("wt", "tc", "et"):
        assert boxes.report.pixels[region] < 0.4 * slices.report.pixels[region]
        assert boxes.report.slices[region]["skipped"] >= slices.report.slices[region]["skipped"]
    assert slices.report.boxes == {}
    assert boxes.report.warnings == slices.report.warnings == []


def test_the_report_says_where_the_boxes_lie(pointwise: str, phantom: Phantom) -> None:
    result = run(pointwise, phantom.images_CXYZ, phantom.affine)
    label_XYZ = result.label_XYZ.copy()
    for region, labels in {"wt": (1, 2, 4), "tc": (1, 4), "et": (4,)}.items():
        inside = np.zeros(label_XYZ.shape, np.bool_)
        for first, end in result.report.boxes[region]:
            inside[tuple(map(slice, first, end))] = True
        assert inside[np.isin(label_XYZ, labels)].all()
        assert 0 < inside.mean() < 0.3


def test_a_slice_that_is_looked_at_twice_counts_once(pointwise: str, phantom: Phantom) -> None:
    """Of axial slices 0 to 36 the coarse look sees 1, 5, 9, …, since the stack begins one slice before the brain."""
    report = run(pointwise, phantom.images_CXYZ, phantom.affine).report
    ((first, end),) = report.boxes["wt"]
    brain_xyz = (phantom.images_CXYZ != 0).any(axis=0)[tuple(map(slice, first, end))]
    axial = {*range(1, 37, 4), *range(first[2], end[2])}
    sagittal, coronal = (int(brain_xyz.any(axis=axes).sum()) for axes in ((1, 2), (0, 2)))
    assert report.slices["wt"]["run"] == len(axial) + coronal + sagittal


@pytest.fixture
def faint(phantom: Phantom) -> npt.NDArray[np.int16]:
    """A brain whose FLAIR is dull but for the tumour on axial slices 22 to 24, between two of the coarse look."""
    images_CXYZ = phantom.images_CXYZ.copy()
    shown_XYZ = phantom.label_XYZ > 0
    shown_XYZ[:, :, :22] = shown_XYZ[:, :, 25:] = False
    flair_XYZ = images_CXYZ[MODALITIES.index("flair")]
    flair_XYZ[~shown_XYZ] = np.minimum(flair_XYZ, 560)[~shown_XYZ]
    return images_CXYZ


def test_where_the_coarse_look_finds_nothing_the_whole_brain_is_looked_at(
    pointwise: str, phantom: Phantom, faint: npt.NDArray[np.int16]
) -> None:
    boxes, slices = (run(pointwise, faint, phantom.affine, narrow=narrow) for narrow in (True, False))
    np.testing.assert_array_equal(boxes.label_XYZ, slices.label_XYZ)
    assert {*np.flatnonzero(boxes.label_XYZ.any(axis=(0, 1)))} == {22, 23, 24}
    assert boxes.warnings == ["WT: nothing found at every fourth axial slice: the whole brain is looked at closely"]
    assert slices.warnings == []
    assert boxes.report.pixels["wt"] > slices.report.pixels["wt"] > boxes.report.pixels["tc"]


def test_slices_far_apart_are_all_looked_at_whole_for_the_first_region(pointwise: str, phantom: Phantom) -> None:
    """A flat stack has one view, so the coarse look would save little; TC and ET still have their boxes."""
    images_CXYZ, affine = phantom.images_CXYZ[..., ::4], phantom.affine @ np.diag([1, 1, 4, 1])
    boxes, slices = (run(pointwise, images_CXYZ, affine, narrow=narrow) for narrow in (True, False))
    np.testing.assert_array_equal(boxes.label_XYZ, slices.label_XYZ)
    assert {2, 4} <= set(np.unique(boxes.label_XYZ))
    assert boxes.report.pixels["wt"] == slices.report.pixels["wt"]
    for region in ("tc", "et"):
        assert 0 < boxes.report.pixels[region] < 0.5 * slices.report.pixels[region]


def test_nothing_at_all_needs_no_further_network(
    pointwise: str, phantom: Phantom, faint: npt.NDArray[np.int16]
) -> None:
    images_CXYZ = faint.copy()
    images_CXYZ[MODALITIES.index("flair")] = np.minimum(images_CXYZ[MODALITIES.index("flair")], 560)
    result = run(pointwise, images_CXYZ, phantom.affine)
    assert not result.label_XYZ.any()
    assert (result.report.pixels["tc"], result.report.pixels["et"]) == (0, 0)
    assert (result.report.boxes["tc"], result.report.boxes["et"]) == ([], [])

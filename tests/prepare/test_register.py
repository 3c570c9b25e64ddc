"""Registrations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from raw_heads import AFFINE, MOVES, Head, moved, rigid

from lowmem_brats.prepare import itk
from lowmem_brats.prepare.lay import Anchor, kept, laid_by, lay_on
from lowmem_brats.prepare.register import described, register

pytestmark = pytest.mark.usefixtures("extra")
_SWAP = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def anchor(head: Head) -> Anchor:
    grid = itk.Grid(head.brain_XYZ.shape, AFFINE)
    image_XYZ = kept(head.images["t1ce"], head.brain_XYZ)
    return Anchor(itk.to_itk(head.images["t1ce"], AFFINE), grid, head.brain_XYZ, image_XYZ)


def errors_mm(transform: object, modality: str, head: Head) -> np.ndarray:
    """How far from the truth the brain's voxels are laid."""
    voxels = np.argwhere(head.brain_XYZ)[::500]
    points = np.column_stack([voxels, np.ones(len(voxels))]) @ (_SWAP @ AFFINE).T
    true = points @ (_SWAP @ rigid(*MOVES[modality]) @ _SWAP).T
    found = [transform.TransformPoint(point[:3].tolist()) for point in points]  # type: ignore[attr-defined]
    return np.linalg.norm(np.array(found) - true[:, :3], axis=1)


@pytest.mark.parametrize("modality", MOVES)
def test_the_move_of_each_modality_is_found(modality: str, head: Head, anchor: Anchor) -> None:
    moving = itk.to_itk(moved(head.images[modality], rigid(*MOVES[modality])), AFFINE)
    with itk.threads():
        laid = lay_on(modality, moving, anchor)
    assert errors_mm(laid.registration.transform, modality, head).mean() < 0.5, "voxels are 2.5 mm"
    assert laid.registration.start == "moments"
    assert laid.registration.shift_mm == pytest.approx(np.linalg.norm(MOVES[modality][1]), abs=0.6)
    fit = laid.measures.alignment
    assert fit is not None
    assert fit.over_mean > 1.5
    assert laid.measures.over_probes > 1.05
    assert laid.measures.covered > 0.97


def test_the_same_input_gives_the_same_transform(head: Head, anchor: Anchor) -> None:
    moving = itk.to_itk(moved(head.images["t1"], rigid((1, 2, 0), (1, 1, 0))), AFFINE)
    with itk.threads():
        first, second = (register(anchor.fixed, moving).transform.GetParameters() for _ in range(2))
    assert first == second


def test_what_was_not_registered_is_given_away(head: Head, anchor: Anchor) -> None:
    import SimpleITK as sitk  # noqa: N813

    moving = itk.to_itk(moved(head.images["t2"], rigid((0, 0, 0), (4, 5, 4))), AFFINE)
    measures = laid_by(described(sitk.Euler3DTransform(), anchor.fixed, "headers"), moving, anchor).measures
    assert measures.over_probes < 1

"""Registrations on coarse heads; test_run has the truth of a whole study."""

from __future__ import annotations

import numpy as np
import pytest
from raw_heads import AFFINE, Head, moved, rigid

from lowmem_brats.errors import InputError
from lowmem_brats.prepare import itk
from lowmem_brats.prepare.lay import Anchor, kept, laid_by, lay_on
from lowmem_brats.prepare.register import STARTS, Registration, described, register

pytestmark = pytest.mark.usefixtures("extra")


def registered(head: Head, start: str) -> Registration:
    fixed = itk.to_itk(head.images["t1ce"], AFFINE)
    moving = itk.to_itk(moved(head.images["t1"], rigid((5, 3, -6), (4, -3, 5))), AFFINE)
    with itk.threads():
        return register(fixed, moving, start)


@pytest.mark.parametrize("start", STARTS)
def test_from_each_start_the_same_place_is_found(start: str, head: Head) -> None:
    found = registered(head, start)
    assert found.start == start
    assert found.rotation_degrees == pytest.approx(8.5, abs=1)
    assert found.shift_mm == pytest.approx(np.sqrt(4**2 + 3**2 + 5**2), abs=1)


def test_the_same_images_give_the_same_bytes(head: Head) -> None:
    first, second = (registered(head, STARTS[0]).transform.GetParameters() for _ in range(2))
    assert first == second


def test_what_was_not_registered_is_given_away(head: Head) -> None:
    import SimpleITK as sitk  # noqa: N813

    grid = itk.Grid(head.brain_XYZ.shape, AFFINE)
    image_XYZ = kept(head.images["t1ce"], head.brain_XYZ)
    anchor = Anchor(itk.to_itk(head.images["t1ce"], AFFINE), grid, head.brain_XYZ, image_XYZ)
    good, bad = (
        laid_by(described(sitk.Euler3DTransform(), anchor.fixed, "headers"), itk.to_itk(image, AFFINE), anchor).measures
        for image in (head.images["t2"], moved(head.images["t2"], rigid((0, 0, 0), (6, 7, 6))))
    )
    assert good.over_probes > 1.2
    assert bad.over_probes < 1


def test_an_image_that_cannot_be_registered_is_named(head: Head) -> None:
    t1ce = head.images["t1ce"]
    grid = itk.Grid(t1ce.shape, AFFINE)
    anchor = Anchor(itk.to_itk(t1ce, AFFINE), grid, head.brain_XYZ, kept(t1ce, head.brain_XYZ))
    for image_XYZ in (np.zeros_like(t1ce), head.images["t2"][:, :, :3]):
        with pytest.raises(InputError, match="t2: cannot be laid on T1ce: SimpleITK cannot begin"):
            lay_on("t2", itk.to_itk(image_XYZ, AFFINE), anchor)


def test_where_one_start_cannot_be_used_the_others_are_tried(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    t1ce = head.images["t1ce"]
    grid = itk.Grid(t1ce.shape, AFFINE)
    anchor = Anchor(itk.to_itk(t1ce, AFFINE), grid, head.brain_XYZ, kept(t1ce, head.brain_XYZ))
    far = AFFINE.copy()
    far[:3, 3] += 900.0
    monkeypatch.setattr("lowmem_brats.prepare.lay.STARTS", ("headers", "centres"))
    monkeypatch.setattr("lowmem_brats.prepare.lay.judge_modality", lambda modality, measures: [])
    assert lay_on("t1", itk.to_itk(head.images["t1"], far), anchor).registration.start == "centres"

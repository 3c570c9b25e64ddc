"""Lesions of known size, place and number; rings, gaps, thick slices, turned grids, and nothing at all."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.measure import lesions as module
from lowmem_brats.measure.lesions import Lesion, middle_of, sum_of_products

Mask = npt.NDArray[np.bool_]
UNIT_MM = (1.0, 1.0, 1.0)
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
"""The affine of every case of BraTS ≤ 2021."""


def ellipsoid(
    shape: tuple[int, int, int],
    centre_mm: tuple[float, float, float],
    radii_mm: tuple[float, float, float],
    spacing_mm: tuple[float, float, float] = UNIT_MM,
    turn: npt.NDArray[np.float64] | None = None,
) -> Mask:
    """The voxels whose centre lies in an ellipsoid; `turn`: 3 × 3, from its axes to those of the array."""
    axes = [np.arange(size) * spacing for size, spacing in zip(shape, spacing_mm, strict=True)]
    offset_mm = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - centre_mm
    inside: Mask = (((offset_mm @ (np.eye(3) if turn is None else turn)) / radii_mm) ** 2).sum(axis=-1) <= 1
    return inside


def find_lesions(
    enhancing_XYZ: Mask,
    affine: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    middle_mm: float | None = None,
    core_XYZ: Mask | None = None,
) -> list[Lesion]:
    """As the module's, without any core by default."""
    core_XYZ = np.zeros_like(enhancing_XYZ) if core_XYZ is None else core_XYZ
    return module.find_lesions(enhancing_XYZ, core_XYZ, affine, spacing_mm, middle_mm)


def only(lesions: list[Lesion]) -> Lesion:
    assert len(lesions) == 1
    return lesions[0]


def test_a_box_by_hand() -> None:
    mask_XYZ = np.zeros((20, 20, 20), np.bool_)
    mask_XYZ[2:14, 5:6, 3:7] = True  # 12 × 1 × 4 voxels
    assert find_lesions(mask_XYZ, LPS, UNIT_MM) == [
        Lesion(
            millilitres=0.048,
            longest_mm=12,
            perpendicular_mm=pytest.approx(1),
            product_mm2=pytest.approx(12),
            measurable=False,
            slice=3,
            longest_in_space_mm=pytest.approx(math.hypot(12, 3)),
            centroid_ras_mm=pytest.approx((-7.5, 234, 4.5)),
            side="unknown",
        )
    ]


@pytest.mark.parametrize("spacing_mm", [UNIT_MM, (0.8, 0.8, 2.0), (0.5, 1.5, 3.0)])
def test_an_ellipsoid_of_known_size(spacing_mm: tuple[float, float, float]) -> None:
    shape = tuple(math.ceil(70 / spacing) for spacing in spacing_mm)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1])
    found = only(find_lesions(ellipsoid(shape, (35.4, 33.3, 30.2), (22, 14, 18), spacing_mm), affine, spacing_mm))
    volume_ml = 4 / 3 * math.pi * 22 * 14 * 18 / 1000
    assert found.longest_mm == pytest.approx(44, abs=max(spacing_mm[:2]))
    assert found.perpendicular_mm == pytest.approx(28, abs=max(spacing_mm[:2]))
    assert found.longest_in_space_mm == pytest.approx(44, abs=max(spacing_mm))
    assert found.slice == pytest.approx(30.2 / spacing_mm[2], abs=1)
    assert found.centroid_ras_mm == pytest.approx((-35.4, -33.3, 30.2), abs=0.2)
    assert found.millilitres == pytest.approx(volume_ml, rel=0.02)
    assert found.measurable


def test_a_turned_ellipsoid_is_longer_in_space_than_in_any_slice() -> None:
    """Turned by 45° out of the axial plane: the slice through its centre cuts radii 30 and 10 at 13.4."""
    half = math.sqrt(0.5)
    turn = np.array([[half, 0, -half], [0, 1, 0], [half, 0, half]])
    found = only(find_lesions(ellipsoid((80, 60, 80), (40, 30, 40), (30, 10, 10), turn=turn), LPS, UNIT_MM))
    across = 1 / math.sqrt(0.5 / 30**2 + 0.5 / 10**2)
    assert found.longest_in_space_mm == pytest.approx(60, abs=1)
    assert found.longest_mm == pytest.approx(2 * across, abs=1)
    assert found.perpendicular_mm == pytest.approx(20, abs=1)


def test_a_ring_is_measured_across_the_whole_ring() -> None:
    solid = ellipsoid((60, 60, 40), (30, 30, 20), (20, 15, 12))
    ring = solid & ~ellipsoid((60, 60, 40), (30, 30, 20), (16, 11, 8))
    whole, found = only(find_lesions(solid, LPS, UNIT_MM)), only(find_lesions(ring, LPS, UNIT_MM))
    assert (found.longest_mm, found.perpendicular_mm) == (whole.longest_mm, whole.perpendicular_mm)
    assert found.slice == whole.slice
    assert found.millilitres == ring.sum() / 1000  # the volume is that of the enhancing voxels alone


def test_a_ring_with_a_gap_is_measured_across_its_core() -> None:
    solid, hole = (ellipsoid((60, 60, 1), (30.4, 30.3, 0), (radius, radius, 1)) for radius in (20, 16))
    ring = solid & ~hole
    ring[30:, 28:32] = False
    with_core = only(find_lesions(ring, LPS, UNIT_MM, core_XYZ=hole))
    assert (with_core.longest_mm, with_core.perpendicular_mm) == pytest.approx((40, 40), abs=1)
    assert only(find_lesions(ring, LPS, UNIT_MM)).longest_mm < 30  # of another tissue it would have to be enclosed


def test_core_beside_the_lesion_is_no_part_of_it() -> None:
    enhancing = np.zeros((60, 60, 1), np.bool_)
    enhancing[5:20, 5:20] = True
    beside = np.zeros_like(enhancing)
    beside[20:50, 5:20] = True
    alone = only(find_lesions(enhancing, LPS, UNIT_MM))
    assert only(find_lesions(enhancing, LPS, UNIT_MM, core_XYZ=beside)) == alone


def test_two_lesions_and_a_speck() -> None:
    mask_XYZ = ellipsoid((80, 60, 40), (20.4, 30.3, 20), (9, 8, 8)) | ellipsoid(
        (80, 60, 40), (55.4, 30.3, 20), (15, 12, 9)
    )
    mask_XYZ[2, 2, 2] = True
    large, small, speck = find_lesions(mask_XYZ, LPS, UNIT_MM)
    assert [each.measurable for each in (large, small, speck)] == [True, True, False]
    assert large.product_mm2 == pytest.approx(30 * 24, rel=0.1)
    assert small.product_mm2 == pytest.approx(18 * 16, rel=0.1)
    assert (speck.product_mm2, speck.longest_in_space_mm) == pytest.approx((1, 1))
    assert sum_of_products([small, speck, large]) == large.product_mm2 + small.product_mm2


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    mask_XYZ = np.zeros((4, 4, 4), np.bool_)
    mask_XYZ[0, 0, 0] = mask_XYZ[1, 1, 1] = True
    assert len(find_lesions(mask_XYZ, LPS, UNIT_MM)) == 1
    mask_XYZ[3, 3, 3] = True
    assert len(find_lesions(mask_XYZ, LPS, UNIT_MM)) == 2


def test_nothing_enhances() -> None:
    assert find_lesions(np.zeros((5, 5, 5), np.bool_), LPS, UNIT_MM) == []
    assert sum_of_products([]) == 0


@pytest.mark.parametrize(("width", "measurable"), [(10, True), (9, False)])
def test_measurable_from_10_mm_both_ways(width: int, measurable: bool) -> None:
    """A bar of 40 × 10 mm; its perpendicular is that of a line a little off its axis."""
    assert only(find_lesions(np.ones((40, width, 1), np.bool_), LPS, UNIT_MM)).measurable is measurable


def test_the_sum_takes_the_five_largest() -> None:
    mask_XYZ = np.zeros((12 * 7, 30, 1), np.bool_)
    for number in range(7):
        mask_XYZ[12 * number : 12 * number + 10, : 12 + number] = True
    lesions = find_lesions(mask_XYZ, LPS, UNIT_MM)
    assert len(lesions) == 7
    assert all(lesion.measurable for lesion in lesions)
    assert sum_of_products(lesions[::-1]) == pytest.approx(sum(lesion.product_mm2 for lesion in lesions[:5]))


@pytest.mark.parametrize(("first", "side"), [(5, "right"), (40, "left"), (22, "midline")])
def test_sides_are_the_patients(first: int, side: str) -> None:
    """X rises to the left in LPS order; the middle of a brain of 50 voxels is between voxels 24 and 25."""
    brain_XYZ = np.ones((50, 20, 20), np.bool_)
    mask_XYZ = np.zeros_like(brain_XYZ)
    mask_XYZ[first : first + 4, 5:9, 5:9] = True
    middle_mm = middle_of(brain_XYZ, LPS)
    assert middle_mm == -24.5
    assert only(find_lesions(mask_XYZ, LPS, UNIT_MM, middle_mm)).side == side


def test_positions_on_a_turned_grid() -> None:
    """Turned by 20° around the axis to the head and moved: positions and the middle turn with it."""
    angle = math.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [
        [-math.cos(angle), math.sin(angle), 0],
        [-math.sin(angle), -math.cos(angle), 0],
        [0, 0, 1],
    ]
    affine[:3, 3] = (30, 40, -50)
    mask_XYZ = np.zeros((40, 40, 10), np.bool_)
    mask_XYZ[10, 30, 5] = True
    found = only(find_lesions(mask_XYZ, affine, UNIT_MM, middle_of(np.ones_like(mask_XYZ), affine)))
    assert found.centroid_ras_mm == pytest.approx(tuple((affine @ [10, 30, 5, 1])[:3]))
    assert found.side == "right"
    assert found.slice == 5

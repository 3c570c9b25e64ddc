"""Grids, and resampling with SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
from raw_heads import AFFINE, moved, rigid
from scipy import ndimage

from lowmem_brats.data.geometry import Volume
from lowmem_brats.prepare import itk


def volume(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Volume:
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = (30, 40, -50)
    return Volume(np.zeros(shape, np.int16), affine, None, np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "grid_shape", "grid_mm"),
    [
        ((240, 240, 155), (1.0, 1.0, 1.0), (240, 240, 155), (1.0, 1.0, 1.0)),
        ((256, 224, 26), (0.9, 0.95, 5.5), (256, 224, 26), (0.9, 0.95, 5.5)),
        ((400, 400, 30), (0.5, 0.5, 4.0), (200, 200, 30), (1.0, 1.0, 4.0)),
        ((100, 256, 256), (1.5, 0.85, 0.85), (150, 218, 218), (1.0, 1.0, 1.0)),
    ],
)
def test_the_grid_is_1_mm_and_keeps_thick_slices_and_what_is_nearly_1_mm(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    grid_shape: tuple[int, int, int],
    grid_mm: tuple[float, float, float],
) -> None:
    t1ce = volume(shape, spacing_mm)
    grid = itk.grid_around(t1ce)
    assert grid.shape == grid_shape
    assert grid.spacing_mm == pytest.approx(grid_mm)
    outer = [affine @ [-0.5, -0.5, -0.5, 1] for affine in (grid.affine, t1ce.affine)]
    assert outer[0] == pytest.approx(outer[1]), "the outer faces of the first voxels coincide"


@pytest.mark.usefixtures("extra")
def test_resampling_onto_the_same_grid_changes_nothing(head) -> None:  # type: ignore[no-untyped-def]
    image_XYZ = head.images["t1"]
    grid = itk.Grid(image_XYZ.shape, AFFINE)
    assert np.array_equal(itk.resample(itk.to_itk(image_XYZ, AFFINE), grid), image_XYZ)
    assert np.allclose(itk.resample(itk.to_itk(image_XYZ, AFFINE), grid, fine=True), image_XYZ, atol=0.5)


@pytest.mark.usefixtures("extra")
def test_a_transform_means_what_scipy_makes_of_it(head) -> None:  # type: ignore[no-untyped-def]
    """Affines and transforms are in RAS+ here and in LPS+ there; resampling a moved head moves it back."""
    import SimpleITK as sitk  # noqa: N813

    there = rigid((5, -4, 8), (6, -3, 4))
    swap = np.diag([-1.0, -1.0, 1.0, 1.0])
    in_lps = swap @ there @ swap
    transform = sitk.AffineTransform(in_lps[:3, :3].ravel().tolist(), in_lps[:3, 3].tolist())
    grid = itk.Grid(head.brain_XYZ.shape, AFFINE)
    image_XYZ = ndimage.gaussian_filter(head.images["t2"], 1.5)
    back_XYZ = itk.resample(itk.to_itk(moved(image_XYZ, there), AFFINE), grid, transform)
    inside = head.brain_XYZ
    alike = [np.corrcoef(each_XYZ[inside], image_XYZ[inside])[0, 1] for each_XYZ in (back_XYZ, moved(image_XYZ, there))]
    assert alike[0] > 0.95 > 0.8 > alike[1]


@pytest.mark.usefixtures("extra")
def test_the_number_of_threads_is_put_back() -> None:
    import SimpleITK as sitk  # noqa: N813

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with itk.threads():
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before

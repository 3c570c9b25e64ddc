"""Small components go, large ones stay, and contact at a corner is contact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.postprocess import drop_small_components


@pytest.fixture
def two_blobs() -> npt.NDArray[np.uint8]:
    """Eight voxels of three labels in one corner, two voxels that touch at a corner in the other."""
    label_XYZ = np.zeros((8, 8, 8), np.uint8)
    label_XYZ[:2, :2, :2] = 2
    label_XYZ[0, 0, 0], label_XYZ[1, 1, 1] = 1, 4
    label_XYZ[5, 5, 5] = label_XYZ[6, 6, 6] = 4
    return label_XYZ


def test_only_the_small_component_goes(two_blobs: npt.NDArray[np.uint8]) -> None:
    expected_XYZ = two_blobs.copy()
    expected_XYZ[5, 5, 5] = expected_XYZ[6, 6, 6] = 0
    kept_XYZ = drop_small_components(two_blobs, 3.0, 1.0)
    assert kept_XYZ.dtype == np.uint8
    np.testing.assert_array_equal(kept_XYZ, expected_XYZ)


@pytest.mark.parametrize(
    ("smallest_mm3", "voxel_mm3", "voxels_left"),
    [
        (0.0, 1.0, 10),
        (2.0, 1.0, 10),  # exactly the smallest volume: kept; by faces or edges alone it would be two single voxels
        (2.1, 1.0, 8),
        (4.0, 2.0, 10),
        (4.1, 2.0, 8),
        (8.0, 1.0, 8),  # all labels of the large blob count together: no label alone has 8 voxels
        (8.1, 1.0, 0),
    ],
)
def test_volume_threshold(
    two_blobs: npt.NDArray[np.uint8], smallest_mm3: float, voxel_mm3: float, voxels_left: int
) -> None:
    kept_XYZ = drop_small_components(two_blobs, smallest_mm3, voxel_mm3)
    assert np.count_nonzero(kept_XYZ) == voxels_left


def test_zero_keeps_everything_and_copies(two_blobs: npt.NDArray[np.uint8]) -> None:
    kept_XYZ = drop_small_components(two_blobs, 0.0, 1.0)
    np.testing.assert_array_equal(kept_XYZ, two_blobs)
    assert not np.shares_memory(kept_XYZ, two_blobs)


def test_the_input_is_untouched(two_blobs: npt.NDArray[np.uint8]) -> None:
    before_XYZ = two_blobs.copy()
    drop_small_components(two_blobs, 100.0, 1.0)
    np.testing.assert_array_equal(two_blobs, before_XYZ)


def test_no_tumour_at_all() -> None:
    assert not drop_small_components(np.zeros((4, 4, 4), np.uint8), 10.0, 1.0).any()

"""A whole volume in the order, format and normalisation that an imported network wants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.data.slices import to_volume
from lowmem_brats.data.whole import box_of, normalised, prepare_whole


@pytest.fixture
def images() -> npt.NDArray[np.float32]:
    """Four modalities, one of them 0 where the others are not, and a hole in the middle of all."""
    rng = np.random.default_rng(0)
    images_CXYZ = np.zeros((4, 9, 8, 7), np.float32)
    images_CXYZ[:, 2:8, 1:6, 1:6] = rng.integers(1, 900, (4, 6, 5, 5))
    images_CXYZ[2, 2:4] = 0
    images_CXYZ[:, 4, 3, 3] = 0
    return images_CXYZ


def test_a_volume_keeps_its_shape_and_gets_its_channels_in_order(images: npt.NDArray[np.float32]) -> None:
    stack = prepare_whole(images, "zscore-brain", ("t1ce", "t1", "t2", "flair"))
    assert stack.slices_ZCHW.shape == (7, 4, 8, 9)
    assert stack.slices_ZCHW.dtype == np.float32
    wanted = normalised(images, "zscore-brain")
    np.testing.assert_array_equal(stack.slices_ZCHW[3, 0].T, wanted[1, :, :, 3])
    np.testing.assert_array_equal(stack.slices_ZCHW[3, 1].T, wanted[0, :, :, 3])
    np.testing.assert_array_equal(stack.brain_ZHW.transpose(2, 1, 0), (images != 0).any(axis=0))
    label_ZHW = np.arange(7 * 8 * 9, dtype=np.uint8).reshape(7, 8, 9)
    np.testing.assert_array_equal(to_volume(label_ZHW, stack).transpose(2, 1, 0), label_ZHW)


@pytest.mark.parametrize(("scheme", "counted"), [("zscore-brain", 90), ("zscore-mask", 150), ("zscore-all", 150)])
def test_each_scheme_counts_its_voxels(images: npt.NDArray[np.float32], scheme: str, counted: int) -> None:
    """Of T2, which lacks a third of the brain and the hole: its own voxels, or the filled mask, here a box."""
    scored = normalised(images, scheme)[2]
    if scheme == "zscore-brain":
        values = images[2][images[2] != 0]
        assert not scored[images[2] == 0].any()
    else:
        values = images[2, 2:8, 1:6, 1:6].ravel()
        assert scored[4, 3, 3] == pytest.approx(-values.mean() / values.std(), rel=1e-5)
    assert abs(len(values) - counted) <= 10
    assert scored[6, 3, 2] == pytest.approx((images[2, 6, 3, 2] - values.mean()) / values.std(), rel=1e-5)
    assert not scored[0].any(), "outside the brain nothing changes"


def test_all_voxels_of_the_box_count_or_only_those_of_the_mask() -> None:
    images_CXYZ = np.zeros((4, 5, 5, 5), np.float32)
    images_CXYZ[:, 1, 1, 1], images_CXYZ[:, 3, 3, 3] = 2, 4
    assert normalised(images_CXYZ, "zscore-mask")[0, 1, 1, 1] == pytest.approx(-1)
    assert normalised(images_CXYZ, "zscore-mask")[0, 2, 2, 2] == 0
    values = [2, 4, *[0] * 25]
    assert normalised(images_CXYZ, "zscore-all")[0, 1, 1, 1] == pytest.approx((2 - 6 / 27) / np.std(values))
    assert normalised(images_CXYZ, "zscore-all")[0, 2, 2, 2] == pytest.approx((0 - 6 / 27) / np.std(values))


def test_box_of_a_mask() -> None:
    mask = np.zeros((6, 7, 8), np.bool_)
    mask[2, 3, 4] = mask[4, 3, 7] = True
    assert box_of(mask) == (slice(2, 5), slice(3, 4), slice(4, 8))

"""Z-scores on hand numbers, and the way from a volume to axial slices and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.data.slices import (
    VIEWS,
    SliceStack,
    active_slices,
    cut_label,
    in_volume,
    is_flat,
    prepare,
    slice_sizes,
    to_volume,
    to_voxels,
    views_of,
    with_context,
    zscore_brain,
)

Box = tuple[slice, slice, slice]


def modality(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 1, 1)


# --- z-score ---


def test_zscore_on_hand_numbers() -> None:
    images_CXYZ = np.stack(
        [
            modality(0, 1, 3, 5, 7),  # mean 4, deviation √5 over the four voxels that are not 0
            modality(10, 0, 30, 0, 0),  # its own brain: mean 20, deviation 10
            modality(-2, 0, 0, 2, 0),  # negative intensities are brain too
            modality(0, 0, 6, 0, 0),  # one voxel: no deviation
        ]
    )
    expected_CXYZ = np.stack(
        [
            modality(0, -3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5),
            modality(-1, 0, 1, 0, 0),
            modality(-1, 0, 0, 1, 0),
            modality(0, 0, 0, 0, 0),
        ]
    )
    scored_CXYZ = zscore_brain(images_CXYZ)
    assert scored_CXYZ.dtype == np.float32
    np.testing.assert_allclose(scored_CXYZ, expected_CXYZ, rtol=1e-6)
    assert images_CXYZ[1, 2, 0, 0] == 30  # the input is left alone


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 7.0, 3e4])
def test_a_constant_modality_scores_zero(value: float) -> None:
    images_CXYZ = np.zeros((2, 9, 8, 7), np.float32)
    images_CXYZ[0, 1:8, 1:7, 1:6] = value
    images_CXYZ[1, 2, 2, 2:4] = 1, 3
    scored_CXYZ = zscore_brain(images_CXYZ)
    assert not scored_CXYZ[0].any()
    assert scored_CXYZ[1, 2, 2, 2:4].tolist() == [-1, 1]


def test_zscore_keeps_its_precision_far_from_zero() -> None:
    # In float32 sums the deviation of 1 would drown in a mean of 200 000.
    image = np.full((1, 50, 50, 50), 200_001, np.float32)
    image[:, ::2] += 2
    scored = zscore_brain(image)
    np.testing.assert_allclose(scored[:, ::2], 1, rtol=1e-5)
    np.testing.assert_allclose(scored[:, 1::2], -1, rtol=1e-5)


# --- slices ---


def images_with_brain(shape_XYZ: tuple[int, int, int], box: Box, seed: int = 0) -> npt.NDArray[np.float32]:
    """Two modalities whose brain fills the corners of `box` for sure, and its inside at random."""
    rng = np.random.default_rng(seed)
    images_CXYZ = np.zeros((2, *shape_XYZ), np.float32)
    inside = images_CXYZ[(slice(None), *box)]
    inside[...] = rng.integers(0, 4, inside.shape)
    inside[:, 0, 0, 0], inside[:, -1, -1, -1] = 1, 2
    return images_CXYZ


@st.composite
def cases(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], Box, int]:
    """Images, their brain's bounding box (often at the volume's edge), and a stride."""
    shape_XYZ = draw(st.tuples(*[st.integers(1, 14)] * 3))
    box = []
    for size in shape_XYZ:
        first = draw(st.sampled_from([0, draw(st.integers(0, size - 1))]))
        last = draw(st.sampled_from([size - 1, draw(st.integers(first, size - 1))]))
        box.append(slice(first, last + 1))
    images_CXYZ = images_with_brain(shape_XYZ, (box[0], box[1], box[2]), draw(st.integers(0, 99)))
    return images_CXYZ, (box[0], box[1], box[2]), draw(st.integers(1, 16))


@given(cases())
def test_every_voxel_of_the_brain_is_in_its_place(case: tuple[npt.NDArray[np.float32], Box, int]) -> None:
    images_CXYZ, box, stride = case
    stack = prepare(images_CXYZ, stride)
    depth, channels, height, width = stack.slices_ZCHW.shape
    size_X, size_Y, size_Z = (s.stop - s.start for s in box)
    assert stack.slices_ZCHW.dtype == np.float16
    assert channels == 2
    assert (height % stride, width % stride) == (0, 0)
    assert stack.flat == is_flat(stack.brain_ZHW)
    if stack.flat:
        assert depth == size_Z, "axial slices alone need no others beside them"
    else:
        assert depth % stride == 0
        assert 0 <= depth - size_Z < stride
    assert 0 <= height - size_Y < stride
    assert 0 <= width - size_X < stride
    assert stack.shape_XYZ == images_CXYZ.shape[1:]

    scored_CXYZ = zscore_brain(images_CXYZ).astype(np.float16)
    expected_ZCHW = np.zeros_like(stack.slices_ZCHW)
    z0, y0, x0 = stack.origin_ZHW
    for c, x, y, z in np.argwhere(images_CXYZ):
        expected_ZCHW[z - z0, c, y - y0, x - x0] = scored_CXYZ[c, x, y, z]
    np.testing.assert_allclose(stack.slices_ZCHW, expected_ZCHW, atol=2e-3)  # sums over other arrays: last bits differ
    brain_XYZ = (images_CXYZ != 0).any(axis=0).astype(np.uint8)
    np.testing.assert_array_equal(stack.brain_ZHW, cut_label(brain_XYZ, stack))
    assert stack.brain_ZHW.sum() == brain_XYZ.sum()
    # The brain lies in the middle: as much was added before as after it, but for an odd voxel.
    for added_before, added in (
        (box[2].start - z0, depth - size_Z),
        (box[1].start - y0, height - size_Y),
        (box[0].start - x0, width - size_X),
    ):
        assert added_before == added // 2


@given(cases(), st.integers(0, 99))
def test_labels_go_there_and_back(case: tuple[npt.NDArray[np.float32], Box, int], seed: int) -> None:
    images_CXYZ, box, stride = case
    stack = prepare(images_CXYZ, stride)
    label_XYZ = np.random.default_rng(seed).integers(0, 5, stack.shape_XYZ).astype(np.uint8)

    cut_ZHW = cut_label(label_XYZ, stack)
    depth, _, height, width = stack.slices_ZCHW.shape
    assert (cut_ZHW.shape, cut_ZHW.dtype) == ((depth, height, width), np.uint8)
    back_XYZ = to_volume(cut_ZHW, stack)
    assert (back_XYZ.shape, back_XYZ.dtype) == (label_XYZ.shape, np.uint8)
    np.testing.assert_array_equal(back_XYZ[box], label_XYZ[box])

    # Outside the stack to_volume leaves 0; inside it, beyond the volume, cut_label gives 0.
    covered_XYZ = to_volume(np.ones((depth, height, width), np.uint8), stack)
    np.testing.assert_array_equal(back_XYZ, label_XYZ * covered_XYZ)
    within_ZHW = cut_label(np.ones_like(label_XYZ), stack)
    assert covered_XYZ.sum() == within_ZHW.sum()
    np.testing.assert_array_equal(cut_ZHW * within_ZHW, cut_ZHW)


@given(cases())
def test_a_label_is_cut_as_its_images_are(case: tuple[npt.NDArray[np.float32], Box, int]) -> None:
    images_CXYZ, _, stride = case
    stack = prepare(images_CXYZ, stride)
    marked_XYZ = (zscore_brain(images_CXYZ)[0] != 0).astype(np.uint8)
    np.testing.assert_array_equal(cut_label(marked_XYZ, stack), stack.slices_ZCHW[:, 0] != 0)


def test_the_grown_crop_may_reach_beyond_the_volume_on_both_sides() -> None:
    flat = prepare(images_with_brain((5, 6, 2), np.s_[0:5, 0:6, 0:2]), 16)
    assert (flat.slices_ZCHW.shape, flat.origin_ZHW) == ((2, 2, 16, 16), (0, -5, -5))
    stack = prepare(images_with_brain((5, 4, 3), np.s_[0:5, 0:4, 0:3]), 16)
    assert stack.slices_ZCHW.shape == (16, 2, 16, 16)
    assert stack.origin_ZHW == (-6, -6, -5)
    label_XYZ = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    np.testing.assert_array_equal(to_volume(cut_label(label_XYZ, stack), stack), label_XYZ)


def test_rows_run_to_posterior_and_columns_to_the_left() -> None:
    images_CXYZ = np.zeros((1, 8, 6, 4), np.float32)
    images_CXYZ[0, :, :, 1:3] = 1
    images_CXYZ[0, 7, 1, 2] = 9  # x = 7: far left of the patient; y = 1: anterior; z = 2: the second slice
    stack = prepare(images_CXYZ, 2)
    assert stack.slices_ZCHW.shape == (2, 1, 6, 8)  # Z C H=Y W=X
    assert stack.origin_ZHW == (1, 0, 0)
    assert np.unravel_index(stack.slices_ZCHW.argmax(), stack.slices_ZCHW.shape) == (1, 0, 1, 7)


def test_an_empty_slice_within_the_brain_is_known() -> None:
    images_CXYZ = np.zeros((2, 4, 4, 7), np.float32)
    images_CXYZ[0, 1:3, 1:3, 1] = 5
    images_CXYZ[1, 1:3, 1:3, 3:5] = np.arange(1, 9).reshape(2, 2, 2)  # in the second modality only
    stack = prepare(images_CXYZ, 1)
    assert stack.brain_ZHW.any(axis=(1, 2)).tolist() == [True, False, True, True]
    assert stack.brain_ZHW.sum() == 4 + 8
    assert not stack.slices_ZCHW[1].any()


def test_views_swap_the_slices_with_rows_or_columns() -> None:
    slices_ZCHW = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    axial, coronal, sagittal = views_of(slices_ZCHW, 3)
    assert (axial.shape, coronal.shape, sagittal.shape) == ((2, 3, 4, 5), (4, 3, 2, 5), (5, 3, 4, 2))
    for z, c, h, w in np.ndindex(2, 3, 4, 5):
        assert axial[z, c, h, w] == coronal[h, c, z, w] == sagittal[w, c, h, z] == slices_ZCHW[z, c, h, w]
    masks_KZHW = np.zeros((2, 3, 4, 5), np.bool_)
    views_of(masks_KZHW, 3, axis=1)[2][1, 4, 3, 2] = True
    assert np.argwhere(masks_KZHW).tolist() == [[1, 2, 3, 4]], "not a copy"
    assert [len(views_of(slices_ZCHW, views)) for views in (1, 2, 3)] == [1, 2, 3]


def test_slices_of_a_view_are_slices_of_the_volume() -> None:
    """The stack begins at z 2 and, by padding, at y -1; each sagittal slice of the volume is seen twice."""
    stack = SliceStack(
        np.zeros((4, 4, 8, 8), np.float16), np.zeros((4, 8, 8), np.bool_), False, (2, -1, 3), (6, 7, 9), (1, 2)
    )
    axial, coronal, sagittal = VIEWS
    assert in_volume(np.array([1, 1, 0, 1], np.bool_), axial, stack) == [[2, 4], [5, 6]]
    assert in_volume(np.ones(8, np.bool_), coronal, stack) == [[0, 7]], "not the padding on either side"
    assert in_volume(np.array([0, 1, 0, 0, 1, 0, 0, 1], np.bool_), sagittal, stack) == [[3, 4], [5, 6]]
    assert in_volume(np.zeros(4, np.bool_), axial, stack) == []


def test_neighbours_are_further_channels() -> None:
    """Slices 1 to 5 of two channels, ±."""
    values = np.arange(1, 6, dtype=np.float16)
    stack_NCHW = np.broadcast_to(np.stack([values, -values], axis=1)[..., None, None], (5, 2, 3, 4))

    def seen(number: int, context: int, flat: bool = False) -> list[float]:
        chosen_nCHW = with_context(stack_NCHW, np.array([3, number]), context, flat)
        assert chosen_nCHW.shape == (2, 2 * (1 + 2 * context), 3, 4)
        np.testing.assert_array_equal(chosen_nCHW, np.broadcast_to(chosen_nCHW[:, :, :1, :1], chosen_nCHW.shape))
        return list(chosen_nCHW[1, :, 0, 0])

    assert seen(2, 0) == [3, -3]
    assert seen(2, 1) == [3, -3, 2, -2, 4, -4]
    assert seen(2, 2) == [3, -3, 2, -2, 4, -4, 1, -1, 5, -5]
    assert seen(0, 2) == [1, -1, 0, 0, 2, -2, 0, 0, 3, -3], "nothing lies before the first slice"
    assert seen(4, 1) == [5, -5, 4, -4, 0, 0]
    assert seen(2, 2, flat=True) == [3, -3] + [0] * 8


@pytest.mark.parametrize(
    ("size_ZHW", "flat"), [((6, 8, 12), False), ((5, 8, 12), True), ((1, 8, 8), True), ((12, 3, 3), False)]
)
def test_a_brain_twice_as_long_as_high_is_flat(size_ZHW: tuple[int, int, int], flat: bool) -> None:
    brain_ZHW = np.zeros((20, 20, 20), np.bool_)
    brain_ZHW[tuple(slice(2, 2 + size) for size in size_ZHW)] = True
    assert is_flat(brain_ZHW) == flat


def test_extreme_intensities_stay_finite_in_half_precision() -> None:
    images_CXYZ = np.ones((1, 40, 40, 40), np.float32)
    images_CXYZ[0, 20, 20, 20] = 1e9  # one hot voxel among 64 000: its z-score is √64 000
    slices_ZCHW = prepare(images_CXYZ, 8).slices_ZCHW
    assert np.isfinite(slices_ZCHW).all()
    assert slices_ZCHW.max() == pytest.approx(64_000**0.5, rel=1e-3)


def test_labels_of_a_hand_made_stack() -> None:
    stack = SliceStack(np.zeros((1, 1, 2, 3), np.float16), np.ones((1, 2, 3), np.bool_), True, (1, -1, 1), (3, 2, 3))
    label_ZHW = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    label_XYZ = to_volume(label_ZHW, stack)
    expected_XYZ = np.zeros((3, 2, 3), np.uint8)
    expected_XYZ[1:3, 0, 1] = 4, 5  # row −1 and column 3 lie outside the volume
    np.testing.assert_array_equal(label_XYZ, expected_XYZ)
    np.testing.assert_array_equal(cut_label(label_XYZ, stack), [[[0, 0, 0], [4, 5, 0]]])


# --- thick sagittal or coronal slices ---


def test_thick_slices_are_interpolated_between_their_centres_over_brain_alone() -> None:
    images_CXYZ = np.zeros((1, 6, 4, 4), np.float32)
    images_CXYZ[0, 1:5, :, :] = np.array([1, 2, 3, 6], np.float32)[:, None, None]  # four slices along X, 0 beside them
    stack = prepare(images_CXYZ, 1, (3.0, 1.0, 1.0))
    assert stack.stretch_HW == (1, 3)
    assert stack.notes == ["thick sagittal slices are interpolated to 3 times as many for the networks"]
    mean, deviation = 3.0, 3.5**0.5
    expected_W = np.array([1, 1, 4 / 3, 5 / 3, 2, 7 / 3, 8 / 3, 3, 4, 5, 6, 6])
    np.testing.assert_allclose(stack.slices_ZCHW[0, 0, 0], (expected_W - mean) / deviation, atol=1e-3)
    assert stack.brain_ZHW.all()


@pytest.mark.parametrize("factor", [2, 3])
def test_interpolation_ends_halfway_between_brain_and_background(factor: int) -> None:
    images_CXYZ = np.zeros((1, 8, 8, 8), np.float32)
    images_CXYZ[0, 2:6, 2:6, 2:6] = 5
    images_CXYZ[0, 3, 2:6, 2:6] = 7
    stack = prepare(images_CXYZ, 8, (1.0, float(factor), 1.0))
    assert stack.stretch_HW == (factor, 1)
    assert stack.brain_ZHW.any(axis=(0, 2)).tolist() == [2 * factor <= row < 6 * factor for row in range(8 * factor)]
    seen = stack.slices_ZCHW[:, 0][stack.brain_ZHW].astype(np.float64)
    assert sorted(set(seen.round(2))) == [-0.58, 1.73], "values of brain, not dimmed by the background beside it"


@pytest.mark.parametrize(
    ("spacing_mm", "stretch_HW"),
    [
        ((1, 1, 1), (1, 1)),
        ((0.5, 0.5, 0.5), (1, 1)),
        ((0.9, 0.9, 5.5), (1, 1)),  # thick axial slices are seen as they are
        ((5.5, 0.9, 0.9), (1, 6)),
        ((1, 4, 1), (4, 1)),
        ((1.4, 1, 1), (1, 1)),
        ((1.6, 1, 1.2), (1, 2)),
    ],
)
def test_which_voxels_are_interpolated(spacing_mm: tuple[float, float, float], stretch_HW: tuple[int, int]) -> None:
    assert prepare(np.ones((1, 4, 4, 4), np.float32), 2, spacing_mm).stretch_HW == stretch_HW


@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_labels_of_thick_slices_go_in_and_out(
    case: tuple[npt.NDArray[np.float32], Box, int], rows: int, columns: int
) -> None:
    images_CXYZ, _, stride = case
    stack = prepare(images_CXYZ, stride, (float(columns), float(rows), 1.0))
    factors = rows if rows >= 2 else 1, columns if columns >= 2 else 1
    assert stack.stretch_HW == tuple(round(f / min(rows, columns, 1)) for f in factors)
    label_XYZ = np.where((images_CXYZ != 0).any(axis=0), 2, 0).astype(np.uint8)
    cut_ZHW = cut_label(label_XYZ, stack)
    assert cut_ZHW.shape == stack.brain_ZHW.shape
    back_KZHW = to_voxels(cut_ZHW[None].astype(np.float32), stack)
    np.testing.assert_array_equal(to_volume(back_KZHW[0].astype(np.uint8), stack), label_XYZ)


def test_logits_of_one_voxel_are_averaged() -> None:
    stack = prepare(np.ones((1, 2, 2, 2), np.float32), 2, (2.0, 1.0, 1.0))
    sum_KZHW = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
    assert to_voxels(sum_KZHW, stack).tolist() == [[[[0.5, 2.5], [4.5, 6.5]], [[8.5, 10.5], [12.5, 14.5]]]]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_sizes_of_slices_are_those_of_the_views(views: int) -> None:
    stack_ZHW = np.zeros((5, 7, 11))
    assert slice_sizes((5, 7, 11), views) == [seen.shape[1:] for seen in views_of(stack_ZHW, views)]
    assert slice_sizes((5, 7, 11), views) == [(7, 11), (5, 11), (7, 5)][:views]


def test_the_sagittal_view_alone_has_no_left_and_right() -> None:
    assert {view.name: view.symmetric for view in VIEWS} == {"axial": True, "coronal": True, "sagittal": False}


def test_a_region_s_network_sees_slices_with_brain_and_parent() -> None:
    (active_N,) = active_slices([np.array([True, True, False])], [np.array([True, False, True])])
    assert active_N.tolist() == [True, False, False]

"""A donor's lesion lies where it lay, as bright as its new surroundings, with its own label and nobody's background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.slice_cache import CachedCase, store_case
from lowmem_brats.transplant import MARGIN, RAMP, draw_donors, transplant

SIDE = 48
LESION = np.s_[20:26, 22:28]


def square(value: float, lesion: float, depth: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """One slice of brain of one value in a frame of background, and a lesion's value and depth in the middle."""
    slices_1CHW = torch.zeros(1, 4, SIDE, SIDE)
    slices_1CHW[:, :, 4:44, 4:44] = value
    depth_11HW = torch.zeros(1, 1, SIDE, SIDE)
    if depth:
        slices_1CHW[(..., *LESION)], depth_11HW[(..., *LESION)] = lesion, depth
    return slices_1CHW, depth_11HW


def test_the_lesion_is_moved_and_shifted_to_its_surroundings() -> None:
    """From surroundings of 1 into surroundings of −2: a lesion of 5 becomes 2, and no seam is seen."""
    slices_1CHW, depth_11HW = square(-2.0, 0.0, depth=0)
    mixed_1CHW, mixed_11HW = transplant(slices_1CHW, depth_11HW, *square(1.0, 5.0))
    expected_1CHW, expected_11HW = square(-2.0, 2.0)
    torch.testing.assert_close(mixed_1CHW, expected_1CHW)
    assert torch.equal(mixed_11HW, expected_11HW)
    assert not depth_11HW.any(), "new tensors"


def test_what_surrounds_a_lesion_moves_with_it() -> None:
    """Within the margin less the ramp all comes from the donor, beyond both nothing, and between them more and less."""
    slices_1CHW, depth_11HW = square(1.0, 0.0, depth=0)
    donor_1CHW, donor_11HW = square(1.0, 1.0)
    columns = torch.arange(SIDE) % 2 * 0.5  # the donor's texture: columns of ± a quarter
    donor_1CHW += (donor_1CHW != 0) * (columns - 0.25)
    mixed_1CHW, _ = transplant(slices_1CHW, depth_11HW, donor_1CHW, donor_11HW)
    contrast = (mixed_1CHW[0, 0, 23, 1:] - mixed_1CHW[0, 0, 23, :-1]).abs()
    last = 27 + MARGIN  # the last carved column
    assert contrast[28 : last - RAMP].allclose(torch.tensor(0.5))
    assert (contrast[last - RAMP + 1 : last + RAMP - 1] < 0.5).all()
    assert not contrast[last + RAMP + 1 : 43].any()


def test_what_it_covers_is_gone_and_the_rest_stays() -> None:
    donor_1CHW, donor_11HW = square(1.0, 5.0, depth=1)
    slices_1CHW, depth_11HW = square(1.0, 0.0, depth=0)
    depth_11HW[..., 23, 24] = 3  # under the lesion
    depth_11HW[..., 23, 30] = 3  # under the tissue that moves with it
    depth_11HW[..., 40, 40] = 3  # far away
    _, mixed_11HW = transplant(slices_1CHW, depth_11HW, donor_1CHW, donor_11HW)
    expected_11HW = donor_11HW.clone()
    expected_11HW[..., 40, 40] = 3
    assert torch.equal(mixed_11HW, expected_11HW)


def test_tumour_is_no_measure_of_brightness() -> None:
    """A recipient's own lesion beside the donor's is left out where brightness is compared."""
    slices_1CHW, depth_11HW = square(-2.0, 0.0, depth=0)
    slices_1CHW[..., 28:32, 10:40], depth_11HW[..., 28:32, 10:40] = 100.0, 1
    mixed_1CHW, _ = transplant(slices_1CHW, depth_11HW, *square(1.0, 5.0))
    assert mixed_1CHW[(0, 0, *LESION)].eq(2.0).all()


def test_no_surroundings_in_common_shift_nothing() -> None:
    slices_1CHW, depth_11HW = square(-2.0, 0.0, depth=0)
    only_lesion = torch.zeros(SIDE, SIDE)
    only_lesion[LESION] = 1
    mixed_1CHW, _ = transplant(slices_1CHW * only_lesion, depth_11HW, *square(1.0, 5.0))
    torch.testing.assert_close(mixed_1CHW, 5 * only_lesion.expand(1, 4, SIDE, SIDE))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_background_stays_background_in_every_channel(seed: int) -> None:
    """Noise for brains of any outline, neighbours among the channels: zero stays zero and nothing else becomes it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(n: int, channels: int) -> torch.Tensor:
        return torch.randn(n, channels, 24, 20, generator=generator)

    slices_NCHW, donor_NCHW = (noise(3, 12) * (noise(3, 12) > -0.5) for _ in range(2))
    depth_N1HW, donor_N1HW = (noise(3, 1).mul(2).clamp(0, 3).round() for _ in range(2))
    mixed_NCHW, mixed_N1HW = transplant(slices_NCHW, depth_N1HW, donor_NCHW, donor_N1HW)
    assert torch.equal(mixed_NCHW != 0, slices_NCHW != 0)
    assert mixed_NCHW.isfinite().all()
    assert ((mixed_N1HW == depth_N1HW) | (mixed_N1HW == donor_N1HW)).all()
    for n in range(3):  # each slice is on its own
        alone = transplant(*(each[n : n + 1] for each in (slices_NCHW, depth_N1HW, donor_NCHW, donor_N1HW)))
        torch.testing.assert_close(alone[0][0], mixed_NCHW[n])
        assert torch.equal(alone[1][0], mixed_N1HW[n])


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    """Volumes of 10, 20 and 10 slices with lesions in the first half, in slice 12 and nowhere, and a flat one."""
    made = []
    for number, (count, lesions) in enumerate(((10, range(5)), (20, [12]), (10, []), (2, [0, 1]))):
        depth_ZHW = np.zeros((count, 8, 8), np.uint8)
        depth_ZHW[list(lesions), 3:5, 3:5] = 3
        path = tmp_path / f"{number}.json"
        made.append(store_case(path, f"{number}", np.ones((count, 4, 8, 8), np.float16), depth_ZHW))
    return made


def test_donors_have_a_lesion_as_far_along(cases: list[CachedCase]) -> None:
    def donors(*row: int) -> set[tuple[int, ...]]:
        drawn = [draw_donors(np.random.default_rng(seed), cases, np.array([row]), 1.0) for seed in range(20)]
        assert all(taken.tolist() == [0] * len(rows) for taken, rows in drawn)
        return {tuple(row) for _, rows in drawn for row in rows.tolist()}

    assert donors(2, 0, 4) == {(0, 0, 4)}
    assert donors(2, 0, 6) == {(1, 0, 12)}
    assert donors(1, 0, 9) == {(0, 0, 4)}, "9 of 20 lies at 4 of 10"
    assert donors(1, 0, 10) == set()
    assert donors(0, 0, 4) == set(), "not its own"
    assert donors(2, 1, 3) == {(0, 1, 3), (1, 1, 3)}, "coronal slices have coronal donors"
    assert donors(3, 0, 0) == set(), "where a single slice lies is not known"


def test_volumes_of_one_length_meet_slice_by_slice(tmp_path: Path) -> None:
    """Also where number / length · length is a little less than the number, as for 29 of 100."""
    depth_ZHW = np.ones((100, 8, 8), np.uint8)
    slices_ZCHW = np.ones((100, 4, 8, 8), np.float16)
    pair = [store_case(tmp_path / f"{n}.json", f"{n}", slices_ZCHW, depth_ZHW) for n in range(2)]
    rows = np.array([[0, 0, z] for z in range(100)])
    taken, donors = draw_donors(np.random.default_rng(0), pair, rows, 1.0)
    assert taken.tolist() == list(range(100))
    assert donors.tolist() == [[1, 0, z] for z in range(100)]


def test_the_share_of_slices_that_get_a_lesion(cases: list[CachedCase]) -> None:
    rows = np.array([[2, 0, 4]] * 2000)
    for share in (0.0, 0.3, 1.0):
        taken, donors = draw_donors(np.random.default_rng(0), cases, rows, share)
        assert len(taken) / 2000 == pytest.approx(share, abs=0.04)
        assert donors.shape == (len(taken), 3)
        assert len(set(taken.tolist())) == len(taken)

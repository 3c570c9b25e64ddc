"""The brain in a T1 image: who finds it, growing it, and what is no brain."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_heads import AFFINE, Head

from lowmem_brats.data.geometry import Volume
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import brain_mask
from lowmem_brats.prepare.brain_mask import find_brain, grown, overlap


class Bright(torch.nn.Module):
    """Takes for brain what is brighter than the mean of what it sees."""

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        likely = (seen > 0.449).float()
        return torch.cat([1 - likely, likely], dim=1)


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network that is easily understood in place of deepbet's two; the larger size is 64 for speed."""
    path = tmp_path / "bright.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Bright(), torch.zeros(1, 1, 8, 8, 8)).save(path)
    monkeypatch.setattr(brain_mask, "data_file", lambda module, name: path)
    monkeypatch.setattr(brain_mask, "BOX_SIDE", 32)
    monkeypatch.setattr(brain_mask, "SIDE", 64)


def volume(data_XYZ: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(data_XYZ, affine, None, np.zeros((3, 2)))


@pytest.mark.usefixtures("bright")
def test_the_largest_piece_is_the_brain_and_its_holes_are_filled() -> None:
    noise_XYZ = np.abs(np.random.default_rng(0).normal(0, 1, (60, 60, 60))).astype(np.float32)
    image_XYZ, true_XYZ = noise_XYZ.copy(), np.zeros((60, 60, 60), bool)
    true_XYZ[10:40, 14:44, 20:50] = True
    image_XYZ[true_XYZ] += 100
    image_XYZ[24:28, 26:30, 32:36] = 0  # a dark cyst
    found = find_brain(volume(image_XYZ))
    assert found.made_by == "deepbet"
    assert overlap(found.mask_XYZ, true_XYZ) > 0.9
    assert found.mask_XYZ[26, 28, 34]
    assert found.pieces == 1


def test_pieces_are_counted_without_specks_and_the_largest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    likely_XYZ = np.zeros((40, 40, 40), np.float32)
    likely_XYZ[5:20], likely_XYZ[25:30, :20, :20], likely_XYZ[35, 35, 35] = 1, 1, 1
    monkeypatch.setattr(brain_mask, "_predict", lambda image_XYZ: likely_XYZ[::-1, ::-1])
    noise_XYZ = np.abs(np.random.default_rng(0).normal(0, 1, (40, 40, 40))).astype(np.float32)
    found = find_brain(volume(noise_XYZ))
    assert found.pieces == 2
    assert found.mask_XYZ.sum() == 15 * 40 * 40


@pytest.mark.usefixtures("bright")
def test_nothing_that_looks_like_a_brain() -> None:
    image_XYZ = np.zeros((40, 40, 40), np.float32)
    image_XYZ[3, 3, 3] = image_XYZ[30, 30, 30] = 1
    with pytest.raises(InputError, match="no brain in the image"):
        find_brain(volume(image_XYZ))


def test_a_stripped_image_keeps_its_own_edge(head: Head) -> None:
    image_XYZ = np.where(head.brain_XYZ, np.maximum(head.images["t1ce"], 1), 0).astype(np.float32)
    found = find_brain(volume(image_XYZ))
    assert (found.made_by, found.pieces) == ("skull-stripped before", 1)
    assert np.array_equal(found.mask_XYZ, head.brain_XYZ)
    assert found.millilitres(volume(image_XYZ)) == pytest.approx(head.brain_XYZ.sum() * 4.0**3 / 1000)


def test_a_mask_grows_by_a_voxel_but_not_along_thick_slices() -> None:
    mask_XYZ = np.zeros((5, 5, 5), bool)
    mask_XYZ[2, 2, 2] = True
    thin, thick = np.diag([-1.0, -1, 1, 1]), np.diag([-1.0, -1, 5, 1])
    assert grown(mask_XYZ, volume(mask_XYZ, thin)).sum() == 7
    assert grown(mask_XYZ, volume(mask_XYZ, thick)).sum() == 5


def test_overlap_is_dice() -> None:
    first, second = np.array([True, True, False]), np.array([True, False, False])
    assert overlap(first, second) == pytest.approx(2 / 3)
    assert overlap(~first & first, ~first & first) == 0

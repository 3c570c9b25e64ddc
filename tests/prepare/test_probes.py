"""What a place aside, a rotation and a mirror image say of a registration, and what a bias field does not hide."""

from __future__ import annotations

import numpy as np
import pytest
from raw_heads import SPACING_MM, Head

from lowmem_brats.prepare.gate import LEAST_OVER_PROBES
from lowmem_brats.prepare.lay import kept
from lowmem_brats.prepare.probes import over_probes, without_bias

MM = (SPACING_MM,) * 3


@pytest.fixture(scope="module")
def pair(head: Head) -> tuple[np.ndarray, np.ndarray]:
    return kept(head.images["t1ce"], head.brain_XYZ), kept(head.images["flair"], head.brain_XYZ)


def test_images_that_lie_on_each_other_beat_every_probe(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert over_probes(*pair, MM) > 1.5


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_and_a_mirror_image_are_given_away(pair: tuple[np.ndarray, np.ndarray], axis: int) -> None:
    fixed_XYZ, moving_XYZ = pair
    assert over_probes(fixed_XYZ, np.roll(moving_XYZ, 2, axis), MM) < LEAST_OVER_PROBES
    assert over_probes(fixed_XYZ, np.flip(moving_XYZ, axis), MM) < LEAST_OVER_PROBES


def test_a_bias_field_hides_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in pair[0].shape), indexing="ij")
    biased = [(image * field).astype(np.float32) for image, field in zip(pair, (1.6**x, 1.6**y), strict=True)]
    assert over_probes(*biased, MM) > 0.8 * over_probes(*pair, MM)


def test_a_constant_image_becomes_1_in_the_brain_and_stays_0_outside() -> None:
    image_XYZ = np.zeros((20, 20, 20), np.float32)
    image_XYZ[5:15, 5:15, 5:15] = 700
    flat_XYZ = without_bias(image_XYZ, np.array(MM))
    assert flat_XYZ[image_XYZ > 0] == pytest.approx(1, abs=1e-3)
    assert not flat_XYZ[image_XYZ == 0].any()


def test_without_any_brain_it_is_0() -> None:
    empty = np.zeros((8, 8, 8), np.float32)
    assert over_probes(empty, empty + 1, MM) == 0

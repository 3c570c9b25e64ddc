"""What the gate refuses; its lines were chosen on real scans, so the figures here are those scans'."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_brats.prepare.gate import Measures, judge_brain, judge_modality, judge_signal, remarks
from lowmem_brats.prepare.lay import dark_share, kept

GOOD = Measures(8.9, 3.3, 1.9, 1.0)


def changed(**fields: object) -> Measures:
    return Measures(**{**GOOD.__dict__, **fields})  # type: ignore[arg-type]


def test_a_registration_of_a_real_study_passes() -> None:
    assert judge_modality("t1", GOOD) == []
    assert remarks("t1", GOOD) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rotation_degrees": 26.0}, "t2 had to be turned by 26° and moved by 3 mm"),
        ({"shift_mm": 41.0}, "moved by 41 mm to lie on T1ce"),
        ({"over_probes": 1.1}, "t2 does not lie on T1ce: they share 1.10 times"),
        ({"covered": 0.5}, "t2 shows 50% of the brain only"),
    ],
)
def test_what_is_refused_and_why(fields: dict[str, object], told: str) -> None:
    problems = judge_modality("t2", changed(**fields))
    assert len(problems) == 1
    assert told in problems[0]


def test_a_field_of_view_that_misses_a_little_is_told() -> None:
    assert remarks("flair", changed(covered=0.9)) == ["flair shows 90% of the brain"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((1500.0, 1, 0.97), []),
        ((1500.0, 1, None), []),
        ((850.0, 1, 0.97), ["the brain mask has 850 mL"]),
        ((2000.0, 1, 0.97), ["the brain mask has 2000 mL"]),
        ((1500.0, 2, 0.97), ["in 2 pieces"]),
        ((1500.0, 1, 0.8), ["overlap (Dice) of 0.80 only"]),
    ],
)
def test_brain_masks(given: tuple[float, int, float | None], told: list[str]) -> None:
    problems = judge_brain(*given)
    assert len(problems) == len(told)
    assert all(text in problem for text, problem in zip(told, problems, strict=True))


@pytest.mark.parametrize(("mean", "told"), [(0.0, "50%"), (-3.0, "100%"), (2.0, None), (500.0, None)])
def test_an_image_whose_mean_was_subtracted_is_refused(mean: float, told: str | None) -> None:
    """Of a z-scored image half of the brain is below 0, and would be one grey."""
    brain_XYZ = np.zeros((30, 30, 30), np.bool_)
    brain_XYZ[5:25, 5:25, 5:25] = True
    rng = np.random.default_rng(0)
    image_XYZ = np.where(brain_XYZ, rng.normal(mean, 1, brain_XYZ.shape), 0).astype(np.float32)
    problems = judge_signal("t2", dark_share(kept(image_XYZ, brain_XYZ)))
    assert [text.split(": ")[0] for text in problems] == ([f"t2 is 0 or less in {told} of the brain"] if told else [])

"""Judge whether a case was prepared well enough to be segmented: it refuses rather than guesses.

Every line was chosen on real scans, registered, unregistered and deliberately broken (docs/prepare.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_brats.prepare.probes import ASIDE_MM, TURNED_DEGREES

BRAIN_ML = (900, 1950)
"""84 BraTS cases have 1100 to 1910."""
LEAST_MASK_OVERLAP = 0.9
"""Dice of the brain found in T1, laid on T1ce, and of the brain found in T1ce."""
LEAST_OVER_PROBES = 1.25
"""Of `probes.over_probes`: 21 good registrations have 1.44 or more, 126 broken ones 1.11 or less."""
MOST_ROTATION_DEGREES, MOST_SHIFT_MM = 25.0, 40.0
MOST_DARK = 0.25
"""Share of the brain without any signal. Where the mean was subtracted from an image, half of the brain is below 0."""
LEAST_COVERED, WHOLE = 0.6, 0.97
"""Share of the brain that a modality's field of view must hold, and from which nothing is said."""


@dataclass(frozen=True)
class Measures:
    """What is known of one modality laid on T1ce."""

    rotation_degrees: float
    shift_mm: float
    over_probes: float
    """As `probes.over_probes`."""
    covered: float
    """Share of the brain inside the modality's field of view."""


def judge_modality(modality: str, found: Measures) -> list[str]:
    """What is wrong with a modality's registration; empty if nothing is."""
    problems = []
    if found.rotation_degrees > MOST_ROTATION_DEGREES or found.shift_mm > MOST_SHIFT_MM:
        problems.append(
            f"{modality} had to be turned by {found.rotation_degrees:.0f}° and moved by {found.shift_mm:.0f} mm to lie "
            f"on T1ce; expected at most {MOST_ROTATION_DEGREES:.0f}° and {MOST_SHIFT_MM:.0f} mm"
        )
    if found.over_probes < LEAST_OVER_PROBES:
        aside = f"{ASIDE_MM:.0f} mm aside, turned by {TURNED_DEGREES:.0f}° or mirrored"
        problems.append(
            f"{modality} does not lie on T1ce: they share {found.over_probes:.2f} times the information that they "
            f"would share {aside}; registered images have at least {LEAST_OVER_PROBES}"
        )
    if found.covered < LEAST_COVERED:
        problems.append(f"{modality} shows {found.covered:.0%} of the brain only")
    return problems


def judge_signal(modality: str, dark_share: float) -> list[str]:
    """What is wrong with a modality's intensities; `dark_share`: of the brain, as `lay.dark_share`."""
    if dark_share <= MOST_DARK:
        return []
    found = f"{modality} is 0 or less in {dark_share:.0%} of the brain"
    return [f"{found}: expected intensities as the scanner wrote them, not normalised ones"]


def judge_brain(millilitres: float, pieces: int, overlap_t1: float | None) -> list[str]:
    """What is wrong with the brain mask; `overlap_t1`: Dice with T1's, None where there is no T1."""
    problems = []
    if not BRAIN_ML[0] <= millilitres <= BRAIN_ML[1]:
        problems.append(f"the brain mask has {millilitres:.0f} mL, and a brain has {BRAIN_ML[0]} to {BRAIN_ML[1]} mL")
    if pieces > 1:
        problems.append(f"the brain mask is in {pieces} pieces")
    if overlap_t1 is not None and overlap_t1 < LEAST_MASK_OVERLAP:
        problems.append(
            f"the brains found in T1ce and in T1 have an overlap (Dice) of {overlap_t1:.2f} only, expected "
            f"{LEAST_MASK_OVERLAP} or more: one of the masks or the registration is wrong"
        )
    return problems


def remarks(modality: str, found: Measures) -> list[str]:
    """What a user should know although the case is not refused for it."""
    return [f"{modality} shows {found.covered:.0%} of the brain"] if LEAST_COVERED <= found.covered < WHOLE else []

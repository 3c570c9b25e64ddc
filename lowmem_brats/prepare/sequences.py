"""Tell what an MR series shows by how it was acquired: T1, T1ce, T2, FLAIR, or nothing that is wanted.

Names of series lie (`T1 FLAIR` is a T1 image), so the times decide; a name only tells what no time can: contrast agent,
and kinds of series that are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST_SLICES = 10
"""Fewer are a localizer."""
SUPPRESSES_WATER_MS, LONG_ECHO_MS, T2_ECHO_MS, LONG_REPETITION_MS, SHORT_ECHO_MS = 1500, 70, 60, 2100, 30
FINER = 1.2
"""Of two series of one kind the one with voxels this many times smaller is taken; else it cannot be told."""

_OTHER = {
    "diffusion": "dwi dti adc trace diff diffusion ep2d b1000 fa tensor isodwi epi",
    "perfusion or time series": "perf perfusion dsc dce asl pwi rcbf rcbv bold fmri dynamic mtt ttp",
    "vessels": "tof angio mra mrv venogram mip",
    "susceptibility": "swi swan t2star t2s hemo qsm phase pha fieldmap",
    "localizer": "localizer localiser loc scout survey aahead calibration calib cal 3plane",
    "spectroscopy": "mrs spectro csi svs press",
    "double inversion": "dir",
    "derived": "derived subtraction sub screensave screen report projection smartbrain",
}
_AGENT = "gd gad gado gadolinium post postcontrast postgad postgd contrast ce km c+ +c"
_WITHOUT = {"no", "without", "wo", "ohne", "non"}
_NATIVE = "pre precontrast native nativ noncontrast nongad unenhanced"


@dataclass(frozen=True)
class Series:
    """What is known of a series."""

    number: int
    description: str
    """As the scanner's operator wrote it; may hold anything, so it is shown but not stored."""
    slices: int
    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    agent: bool = False
    """Whether the header names a contrast agent."""
    derived: bool = False
    diffusion: bool = False
    voxel_mm3: float = 1.0
    uid: str = ""
    """Tells it from a series with the same number of another examination; not shown."""
    problem: str = ""
    """Why it cannot be used, such as a missing slice; empty if it can."""

    @property
    def named(self) -> str:
        """For messages."""
        return f"series {self.number} ({self.description or 'no description'})"


@dataclass(frozen=True)
class Guess:
    """What a series is taken for."""

    kind: str | None
    """A modality; None: not wanted."""
    reason: str
    """Holds times and known words only, nothing of the header's free text."""


def guess(series: Series) -> Guess:
    """Tell what a series shows, and by what."""
    words = _words(series.description)
    for what, known in _OTHER.items():
        if said := words & set(known.split()):
            return Guess(None, f"{what} ({', '.join(sorted(said))} in its description)")
    if series.slices < FEWEST_SLICES:
        return Guess(None, f"{series.slices} slices: a localizer")
    if series.diffusion:
        return Guess(None, "diffusion")
    if series.derived:
        return Guess(None, "derived from other series")
    echo, repetition, inversion = series.echo_ms, series.repetition_ms, series.inversion_ms or 0.0
    if not echo:
        return Guess(None, "no echo time in its header")
    if inversion > SUPPRESSES_WATER_MS and echo > LONG_ECHO_MS:
        return Guess("flair", f"TI {inversion:g} ms, TE {echo:g} ms")
    if echo > T2_ECHO_MS and not inversion and repetition and repetition > LONG_REPETITION_MS:
        return Guess("t2", f"TE {echo:g} ms, TR {repetition:g} ms")
    if echo < SHORT_ECHO_MS and not inversion and (repetition or 0) > LONG_REPETITION_MS:
        return Guess(None, f"TE {echo:g} ms, TR {repetition:g} ms, no TI: proton density")
    if echo < SHORT_ECHO_MS:
        return _with_agent(series, words, f"TE {echo:g} ms")
    shown = f"TE {echo:g} ms, TR {repetition or 0:g} ms"
    return Guess(None, f"{shown}, TI {inversion:g} ms: neither T1, T2 nor FLAIR")


def _with_agent(series: Series, words: set[str], times: str) -> Guess:
    """T1 or T1ce."""
    native, said = words & set(_NATIVE.split()), words & set(_AGENT.split())
    if native or (said and words & _WITHOUT):
        return Guess("t1", f"{times}, '{sorted(native or words & _WITHOUT)[0]}' in its description")
    if series.agent:
        return Guess("t1ce", f"{times}, a contrast agent in its header")
    if said:
        return Guess("t1ce", f"{times}, '{sorted(said)[0]}' in its description")
    return Guess("t1", f"{times}, no contrast agent")


def _words(description: str) -> set[str]:
    """The words of a description in small letters, `T1+C` and `T2*` among them as `+c` and `t2star`."""
    text = (
        description.lower()
        .replace("t2*", " t2star ")
        .replace("w/o", " without ")
        .replace("+c", " +c ")
        .replace("c+", " c+ ")
    )
    return {word for word in re.split(r"[^a-z0-9+]+", re.sub(r"(?<=[a-z0-9])\+(?!c)", " ", text)) if word}


def choose(candidates: Sequence[Series]) -> Series | None:
    """The one of several series of a kind with clearly finer voxels; None where two are as good. At least one given."""
    first, *others = sorted(candidates, key=lambda series: series.voxel_mm3)
    return None if others and others[0].voxel_mm3 < FINER * first.voxel_mm3 else first

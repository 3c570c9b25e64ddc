"""Which series is which, by its times and a few words."""

from __future__ import annotations

import pytest

from lowmem_brats.prepare.sequences import Series, choose, guess


def series(description: str = "", echo: float | None = 12, repetition: float = 600, **more: object) -> Series:
    return Series(
        **{"number": 1, "slices": 24, "repetition_ms": repetition, "echo_ms": echo, **more}, description=description
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (series("AX T1"), "t1"),
        (series("AX T1 FLAIR", echo=10, repetition=2200, inversion_ms=860), "t1"),
        (series("sag MPRAGE", echo=3, repetition=2300, inversion_ms=900), "t1"),
        (series("AX T1", agent=True), "t1ce"),
        (series("AX T1 +C"), "t1ce"),
        (series("T1+C"), "t1ce"),
        (series("t1_post_gad"), "t1ce"),
        (series("T1 with contrast"), "t1ce"),
        (series("T1 without contrast"), "t1"),
        (series("T1 w/o GAD"), "t1"),
        (series("AX T1 PRE", agent=True), "t1"),
        (series("T2", echo=95, repetition=4000), "t2"),
        (series("AX FLAIR", echo=110, repetition=9000, inversion_ms=2500), "flair"),
        (series("T2 DARK FLUID", echo=110, repetition=9000, inversion_ms=2500), "flair"),
        (series("called T2, but is T1"), "t1"),
    ],
)
def test_what_a_series_shows(given: Series, kind: str) -> None:
    assert guess(given).kind == kind


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (series("LOC"), "localizer (loc in its description)"),
        (series("T1", slices=5), "5 slices: a localizer"),
        (series("ep2d_diff", echo=90, repetition=6000), "diffusion (diff, ep2d in its description)"),
        (series("T2", echo=90, repetition=6000, diffusion=True), "diffusion"),
        (series("T1", derived=True), "derived from other series"),
        (series("3D TOF", echo=5), "vessels (tof in its description)"),
        (series("AX T2*", echo=20), "susceptibility (t2star in its description)"),
        (series("T1", echo=None), "no echo time in its header"),
        (series("AX PD", echo=12, repetition=2800), "TE 12 ms, TR 2800 ms, no TI: proton density"),
        (
            series("AX STIR", echo=80, repetition=5000, inversion_ms=160),
            "TE 80 ms, TR 5000 ms, TI 160 ms: neither T1, T2 nor FLAIR",
        ),
        (
            series("3D DIR", echo=320, repetition=7500, inversion_ms=3000),
            "double inversion (dir in its description)",
        ),
        (series("PD", echo=40, repetition=3000), "TE 40 ms, TR 3000 ms, TI 0 ms: neither T1, T2 nor FLAIR"),
    ],
)
def test_what_is_left_out_and_why(given: Series, why: str) -> None:
    assert guess(given) == type(guess(given))(None, why)


def test_a_reason_holds_nothing_of_the_free_text_but_known_words() -> None:
    assert guess(series("T1 POST Jane Doe")).reason == "TE 12 ms, 'post' in its description"


def test_of_two_series_the_clearly_finer_one_is_taken() -> None:
    thin, thick = series(voxel_mm3=1.0), series(voxel_mm3=1.3)
    assert choose([thick, thin]) is thin
    assert choose([thin]) is thin
    assert choose([series(voxel_mm3=1.1), thin]) is None

"""Pictures of a training: lines and outlines lie where they should, and no series breaks them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_brats.pictures.curves import (
    LINE_COLOURS,
    OUTLINES,
    PLOT_PX,
    Panel,
    draw_curves,
    draw_examples,
    new_page,
    ticks,
)
from lowmem_brats.train.validate import Example

BLUE = LINE_COLOURS[0]


def drawn(panel: Panel) -> npt.NDArray[np.uint8]:
    """The plot of a single panel, [H, W, 3]."""
    page = np.asarray(draw_curves([panel], "title"))
    return page[130 : 131 + PLOT_PX[1], 90 : 91 + PLOT_PX[0]]


def near(plot: npt.NDArray[np.uint8], x: float, y: float, colour: tuple[int, int, int]) -> bool:
    """Whether a colour is found within two pixels of a place, x and y from 0 to 1, y upwards."""
    column, row = round(x * PLOT_PX[0]), round((1 - y) * PLOT_PX[1])
    part = plot[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].astype(int)
    return bool((np.abs(part - colour).max(axis=-1) < 60).any())


@pytest.mark.parametrize(("x", "y"), [(0.02, 0.02), (0.25, 0.25), (0.5, 0.5), (0.98, 0.98)])
def test_a_line_runs_from_corner_to_corner(x: float, y: float) -> None:
    plot = drawn(Panel("a", {"line": [(0, 0), (10, 1)]}, y_range=(0, 1)))
    assert near(plot, x, y, BLUE)
    assert not near(plot, x, 1.0 - y if y != 0.5 else 0.8, BLUE)


def test_what_is_not_finite_leaves_a_gap() -> None:
    points = [(0, 0.5), (1, 0.5), (2, math.nan), (3, math.inf), (4, 0.5), (5, 0.5)]
    plot = drawn(Panel("a", {"line": points}, y_range=(0, 1)))
    assert [near(plot, x / 5, 0.5, BLUE) for x in (0.5, 2.5, 4.5)] == [True, False, True]


def test_one_point_is_a_dot_and_none_is_said() -> None:
    assert near(drawn(Panel("a", {"line": [(4, 0.25)]}, y_range=(0, 1))), 1.0, 0.25, BLUE)
    empty = drawn(Panel("a", {"line": []}))
    assert not near(empty, 0.1, 0.1, BLUE)
    assert not np.array_equal(empty, drawn(Panel("a", {"line": [(0, 0), (1, 1)]})))


def test_marks_stand_at_their_step() -> None:
    panel = Panel("a", {"line": [(0, 0), (100, 0)]}, y_range=(0, 1))
    plain, marked = drawn(panel), drawn(Panel("a", panel.lines, [(30, "fp32")], y_range=(0, 1)))
    changed = np.flatnonzero((plain != marked).any(axis=(0, 2)))
    assert changed.min() == round(0.3 * PLOT_PX[0])
    assert changed.max() < 0.5 * PLOT_PX[0]


def test_every_line_has_its_colour() -> None:
    lines = {str(n): [(0, n / 10), (1, n / 10)] for n in range(1, 7)}
    plot = drawn(Panel("a", lines, y_range=(0, 1)))
    for n in range(1, 7):
        assert near(plot, 0.5, n / 10, LINE_COLOURS[n - 1])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.21, 0.29, [0.22, 0.24, 0.26, 0.28]), (0, 3000, range(0, 3001, 500))],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(ticks(low, high), list(expected), atol=1e-12)


value = st.one_of(st.floats(-1e9, 1e9), st.just(math.nan), st.just(math.inf), st.just(0.0))


@given(
    series=st.lists(st.lists(st.tuples(st.floats(0, 1e7), value), max_size=12), max_size=8),
    marks=st.lists(st.tuples(st.floats(0, 1e7), st.text(max_size=5)), max_size=3),
)
@settings(max_examples=10)
def test_no_series_breaks_it(series: list[list[tuple[float, float]]], marks: list[tuple[float, str]]) -> None:
    panel = Panel("a", {str(n): line for n, line in enumerate(series)}, marks)
    page = draw_curves([panel, panel, panel], "title")
    assert page.mode == "RGB"
    assert page.size == draw_curves([Panel("", {})] * 3, "").size


def square(low: int, high: int) -> npt.NDArray[np.bool_]:
    """A square in a slice of 60 × 50 pixels."""
    mask_HW = np.zeros((60, 50), np.bool_)
    mask_HW[low:high, low:high] = True
    return mask_HW


def example(reference_HW: npt.NDArray[np.bool_], predicted_HW: npt.NDArray[np.bool_]) -> Example:
    slice_CHW = np.random.default_rng(0).normal(0, 1, (4, 60, 50)).astype(np.float32)
    return Example("case", slice_CHW, reference_HW, predicted_HW, 7, 0.5)


def places(picture: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.intp]:
    """Where an outline's colour is, in the upper frame of the first example."""
    return np.argwhere((picture[122:480, 48:348] == OUTLINES[name][0]).all(axis=-1))


def test_outlines_lie_on_their_masks_borders() -> None:
    picture = np.asarray(draw_examples([example(square(10, 30), square(35, 45))], "title"))
    scale = 358 / 72
    for name, low, high in (("reference", 10, 30), ("predicted", 35, 45)):
        found = places(picture, name)
        extent = found.max(axis=0) - found.min(axis=0)
        np.testing.assert_allclose(extent, (high - low) * scale, rtol=0.1)
        middle = found.mean(axis=0)
        assert not ((np.abs(found - middle) < 5).all(axis=1)).any(), "an outline, not a patch"


def test_both_outlines_show_where_they_are_the_same() -> None:
    picture = np.asarray(draw_examples([example(square(10, 30), square(10, 30))], "title"))
    assert len(places(picture, "reference")) > 100
    assert len(places(picture, "predicted")) > 100


@pytest.mark.parametrize("count", [0, 1, 4])
def test_any_number_of_examples_also_empty_ones(count: int) -> None:
    nothing = np.zeros((60, 50), np.bool_)
    empty = Example(
        "a name that is far too long for the column it stands in",
        np.zeros((4, 60, 50), np.float32),
        nothing,
        nothing,
        0,
        0.0,
    )
    page = draw_examples([empty] * count, "title")
    assert page.mode == "RGB"
    assert page.width > 300 * max(count, 1)


@pytest.mark.parametrize("name", ["a\nb", "a\r\n b", "a\x0bb", "\na \t b"])
def test_a_title_is_one_line(name: str) -> None:
    """Names of folders and weights may hold line breaks, which Pillow does not draw so."""
    assert new_page(300, 100, name).tobytes() == new_page(300, 100, "a b").tobytes()
    new_page(300, 100, "a\udcff")  # a byte of a path that is no UTF-8

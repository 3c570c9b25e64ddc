"""Which slices are run first, and which after them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.segment.routing import beside, every_second


def slices(text: str) -> np.ndarray:
    """Return True where the text has a 1."""
    return np.array([letter == "1" for letter in text], np.bool_)


@pytest.mark.parametrize(
    ("active", "coarse"),
    [
        ("", ""),
        ("0000", "0000"),
        ("1111", "1010"),
        ("01111", "01010"),  # counted from the run's beginning, not from the first slice
        ("0100110111", "0100100101"),
    ],
)
def test_every_second_of_each_run(active: str, coarse: str) -> None:
    np.testing.assert_array_equal(every_second(slices(active)), slices(coarse))


@pytest.mark.parametrize(
    ("active", "found", "chosen"),
    [
        ("11111", "00100", "01010"),
        ("10111", "01000", "10100"),
        ("11111", "10001", "01010"),
        ("11111", "00000", "00000"),
        ("0000", "1111", "0000"),
    ],
)
def test_beside_what_was_found(active: str, found: str, chosen: str) -> None:
    np.testing.assert_array_equal(beside(slices(active), slices(found)), slices(chosen))


@given(st.lists(st.booleans(), max_size=40))
def test_what_fills_two_neighbours_is_met(active: list[bool]) -> None:
    """Every active slice is coarse or has a coarse neighbour: if that one is found, it is run too."""
    active_N = np.array(active, np.bool_)
    coarse_N = every_second(active_N)
    assert not (coarse_N & ~active_N).any()
    np.testing.assert_array_equal(coarse_N | beside(active_N & ~coarse_N, coarse_N), active_N)
    assert coarse_N.sum() <= active_N.sum() / 2 + (np.diff(np.r_[False, active_N].astype(int)) == 1).sum() / 2

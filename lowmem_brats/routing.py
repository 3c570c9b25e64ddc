"""Which slices to run a network on, where most hold nothing of what it looks for.

Axial slices come first, every second one; those between only where a neighbour was found to hold something; coronal and
sagittal ones only where they cross what the axial ones found. Nothing is found where not all of them looked. Unlike the
skipping of nested regions this is not exact: what lies on a single axial slice, or what only the other sides show, is
missed. How much that changes is in docs/architecture.md. Shape suffix: N slices of a view.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Slices = npt.NDArray[np.bool_]


def every_second(active_N: Slices) -> Slices:
    """Of each run of active slices the first, third, fifth, …: every active slice is in it or beside one that is."""
    numbers = np.arange(len(active_N))
    before_run_N = np.maximum.accumulate(np.where(active_N, -1, numbers))
    even: Slices = active_N & ((numbers - before_run_N) % 2 == 1)
    return even


def beside(active_N: Slices, found_N: Slices) -> Slices:
    """Of the active slices those that have a found one before or after them."""
    neighbour_N = np.zeros_like(found_N)
    neighbour_N[1:] |= found_N[:-1]
    neighbour_N[:-1] |= found_N[1:]
    return active_N & neighbour_N

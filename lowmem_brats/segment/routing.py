"""Choose the slices that a network runs on, since most slices hold no tumour.

Every second axial slice is run first, then the axial slices next to one where something was found, then the coronal and
sagittal slices that cross what the axial ones found. A voxel that one of the views has not looked at stays background.
This is not exact: a finding on a single axial slice between two others, or one that only the other views show, is
missed. docs/architecture.md gives the difference in Dice.
Shape suffix: N slices of a view.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Slices = npt.NDArray[np.bool_]


def every_second(active_N: Slices) -> Slices:
    """The first, third, fifth, … slice of each run of active slices, so all other active ones are next to one."""
    numbers = np.arange(len(active_N))
    before_run_N = np.maximum.accumulate(np.where(active_N, -1, numbers))
    # Counted from the start of each run, so that the first slice of every run is among them.
    even: Slices = active_N & ((numbers - before_run_N) % 2 == 1)
    return even


def beside(active_N: Slices, found_N: Slices) -> Slices:
    """Active slices next to a slice where something was found."""
    neighbour_N = np.zeros_like(found_N)
    neighbour_N[1:] |= found_N[:-1]
    neighbour_N[:-1] |= found_N[1:]
    return active_N & neighbour_N

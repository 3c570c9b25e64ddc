"""Diameters of a lesion: the two perpendicular ones in a slice, as RANO defines them, and the longest one in space.

A diameter ends on the lesion's outline, in the middle of an edge between a pixel inside and a pixel outside; so a row
of n pixels is n pixels long. It stays inside the lesion: no part of it lies outside the lesion's pixels, whose edges
and corners count as inside.

Axes: X Y of one axial slice. Points are in pixels, with pixel (0, 0) reaching from (0, 0) to (1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from lowmem_brats.data.labels import Mask

Points = npt.NDArray[np.float64]
"""[points, axes], in pixels."""

EQUAL_MM = 1e-6
"""Diameters that differ by less are equally long."""
NOTHING = 1e-9
"""A part of a segment shorter than this share of it is a touched corner."""
BESIDE = 1e-6
"""In pixels: how far around a point on an edge or a corner the pixels that share it are looked up."""
MOST_ENDS = 1000
"""Points of a piece's outline that are tried as ends, those farthest from its middle. Lesions of 8 cm have up to 700;
more have only masks of noise, for which all pairs would take hours."""
BLOCK = 512
"""Points whose distances to all others are in memory at once."""
TRIED_FIRST = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""Places on a segment that are looked up before all of it is traced: few segments of a ragged lesion pass."""
FIRST_TRACED, MOST_TRACED = 64, 4096
"""Segments that are traced through the slice at once: few at first, because the longest are usually inside."""


@dataclass(frozen=True)
class Diameters:
    """Two perpendicular diameters of a lesion in one axial slice."""

    longest_mm: float
    perpendicular_mm: float
    """At most as long as the longest."""

    @property
    def product_mm2(self) -> float:
        """The bidimensional product."""
        return self.longest_mm * self.perpendicular_mm


def measure_slice(mask_XY: Mask, spacing_mm: tuple[float, float], above_mm2: float = 0.0) -> Diameters | None:
    """Measure the longest diameter that stays inside a lesion, and the longest one perpendicular to it inside.

    `mask_XY`: the lesion in an axial slice. If it has several pieces there, each is measured by itself, and the one
    with the largest product counts; pixels that share a corner belong to one piece. `spacing_mm`: pixel edge along X
    and Y. Of equally long diameters the one with the longest perpendicular counts. The perpendicular runs through the
    middle of an edge of the outline, but may end anywhere on it. Where that makes it longer than the longest diameter,
    by a part of a pixel, it is reported as equally long.
    Returns None where no product is larger than `above_mm2`.
    """
    best = None
    piece_XY, _ = ndimage.label(mask_XY, np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(piece_XY), 1):
        found = _measure_piece(piece_XY[box] == number, np.array(spacing_mm), above_mm2)
        if found and found.product_mm2 > above_mm2:
            best, above_mm2 = found, found.product_mm2
    return best


def longest_in_space(mask_XYZ: Mask, spacing_mm: tuple[float, float, float]) -> float:
    """Return the largest distance in mm between two points of a lesion's outline, whether or not it stays inside.

    `mask_XYZ`: not empty.
    """
    points = outline(mask_XYZ) * spacing_mm
    return float(spatial.distance.pdist(points[spatial.ConvexHull(points).vertices]).max())


def outline(mask: Mask) -> Points:
    """Return the middles of all edges, or in space all faces, between the mask and its outside."""
    padded = np.pad(mask, 1)
    found = []
    for axis in range(mask.ndim):
        middle = np.argwhere(np.diff(padded, axis=axis)) - 0.5
        middle[:, axis] += 0.5
        found.append(middle)
    return np.concatenate(found)


def _measure_piece(mask_XY: Mask, spacing_mm: Points, above_mm2: float) -> Diameters | None:
    """As `measure_slice`, of one piece; may return a product that is not larger than `above_mm2`."""
    points = outline(mask_XY)
    points = points[np.argsort(-np.linalg.norm((points - points.mean(axis=0)) * spacing_mm, axis=1), kind="stable")]
    padded_XY = np.pad(mask_XY, 1)
    # No perpendicular is reported longer than the diameter, so a product needs a diameter of at least its root.
    found_mm = _longest(padded_XY, points[:MOST_ENDS], spacing_mm, above_mm2**0.5)
    if not len(found_mm):
        return None
    length_mm = float(np.linalg.norm(found_mm[0]))
    chord_mm = max(_longest_chord(padded_XY, points, spacing_mm, along / length_mm) for along in found_mm)
    return Diameters(length_mm, min(length_mm, chord_mm))


def _longest(padded_XY: Mask, points: Points, spacing_mm: Points, above_mm: float) -> Points:
    """The longest segment between two points that stays inside, or all that are equally long, as vectors in mm.

    `points`: those far from the middle come first, so that long segments are found early. Empty if none is as long as
    `above_mm`.
    """
    best = np.zeros((0, 2))
    for first in range(0, len(points), BLOCK):
        starts, ends = points[first : first + BLOCK], points[first:]
        length_mm = spatial.distance.cdist(starts * spacing_mm, ends * spacing_mm)
        pairs = np.argwhere(length_mm > above_mm - EQUAL_MM)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        for share in TRIED_FIRST:
            pairs = pairs[_covers(padded_XY, starts[pairs[:, 0]] * (1 - share) + ends[pairs[:, 1]] * share)]
        lengths = length_mm[tuple(pairs.T)]
        order = np.argsort(-lengths, kind="stable")
        pairs, lengths = pairs[order], lengths[order]
        done, traced = 0, FIRST_TRACED
        while done < len(pairs) and lengths[done] > above_mm - EQUAL_MM:
            start, end = pairs[done : done + traced].T
            step = ends[end] - starts[start]
            stays = _trace(padded_XY, starts[start], step)[1].all(axis=1)
            inside_mm = step[stays] * spacing_mm
            if len(inside_mm):
                longest_mm = float(np.linalg.norm(inside_mm[0]))
                inside_mm = inside_mm[np.linalg.norm(inside_mm, axis=1) > longest_mm - EQUAL_MM]
                equal = len(best) and longest_mm < above_mm + EQUAL_MM
                best = np.concatenate([best, inside_mm]) if equal else inside_mm
                above_mm = longest_mm
            done, traced = done + traced, min(2 * traced, MOST_TRACED)
    return best


def _longest_chord(padded_XY: Mask, points: Points, spacing_mm: Points, along_mm: Points) -> float:
    """The longest stretch inside, in mm, on the lines through the points that are perpendicular to a direction.

    `along_mm`: the direction, of length 1.
    """
    across = np.array([-along_mm[1], along_mm[0]]) / spacing_mm  # a step of 1 mm
    reach_mm = float(np.linalg.norm(padded_XY.shape * spacing_mm))
    lines = np.unique(np.round(points * spacing_mm @ along_mm, 6), return_index=True)[1]
    step = np.broadcast_to(2 * reach_mm * across, (len(lines), 2))
    share, inside = _trace(padded_XY, points[lines] - reach_mm * across, step)
    return 2 * reach_mm * float(_longest_run(share, inside).max())


def _trace(padded_XY: Mask, start: Points, step: Points) -> tuple[Points, Mask]:
    """Cut segments where they cross from pixel to pixel: the share of each part, and whether it lies inside.

    `padded_XY`: the mask with a margin of one pixel; `start`, `step`: [segments, 2], from where each goes and how far.
    Returns two arrays [segments, parts].
    """
    grid = [np.arange(size - 1) for size in padded_XY.shape]
    with np.errstate(divide="ignore", invalid="ignore"):  # a segment along an axis crosses no line of that axis
        crossed = [(grid[axis] - start[:, axis, None]) / step[:, axis, None] for axis in (0, 1)]
    cuts = np.concatenate([np.zeros((len(start), 1)), *crossed, np.ones((len(start), 1))], axis=1)
    cuts = np.sort(np.clip(np.nan_to_num(cuts), 0, 1), axis=1)
    share = np.diff(cuts, axis=1)
    middle = start[:, None] + step[:, None] * ((cuts[:, 1:] + cuts[:, :-1]) / 2)[..., None]
    return share, _covers(padded_XY, middle) | (share < NOTHING)


def _covers(padded_XY: Mask, points: Points) -> Mask:
    """Whether each point lies in a pixel of the mask or on its edge; `points`: [..., 2]."""
    in_padded = np.clip(points, -0.5, np.array(padded_XY.shape) - 1.5) + 1  # what is farther out lies in the margin
    below, above = ((in_padded + beside).astype(np.intp) for beside in (-BESIDE, BESIDE))
    found = np.zeros(points.shape[:-1], np.bool_)
    for x, y in product((below[..., 0], above[..., 0]), (below[..., 1], above[..., 1])):
        found |= padded_XY[x, y]
    return found


def _longest_run(share: Points, inside: Mask) -> Points:
    """The longest uninterrupted stretch inside, for each segment of `_trace`."""
    total = np.cumsum(np.where(inside, share, 0), axis=1)
    before = np.maximum.accumulate(np.where(inside, 0, total), axis=1)
    longest: Points = (total - before).max(axis=1)
    return longest

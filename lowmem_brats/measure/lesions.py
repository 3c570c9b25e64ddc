"""The enhancing lesions of a label map, measured one by one.

Axes: X Y Z in LPS order, so that slices along Z are axial. Positions are in mm as NIfTI gives them, RAS+: the first
number rises to the patient's right, the second to the front, the third to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from lowmem_brats.data.labels import TOUCHING, Mask
from lowmem_brats.measure.diameters import Diameters, longest_in_space, measure_slice, outline

MEASURABLE_MM = 10.0
"""RANO: a lesion is measurable if both diameters are at least as long."""
TARGETS = 5
"""RANO: the sum of products is that of at most so many lesions, the largest."""
MIDLINE_MM = 5.0
"""A lesion whose centroid is nearer to the middle of the brain is on neither side."""


@dataclass(frozen=True)
class Lesion:
    """One connected piece of enhancing tumour."""

    millilitres: float
    """Volume of the enhancing voxels, without what they enclose."""
    longest_mm: float
    """Longest diameter in the axial slice with the largest product."""
    perpendicular_mm: float
    """Longest diameter in that slice that is perpendicular to it."""
    product_mm2: float
    """RANO's bidimensional product of the two."""
    measurable: bool
    """Whether both diameters are at least MEASURABLE_MM."""
    slice: int
    """That slice, counted from the feet; the first is 0."""
    longest_in_space_mm: float
    """Largest distance between two points of the lesion, in any direction."""
    centroid_ras_mm: tuple[float, float, float]
    """Mean position of the enhancing voxels: to the patient's right, to the front, to the head."""
    side: str
    """`left` or `right` of the patient, `midline`, or `unknown` where no image shows the brain."""


def find_lesions(
    enhancing_XYZ: Mask,
    core_XYZ: Mask,
    affine: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    middle_mm: float | None = None,
) -> list[Lesion]:
    """Measure each connected piece of enhancing tumour; the one with the largest product comes first.

    In every axial slice the piece is measured together with all that it encloses there, and with the core inside its
    convex hull: so a ring around a necrotic core is measured across the whole ring, even where the ring has a gap. The
    slice with the largest product of the two diameters counts, and of equal ones the lowest of those with the most
    voxels.
    `enhancing_XYZ`, `core_XYZ`: enhancing tumour, and the core that does not enhance; `affine`: voxel → mm, RAS+;
    `spacing_mm`: voxel edge along X, Y, Z; `middle_mm`: from `middle_of`, None where no image shows the brain.
    """
    box = (ndimage.find_objects(enhancing_XYZ.view(np.uint8)) or [None])[0]
    if box is None:
        return []
    piece_XYZ, _ = ndimage.label(enhancing_XYZ[box], TOUCHING)
    corner = np.array([part.start for part in box])
    found = []
    for number, inner in enumerate(ndimage.find_objects(piece_XYZ), 1):
        first = corner + [part.start for part in inner]
        core = core_XYZ[box][inner]
        found.append(_measure(piece_XYZ[inner] == number, core, first, affine, spacing_mm, middle_mm))
    return sorted(found, key=lambda lesion: -lesion.product_mm2)


def sum_of_products(lesions: list[Lesion]) -> float:
    """Return the sum of the bidimensional products of the measurable lesions in mm², of at most the TARGETS largest."""
    return sum(sorted((lesion.product_mm2 for lesion in lesions if lesion.measurable), reverse=True)[:TARGETS])


def middle_of(brain_XYZ: Mask, affine: npt.NDArray[np.float64]) -> float:
    """Return where the middle of the brain is between the patient's left and right: its mean position in mm, RAS+.

    `brain_XYZ`: not empty; `affine`: voxel → mm, RAS+.
    """
    counts = [brain_XYZ.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    mean = [count @ np.arange(len(count)) / count.sum() for count in counts]
    return float(affine[0] @ [*mean, 1])


def _measure(
    piece_XYZ: Mask,
    core_XYZ: Mask,
    first: npt.NDArray[np.int_],
    affine: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    middle_mm: float | None,
) -> Lesion:
    """Measure one piece in its bounding box, whose first voxel is voxel `first` of the volume."""
    diameters, level = _largest_product(piece_XYZ, core_XYZ, spacing_mm[:2])
    centroid = affine[:3] @ [*(np.argwhere(piece_XYZ).mean(axis=0) + first), 1]
    return Lesion(
        millilitres=float(np.count_nonzero(piece_XYZ) * np.prod(spacing_mm) / 1000),
        longest_mm=diameters.longest_mm,
        perpendicular_mm=diameters.perpendicular_mm,
        product_mm2=diameters.product_mm2,
        measurable=diameters.perpendicular_mm >= MEASURABLE_MM,  # it is the shorter of the two
        slice=int(first[2]) + level,
        longest_in_space_mm=longest_in_space(piece_XYZ, spacing_mm),
        centroid_ras_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        side=_side(float(centroid[0]), middle_mm),
    )


def _largest_product(piece_XYZ: Mask, core_XYZ: Mask, spacing_mm: tuple[float, float]) -> tuple[Diameters, int]:
    """The diameters in the slice with the largest product, and the slice."""
    voxels = piece_XYZ.sum(axis=(0, 1))
    best, level = Diameters(0.0, 0.0), 0
    for z in np.argsort(-voxels, kind="stable")[: np.count_nonzero(voxels)]:
        whole_XY = _with_enclosed(piece_XYZ[:, :, z], core_XYZ[:, :, z])
        if found := measure_slice(whole_XY, spacing_mm, best.product_mm2):
            best, level = found, int(z)
    return best, level


def _with_enclosed(piece_XY: Mask, core_XY: Mask) -> Mask:
    """A piece in a slice, the core inside its convex hull, and all that these enclose."""
    whole_XY = piece_XY.copy()
    core = np.argwhere(core_XY)
    hull = spatial.ConvexHull(outline(piece_XY)).equations  # for each side, how far a point lies outside of it
    inside = (((core + 0.5) @ hull[:, :2].T + hull[:, 2]) <= 0).all(axis=1)
    whole_XY[tuple(core[inside].T)] = True
    return np.asarray(ndimage.binary_fill_holes(whole_XY))


def _side(x_mm: float, middle_mm: float | None) -> str:
    if middle_mm is None:
        return "unknown"
    if abs(x_mm - middle_mm) < MIDLINE_MM:
        return "midline"
    return "right" if x_mm > middle_mm else "left"

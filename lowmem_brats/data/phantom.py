"""Synthetic cases that look like BraTS, for the demonstration, the tests and the benchmarks.

Everything here is made from geometry (ellipsoids) and smooth random fields: no patient's image or label is in it. Only
the tissue contrasts below follow brain z-scores as seen in real scans.

Axes: `X` patient's right to left, `Y` front to back, `Z` bottom to top (LPS); `C` modalities. Inside, lengths are in mm
of a full-size head: on a coarser grid the same head is only sampled more coarsely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.config import BRATS_SHAPE, MODALITIES
from lowmem_brats.data.labels import CONVENTIONS, LabelMap
from lowmem_brats.errors import InputError

Field = npt.NDArray[np.float32]
Images = npt.NDArray[np.int16]
Grid = tuple[Field, Field, Field]
Point = tuple[float, float, float]

_SMALLEST_AXIS = 32  # voxels; on a coarser grid the tumour's parts would vanish
_LABELS = CONVENTIONS["brats2020"]
_CENTRE = (118.0, 129.0, 80.0)  # mm from the first voxel: where the cerebrum sits in BraTS volumes
_BOX = ((42, 194), (36, 222), (0, 152))  # mm: holds every brain; outside it nothing is computed

_CEREBELLUM: tuple[Point, Point] = ((22, 46, -42), (31, 30, 25))  # centre and radii, the left half; mm
_STEM: tuple[Point, Point] = ((0, 18, -46), (13, 14, 62))

# Brain z-scores of pure tissue.    WM     GM    CSF   NCR    ED    ET   vessel
_CONTRAST = {
    "t1": np.array([0.90, -0.20, -2.00, -0.90, 0.10, -0.10, -0.60], np.float32),
    "t1ce": np.array([0.45, -0.15, -1.70, -0.60, -0.05, 1.80, 2.40], np.float32),
    "t2": np.array([-0.75, -0.10, 2.80, 2.10, 1.00, 1.00, -0.80], np.float32),
    "flair": np.array([-0.20, 0.10, -1.80, 1.00, 2.05, 1.40, -0.80], np.float32),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic case; made, not measured: it comes from no patient."""

    images_CXYZ: Images
    """Channels as config.MODALITIES; background 0, brain above 0."""
    label_XYZ: LabelMap
    """brats2020 labels 0/1/2/4."""
    affine: npt.NDArray[np.float64]
    """4×4, voxel index → mm in RAS+, as in BraTS files: 1 mm voxels, array axes LPS."""
    case_id: str
    """`phantom_<seed>`."""


def make_phantom(seed: int, shape: tuple[int, int, int] = BRATS_SHAPE) -> Phantom:
    """Make a synthetic brain with one tumour from geometry and random fields; the same seed gives the same case.

    `seed`: 0 or more. `shape`: voxels along X, Y, Z; the head fills a smaller grid in proportion, for fast tests.
    Raises InputError for a negative seed or a shape too small to hold all tumour parts.
    """
    if seed < 0:
        raise InputError("phantom seed", str(seed), "0 or more", "Use 0.")
    if min(shape) < _SMALLEST_AXIS:
        found = "×".join(map(str, shape))
        raise InputError("phantom shape", found, f"at least {_SMALLEST_AXIS} voxels per axis", "Use 48 56 40.")
    rng = np.random.default_rng(seed)
    box, grid = _head_grid(shape)
    depth = _brain_depth(grid, rng)
    tissue = _tissues(grid, depth, rng)
    label = _tumour(grid, depth, tissue, rng)

    images_CXYZ = np.zeros((len(MODALITIES), *shape), np.int16)
    images_CXYZ[(slice(None), *box)] = _images(grid, depth, tissue, label, rng)
    label_XYZ = np.zeros(shape, np.uint8)
    label_XYZ[box] = label
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    return Phantom(images_CXYZ, label_XYZ, affine, f"phantom_{seed:03d}")


def _head_grid(shape: tuple[int, int, int]) -> tuple[tuple[slice, ...], Grid]:
    """Return the part of the array that can hold brain, and its voxel centres in mm from the cerebrum's centre.

    The coordinates' shapes are (X, 1, 1), (1, Y, 1) and (1, 1, Z).
    """
    box, axes = [], []
    for axis, (count, full) in enumerate(zip(shape, BRATS_SHAPE, strict=True)):
        part = slice(*(round(edge * count / full) for edge in _BOX[axis]))
        mm = (np.arange(part.start, part.stop) + 0.5) * (full / count) - 0.5 - _CENTRE[axis]
        box.append(part)
        axes.append(mm.astype(np.float32))
    x, y, z = np.ix_(*axes)
    return tuple(box), (x, y, z)


def _steps(grid: Grid) -> tuple[float, ...]:
    """Return the distance between neighbouring voxels in mm of a full-size head, along X, Y, Z."""
    return tuple(float(mm.flat[1] - mm.flat[0]) for mm in grid)


def _random_field(grid: Grid, scale_mm: float, rng: np.random.Generator) -> Field:
    """Return a smooth random field of mean 0 and variance 1 over the grid.

    White noise on a lattice of `scale_mm`, spread by a Gaussian of the same width: as smooth on a coarse grid as on a
    fine one, and cheap because the Gaussian works along one axis at a time.
    """
    kernels = []
    for axis, ((low, high), mm) in enumerate(zip(_BOX, grid, strict=True)):
        lattice = np.arange(low - 3 * scale_mm, high + 3 * scale_mm, scale_mm, dtype=np.float32) - _CENTRE[axis]
        kernel = np.exp(-(((mm.reshape(-1, 1) - lattice) / scale_mm) ** 2) / 2)
        kernels.append(kernel / np.sqrt((kernel**2).sum(1, keepdims=True)))
    field = rng.standard_normal([kernel.shape[1] for kernel in kernels], np.float32)
    for kernel in kernels:  # each step consumes the first axis and appends the new one
        field = np.tensordot(field, kernel, axes=(0, 1))
    return np.ascontiguousarray(field)


def _ellipsoid(grid: Grid, centre: Point, radii: Point) -> Field:
    """Return about how many mm each voxel lies inside the ellipsoid (negative: outside)."""
    squares = [((mm - c) / r) ** 2 for mm, c, r in zip(grid, centre, radii, strict=True)]
    radius = np.sqrt(squares[0] + squares[1] + squares[2])
    slope = np.sqrt(sum(square / r**2 for square, r in zip(squares, radii, strict=True)))
    return np.asarray((1 - radius) * radius / np.maximum(slope, 1e-6), np.float32)


def _share(inside_mm: Field, grid: Grid) -> Field:
    """Return which share of each voxel a surface encloses, from the depth below the surface in mm: partial volume."""
    return np.asarray(np.clip(inside_mm / _steps(grid)[0] + 0.5, 0, 1), np.float32)


def _brain_depth(grid: Grid, rng: np.random.Generator) -> Field:
    """Return about how many mm each voxel lies below the brain's surface (negative: outside the brain)."""
    x, y, z = grid
    both_sides = (np.abs(x), y, z)
    size = rng.uniform(0.97, 1.03)
    egg = (np.asarray(x * (1 - 0.0012 * y), np.float32), y, z)  # from above, narrower in front than behind
    cerebrum = _ellipsoid(egg, (0, 0, 0), (67 * size, 86 * size, 60 * size))
    cerebrum = np.maximum(cerebrum, _ellipsoid(both_sides, (17, -36, -2), (40, 50, 46)))  # frontal lobes
    cerebrum = np.minimum(cerebrum, z + 25 + 0.08 * y + 3 * _random_field(grid, 18, rng))  # the skull base cuts it off
    temporal_lobes = _ellipsoid(both_sides, (41, -6, -28), (24, 40, 24))
    parts = [cerebrum, temporal_lobes, _ellipsoid(both_sides, *_CEREBELLUM), _ellipsoid(grid, *_STEM)]
    return np.asarray(np.maximum.reduce(parts) + 1.2 * _random_field(grid, 12, rng), np.float32)


def _pial_distance(grid: Grid, depth: Field, rng: np.random.Generator) -> Field:
    """Return about how many mm each voxel lies from the nearest outer surface, sulcus or fissure."""
    x, y, z = grid
    # The zero level of a smooth random field is a winding sheet, as sulci are; |f| / |∇f| is the distance from it.
    folds = _random_field(grid, 4.5, rng)
    slopes = np.gradient(folds, *_steps(grid))
    sulcus = np.abs(folds) / np.maximum(np.sqrt(sum(slope**2 for slope in slopes)), 0.08)
    sulcus += 0.2 * np.maximum(depth - 10, 0)  # sulci end in the depth
    bridge = _ellipsoid(grid, (0, 2, -10), (40, 38, 30))  # the hemispheres join here
    midline = np.abs(x - 1.5 * _random_field(grid, 30, rng)) + np.maximum(bridge, 0)
    tent = np.abs(z + 20 + 0.25 * np.abs(x)) + np.maximum(16 - y, 0)  # between cerebrum and cerebellum
    pial = np.minimum(np.minimum(sulcus, midline), tent)

    cerebellum = _ellipsoid((np.abs(x), y, z), *_CEREBELLUM)
    from_stem = np.sqrt((y - 20) ** 2 + (z + 35) ** 2 + 0.2 * x**2) + _random_field(grid, 8, rng)
    folia = 1.2 + np.abs(from_stem % 6 - 3) + 0.25 * np.maximum(cerebellum - 10, 0)
    pial = np.where((cerebellum > 0) & (z < -20), np.minimum(folia, np.abs(x) + 1), pial)
    stem = _ellipsoid(grid, *_STEM)
    pial = np.minimum(depth, np.where((stem > 0) & (z < -12), 4 + stem, pial))
    return np.asarray(pial, np.float32)


def _tissues(grid: Grid, depth: Field, rng: np.random.Generator) -> Field:
    """Return the shares of white matter, grey matter and CSF in each voxel, (3, X, Y, Z), adding up to 1."""
    pial = _pial_distance(grid, depth, rng)
    both_sides = (np.abs(grid[0]), grid[1], grid[2])
    wide = rng.uniform(0.8, 1.25)  # ventricles differ much between people
    ventricles = (
        _ellipsoid(grid, (0, 6, -14), (2.5, 14, 8)),
        _ellipsoid(both_sides, (9, -8, 5), (6 * wide, 28, 8 * wide)),
        _ellipsoid(both_sides, (20, 28, -2), (6 * wide, 20, 9 * wide)),
    )
    deep_grey = (
        _ellipsoid(both_sides, (11, 8, -9), (8, 14, 8)),  # thalamus
        _ellipsoid(both_sides, (26, -8, -8), (6, 18, 11)),  # putamen
        _ellipsoid(both_sides, (15, -22, 0), (5, 12, 9)),  # caudate nucleus
    )
    csf = _share(np.maximum.reduce([0.75 - pial, *ventricles]), grid)
    grey = np.clip(_share(np.maximum.reduce([3.6 - pial, *deep_grey]), grid), 0, 1 - csf)
    return np.stack([1 - csf - grey, grey, csf])


def _largest(score: Field, allowed: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """Return the mask of the `count` allowed voxels with the largest scores."""
    chosen = np.flatnonzero(allowed)
    chosen = chosen[np.argpartition(score.ravel()[chosen], -count)[-count:]]
    mask = np.zeros(score.shape, bool)
    mask.flat[chosen] = True
    return mask


def _tumour(grid: Grid, depth: Field, tissue: Field, rng: np.random.Generator) -> LabelMap:
    """Grow one tumour from a random point of the white matter; return its label map, all three tissues present."""
    x, y, z = grid
    white, _, csf = tissue
    seats = np.argwhere((white > 0.9) & (depth > 18) & (np.abs(x) > 16) & (np.abs(y) < 60) & (z > -12))
    cx, cy, cz = (float(mm.flat[i]) for mm, i in zip(grid, rng.choice(seats), strict=True))

    whole_mm3 = 1000 * float(np.exp(rng.uniform(np.log(30), np.log(120))))
    core_mm3, voxel_mm3 = whole_mm3 * rng.uniform(0.18, 0.42), float(np.prod(_steps(grid)))
    radius = (core_mm3 * 3 / (4 * np.pi)) ** (1 / 3)
    rx, ry, rz = radius * rng.uniform(0.8, 1.25, 3)
    core_depth = _ellipsoid(grid, (cx, cy, cz), (rx, ry, rz))

    side = (depth > 1) & (x * np.sign(cx) > 1)  # the falx keeps it on its side, the tent above the cerebellum
    side &= (y < 16) | (z > -18 - 0.25 * np.abs(x))
    core_score = core_depth + 0.22 * radius * _random_field(grid, 7, rng)
    core = _largest(core_score, side, round(core_mm3 / voxel_mm3))
    necrosis_score = core_score + 0.12 * radius * _random_field(grid, 5, rng)
    necrosis = _largest(necrosis_score, core, max(1, round(rng.uniform(0.35, 0.7) * core_mm3 / voxel_mm3)))
    # Oedema follows the white matter and stops at the cortex: that is what gives it fingers.
    reach = core_depth + 8 * _random_field(grid, 9, rng) - 14 * (1 - white)
    oedema = _largest(reach, side & ~core & (csf < 0.5), round((whole_mm3 - core_mm3) / voxel_mm3))

    label = np.zeros(depth.shape, np.uint8)
    label[oedema], label[core], label[necrosis] = _LABELS.ed, _LABELS.et, _LABELS.ncr
    islands, _ = ndimage.label(label)
    label[islands != 1 + np.argmax(np.bincount(islands.ravel())[1:])] = 0  # keep the largest
    return label


def _images(grid: Grid, depth: Field, tissue: Field, label: LabelMap, rng: np.random.Generator) -> Images:
    """Turn tissues and tumour into intensities as each modality shows them, (C, X, Y, Z), 0 outside the brain."""
    # A tumour's edge fades over about a voxel; oedema fades over a few mm.
    voxel_mm = _steps(grid)[0]
    fades = ((_LABELS.ncr, 0.7), (_LABELS.ed, 1.4), (_LABELS.et, 0.7))
    tumour = np.stack([ndimage.gaussian_filter(np.float32(label == value), mm / voxel_mm) for value, mm in fades])
    tumour /= np.maximum(tumour.sum(0), 1)
    # Vessels run in sulci, where the CSF meets the zero level of another field, and along the top of the midline.
    course = (np.abs(_random_field(grid, 7, rng)) < 0.08) | (np.abs(grid[0]) < 3)
    vessel = tissue[2] * (course & (depth < 6)) * (1 - tumour.sum(0))
    shares = np.concatenate([tissue * (1 - tumour.sum(0) - vessel), tumour, vessel[None]])
    images = []
    for modality in MODALITIES:
        contrast = _CONTRAST[modality] * rng.uniform(0.9, 1.1, 7).astype(np.float32)
        image = np.tensordot(contrast, shares, axes=1)
        image += 0.3 * _random_field(grid, 4, rng) * tumour.sum(0)  # tumours are never uniform
        image += 0.15 * _random_field(grid, 50, rng)  # the coils' uneven sensitivity
        image = ndimage.gaussian_filter(image, 0.5 / voxel_mm)
        image += 0.13 * rng.standard_normal(image.shape, np.float32)
        images.append(np.where(depth > 0, np.clip(600 + 100 * image, 1, None), 0).astype(np.int16))
    return np.stack(images)

"""Tell brain from background in each modality, and set the background to 0.

Every later step takes "not 0" for brain. Files often mean something else: a background of −1 or 1e-6 after rescaling,
small values of either sign around the brain after resampling with splines, noise in the air, the image's mean where it
was rotated, a skull in one modality of four. This is the one place that judges it. In an ordinary BraTS file, air
exactly 0 and brain bright up to its edge, the same voxels stay not 0.

Axes: C modalities; X Y Z voxels in LPS order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import TOUCHING, Mask
from lowmem_brats.errors import InputError

Image = npt.NDArray[np.float32]

THIN = 0.25
"""An axis shorter than this share of the longest is one of few slices, which cut through the head: its faces hold no
air, and single slices have nothing but faces."""
COMMON = 0.02
"""A value belongs to the background if at least this share of the voxels on the volume's faces have it."""
MOST_BACKGROUNDS = 3
"""Values of the background that are looked at: noise in whole numbers has many, and the most frequent are enough."""
DIM = 0.1
"""If a mask's outermost voxels are dimmer than this share of the brain, it ends in noise or ringing, not in brain."""
BRIGHT = 0.2
"""Then only voxels that differ from the background by more than this share of the brain's brightness are brain."""
LARGEST_BRAIN_ML = 2100
"""Volume above which a mask holds more than a brain. 84 BraTS cases have 1100 to 1910 mL; a head with skull and scalp
has 2500 and more."""
LARGEST_SHARE = 0.75
"""If more than this share of a volume is not background, no brain was found: even if cropped, half of it is brain."""
SMALLEST_BRAIN_ML = 700
"""Least volume of what several modalities agree on to be taken for the brain."""
MOST_ALONE_ML = 100
"""Volume with signal in one modality alone from which a warning is given. Clean BraTS cases have up to 23 mL; a part of
a skull has hundreds."""
WHOLE = 0.9
"""Share of the brain from which on a modality is taken to show all of it. It is 1 in 83 of 84 BraTS cases; in the
other, FLAIR is 0 in a third of the brain."""
SPECK = 0.01
"""Pieces smaller than this share of the largest one are dropped: they are specks in the air."""
INVERTED = 0.9
"""If more than this share of the brain is darker than the background, the image is probably inverted."""
EXTREMES = (0.5, 99.5)
"""Percentiles of the brain's intensities. Values further outside them than they are apart are clipped."""


@dataclass(frozen=True)
class _Look:
    """The background and the brain of one modality, judged without the others."""

    background: float
    """The intensity of the air."""
    level: float
    """Difference between the usual brightness of the brain and the background."""
    mask_XYZ: Mask
    """Voxels that differ from the background."""
    exact: bool
    """Whether the air has one value, and the mask ends where the brain does."""


def isolate_brain(images_CXYZ: Image, missing: Sequence[str], voxel_mm3: float) -> list[str]:
    """Set everything but the brain to exactly 0, and clip extreme intensities, in place.

    `images_CXYZ`: float32, finite, any intensity unit; each modality is moved so that its background becomes 0, and no
    voxel of its brain stays 0. `missing`: modalities that are not there; their channel is left alone. `voxel_mm3`:
    volume of a voxel. Returns a sentence on each thing that was done or looks wrong; none for ordinary BraTS files.
    Raises InputError when a modality shows nothing, or nothing where the others have brain.
    """
    looks = {m: _look(image, m) for m, image in zip(MODALITIES, images_CXYZ, strict=True) if m not in missing}
    exact = {modality: look.mask_XYZ for modality, look in looks.items() if look.exact}
    brain_XYZ, notes = _agree(exact or {modality: look.mask_XYZ for modality, look in looks.items()}, voxel_mm3)
    brain_XYZ = _pieces(brain_XYZ, SPECK) if exact else _solid(brain_XYZ)
    for modality, look in looks.items():
        mask_XYZ = look.mask_XYZ & brain_XYZ if look.exact else brain_XYZ
        if not mask_XYZ.any():
            raise InputError(modality, "no signal where the others have brain", "one patient, co-registered", _ALIGN)
        clipped = _clean(images_CXYZ[MODALITIES.index(modality)], mask_XYZ, look)
        notes += [f"{modality}: {note}" for note in [*_told(look, mask_XYZ, voxel_mm3), *clipped]]
    notes += _partial({m: images_CXYZ[MODALITIES.index(m)] != 0 for m in looks})
    return notes + _judge_volume(brain_XYZ, voxel_mm3)


def brain_of_stripped(image_XYZ: Image, voxel_mm3: float) -> Mask | None:
    """The brain in an image whose skull was removed: what differs from the air. None where it does not look so.

    `image_XYZ`: float32, finite. Raises InputError for an image of one value.
    """
    look = _look(image_XYZ, "image")
    mask_XYZ = _pieces(look.mask_XYZ, SPECK)
    millilitres = np.count_nonzero(mask_XYZ) * voxel_mm3 / 1000
    stripped = look.exact and SMALLEST_BRAIN_ML <= millilitres <= LARGEST_BRAIN_ML and mask_XYZ.mean() <= LARGEST_SHARE
    return mask_XYZ if stripped else None


_ALIGN = "Check that all files show the same patient on the same grid."


def _look(image_XYZ: Image, modality: str) -> _Look:
    """Find a modality's background and what differs from it. Raises InputError where nothing does."""
    backgrounds = _backgrounds(image_XYZ)
    first = backgrounds[0]
    mask_XYZ = image_XYZ != first
    contrast = np.abs(image_XYZ[mask_XYZ] - first)
    if not contrast.size:
        raise InputError(modality, "nothing but background", "an image of a brain", "Leave the file out.")
    sample = _sample(contrast)
    # The median of what is not haze. The 99th percentile, because a few voxels may be brighter than any brain.
    level = float(np.median(sample[sample >= BRIGHT * np.percentile(sample, 99)]))
    outermost_XYZ = mask_XYZ & ~_eroded(mask_XYZ)
    if len(backgrounds) == 1 and np.median(np.abs(image_XYZ[outermost_XYZ] - first)) >= DIM * level:
        return _Look(first, level, mask_XYZ, exact=True)
    for value in backgrounds:
        mask_XYZ = mask_XYZ & ~_from_faces(np.abs(image_XYZ - value) <= BRIGHT * level)
    return _Look(first, level, mask_XYZ, exact=False)


def _sample(values: Image) -> Image:
    """About 100,000 of the values, evenly drawn: enough for a percentile."""
    return values[:: 1 + len(values) // 100_000]


def _backgrounds(image_XYZ: Image) -> list[float]:
    """The values that the air has, the most frequent first, as found on the volume's faces in the air."""
    faces = np.concatenate([image_XYZ.take((0, -1), axis).ravel() for axis in _axes_in_air(image_XYZ)])
    values, counts = np.unique(faces, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_BACKGROUNDS]
    common = [float(values[i]) for i in order if counts[i] >= max(COMMON * faces.size, 2)]
    if common:
        return common
    counts, edges = np.histogram(faces, 64, np.percentile(faces, (1, 99)))  # noise: the most frequent grey
    fullest = int(counts.argmax())
    return [float(np.median(faces[(faces >= edges[fullest]) & (faces <= edges[fullest + 1])]))]


def _axes_in_air(array_XYZ: npt.NDArray[Any]) -> list[int]:
    """The axes along which a volume begins and ends in the air."""
    return [axis for axis, size in enumerate(array_XYZ.shape) if size >= THIN * max(array_XYZ.shape)]


def _eroded(mask_XYZ: Mask) -> Mask:
    """A mask without the voxels that share a face with its outside, or lie on the volume's faces in the air."""
    axes = _axes_in_air(mask_XYZ)
    inner_XYZ = np.zeros_like(mask_XYZ)
    middle = tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(3))
    inner_XYZ[middle] = mask_XYZ[middle]
    for axis in axes:
        for start in (0, 2):
            beside = list(middle)
            beside[axis] = slice(start, max(mask_XYZ.shape[axis] - 2, 0) + start)
            inner_XYZ[middle] &= mask_XYZ[tuple(beside)]
    return inner_XYZ


def _from_faces(mask_XYZ: Mask) -> Mask:
    """The pieces of a mask that reach the volume's faces in the air."""
    piece_XYZ, count = ndimage.label(mask_XYZ)
    reaches = np.zeros(count + 1, np.bool_)
    for axis in _axes_in_air(mask_XYZ):
        reaches[piece_XYZ.take((0, -1), axis)] = True
    reaches[0] = False
    found_XYZ: Mask = reaches[piece_XYZ]
    return found_XYZ


def _agree(masks: Mapping[str, Mask], voxel_mm3: float) -> tuple[Mask, list[str]]:
    """The brain that the modalities agree on, and a note if they disagree; `masks`: by modality.

    It is where any modality has signal. If that is larger than a brain, some images show a skull. Then it is where at
    least two modalities have signal, or as many more as it takes for the volume to be that of a brain.
    """
    count_XYZ = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for mask_XYZ in masks.values():
        count_XYZ += mask_XYZ
    any_ml = np.count_nonzero(count_XYZ) * voxel_mm3 / 1000
    for needed in range(2, len(masks) + 1) if any_ml > LARGEST_BRAIN_ML else ():
        agreed_XYZ = count_XYZ >= needed
        agreed_ml = np.count_nonzero(agreed_XYZ) * voxel_mm3 / 1000
        if SMALLEST_BRAIN_ML <= agreed_ml <= LARGEST_BRAIN_ML:
            found = f"{any_ml:.0f} mL have signal in some modality, {agreed_ml:.0f} mL in {needed} or more"
            return agreed_XYZ, [f"{found}: the latter are taken for the brain (is the skull still on in some files?)"]
    alone_XYZ = count_XYZ == 1
    alone_ml = {m: np.count_nonzero(mask_XYZ & alone_XYZ) * voxel_mm3 / 1000 for m, mask_XYZ in masks.items()}
    return count_XYZ > 0, [
        f"{modality}: {ml:.0f} mL have signal in no other modality: is some of the skull still on in it? The result "
        "may be wrong there"
        for modality, ml in alone_ml.items()
        if len(masks) > 1 and ml > MOST_ALONE_ML
    ]


def _pieces(mask_XYZ: Mask, smallest: float) -> Mask:
    """Keep the pieces of a mask that have at least the share `smallest` of the largest piece's voxels.

    Voxels that touch in a face, an edge or a corner belong to one piece.
    """
    box = ndimage.find_objects(mask_XYZ.view(np.uint8))[0]
    piece_XYZ, count = ndimage.label(mask_XYZ[box], TOUCHING)
    if count == 1:
        return mask_XYZ
    voxels = np.bincount(piece_XYZ[mask_XYZ[box]])
    kept_XYZ = np.zeros_like(mask_XYZ)
    kept_XYZ[box] = ((voxels >= smallest * voxels.max()) & (voxels > 0))[piece_XYZ]
    return kept_XYZ


def _solid(mask_XYZ: Mask) -> Mask:
    """The largest piece of a mask without thin sheets and threads, its holes filled."""
    opened_XYZ = ndimage.binary_dilation(_eroded(mask_XYZ)) & mask_XYZ
    if not opened_XYZ.any():
        return mask_XYZ
    solid_XYZ: Mask = ndimage.binary_fill_holes(_pieces(opened_XYZ, 1))
    return solid_XYZ


def _clean(image_XYZ: Image, mask_XYZ: Mask, look: _Look) -> list[str]:
    """Set an image to 0 outside the mask, in place; inside, clip it and keep every voxel off 0. Returns notes."""
    values = image_XYZ[mask_XYZ]
    low, high = np.percentile(_sample(values), EXTREMES)
    clipped = np.clip(values, low - (high - low), high + (high - low))
    contrast = clipped - np.float32(look.background)
    contrast[contrast == 0] = 1e-6 * look.level  # brain as dark as the air; 0 would make it background
    image_XYZ[...] = 0
    image_XYZ[mask_XYZ] = contrast
    notes = []
    if values.min() == values.max():
        notes.append("all of the brain has one value, so nothing is seen in it: is it a mask?")
    if np.mean(contrast < 0) > INVERTED:
        notes.append("nearly all of the brain is darker than the background: is the image inverted?")
    # A few voxels of every image are clipped; a note is given only if that changes its z-scores.
    if clipped.std(dtype=np.float64) < 0.99 * values.std(dtype=np.float64):
        beyond = np.count_nonzero(values != clipped)
        extreme = values[np.abs(values - clipped).argmax()]
        notes.append(f"{beyond} voxels are far from all other intensities (up to {extreme:g}): they are clipped")
    return notes


def _told(look: _Look, mask_XYZ: Mask, voxel_mm3: float) -> list[str]:
    """Notes on a modality's background and on what was cut away."""
    notes = []
    if not look.exact:
        notes.append("the air around the brain has no single value (noise, resampling, padding): it is set to 0")
    elif look.background != 0:
        notes.append(f"its background is {look.background:g}: it is set to 0")
    lost_ml = np.count_nonzero(look.mask_XYZ & ~mask_XYZ) * voxel_mm3 / 1000
    if look.exact and lost_ml >= 1:
        notes.append(f"{lost_ml:.0f} mL outside the brain are left out")
    return notes


def _partial(masks: Mapping[str, Mask]) -> list[str]:
    """A note on each modality without signal in a part of the brain; `masks`: where each has signal.

    The brain that the others show is where two of them, or the only other one, have signal.
    """
    count_XYZ = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for mask_XYZ in masks.values():
        count_XYZ += mask_XYZ
    notes = []
    for modality, mask_XYZ in masks.items():
        others_XYZ = count_XYZ - mask_XYZ >= min(2, len(masks) - 1)
        share = float(mask_XYZ[others_XYZ].mean()) if others_XYZ.any() else 1.0
        if share < WHOLE:
            found = f"{modality}: has signal in {share:.0%} of the brain that the others show"
            notes.append(f"{found}: the result may be wrong in the rest of it")
    return notes


def _judge_volume(brain_XYZ: Mask, voxel_mm3: float) -> list[str]:
    """A warning where what was taken for the brain is too large to be one."""
    volume_ml = np.count_nonzero(brain_XYZ) * voxel_mm3 / 1000
    share = float(brain_XYZ.mean())
    if volume_ml <= LARGEST_BRAIN_ML and share <= LARGEST_SHARE:
        return []
    return [
        f"{volume_ml:.0f} mL, {share:.0%} of the volume, are not background, and a brain has 1100 to 1900 mL: the "
        "images do not look skull-stripped, and the result may be wrong; remove the skull first (lowmem-brats "
        "prepare, which registers them too, or HD-BET, SynthStrip)"
    ]

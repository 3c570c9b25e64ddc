"""Tell whether T1 and T1ce, or T2 and FLAIR, were given for each other.

Fluid is brighter than all else in T2 and darker in FLAIR, so T2 less FLAIR reaches further up than down. A contrast
agent brightens vessels and tumour, of which T1 shows nothing, so what T1ce adds to T1 reaches further up than what T1
adds to T1ce. The rim of the brain is not asked about the agent, since strippers leave more or less of the skull there.

Axes: C modalities; X Y Z voxels. Suffix _V: the voxels of a mask, in a row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.alignment import LEVELS, SMALLEST_BRAIN_ML, sampling_steps
from lowmem_brats.data.labels import Mask

Values = npt.NDArray[np.float32]

NO_FLUID = -0.05
"""84 BraTS cases have 0.11 or more, and so −0.11 or less with T2 and FLAIR exchanged."""
NO_AGENT = -0.3
"""84 BraTS cases have −0.2 or more; with T1 and T1ce exchanged 77 of them have less than −0.3."""
RIM_MM = 6.0


def find_exchanged(images_CXYZ: Values, missing: Collection[str], spacing_mm: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs of modalities that look as if each were the other.

    `images_CXYZ`: 0 outside the brain, any intensity unit. Empty for a volume too small to be a brain.
    """
    steps = sampling_steps(spacing_mm)
    sampled_mm = [size * step for size, step in zip(spacing_mm, steps, strict=True)]
    sampled_CXYZ = images_CXYZ[:, :: steps[0], :: steps[1], :: steps[2]]
    brain_XYZ: Mask = np.asarray(sampled_CXYZ.any(axis=0))
    if float(brain_XYZ.sum() * np.prod(sampled_mm)) < 1000 * SMALLEST_BRAIN_ML:
        return []
    t1, t1ce, t2, flair = (sampled_CXYZ[MODALITIES.index(name)] for name in ("t1", "t1ce", "t2", "flair"))
    found = list[tuple[str, str]]()
    if not {"t1", "t1ce"} & set(missing):
        inside_XYZ = _without_rim(brain_XYZ, sampled_mm)
        if agent_in_second(t1[inside_XYZ], t1ce[inside_XYZ]) < NO_AGENT:
            found.append(("t1", "t1ce"))
    if not {"t2", "flair"} & set(missing) and fluid_in_first(t2[brain_XYZ], flair[brain_XYZ]) < NO_FLUID:
        found.append(("t2", "flair"))
    return found


def fluid_in_first(first_V: Values, second_V: Values) -> float:
    """How much further up than down the first image less the second reaches, both z-scored; T2 and FLAIR about 0.5."""
    first_V, second_V = ((each - each.mean()) / max(float(each.std()), 1e-9) for each in (first_V, second_V))
    return _skew(first_V - second_V, 0.5)


def agent_in_second(first_V: Values, second_V: Values) -> float:
    """How much further up the second image reaches beyond the first than the other way round; T1 and T1ce about 0.7."""
    return _skew(_added(second_V, first_V), 0.1) - _skew(_added(first_V, second_V), 0.1)


def _added(image_V: Values, known_V: Values) -> Values:
    """An image less its median among the voxels that are as bright in the one that is known."""
    added_V = np.empty_like(image_V)
    for alike in np.array_split(np.argsort(known_V, kind="stable"), LEVELS):
        added_V[alike] = image_V[alike] - np.median(image_V[alike])
    return added_V


def _skew(values_V: Values, strays: float) -> float:
    """(up − down) / (up + down) of the tails' distances from the median, −1 to 1; `strays`: percent beyond a tail."""
    low, middle, high = (float(each) for each in np.percentile(values_V, [strays, 50, 100 - strays]))
    return ((high - middle) - (middle - low)) / max(high - low, 1e-9)


def _without_rim(brain_XYZ: Mask, spacing_mm: Sequence[float]) -> Mask:
    """The brain without RIM_MM along every axis, or all of it where nothing would be left."""
    inside_XYZ = brain_XYZ
    for axis, size in enumerate(spacing_mm):
        width = 2 * round(RIM_MM / size) + 1
        inside_XYZ = ndimage.minimum_filter1d(inside_XYZ, width, axis, mode="constant")
    return inside_XYZ if inside_XYZ.any() else brain_XYZ

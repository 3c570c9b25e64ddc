"""Patches that cover a part of a volume, half overlapping, and which sizes of them, and of crops, are worth trying.

Shape suffixes: Z H W axial slices, rows and columns of a volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from lowmem_brats.errors import InputError
from lowmem_brats.networks import PatchNetwork

Sides = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """How a network of patches looks at a case."""

    patch_ZHW: Sides
    cropped: bool
    """Whether at the brain's bounding box only, in place of the whole volume."""
    voxels: int
    """Of all its patches together, to which their time is proportional."""


def starts(size: int, patch: int) -> list[int]:
    """Where patches begin along an axis: as few as overlap by half or more, evenly spaced, as nnU-Net places them.

    A patch of one voxel stands for a slice, and each slice is seen once. `patch` may be longer than `size`: then one
    patch covers it all.
    """
    if patch == 1:
        return list(range(size))
    count = math.ceil(max(size - patch, 0) / (patch / 2)) + 1
    step = (size - patch) / max(count - 1, 1)
    return [max(round(step * i), 0) for i in range(count)]


def tilings(network: PatchNetwork, volume_ZHW: Sequence[int], brain_ZHW: Sequence[int]) -> list[Tiling]:
    """The ways to look at a case: first that of the network's authors, then others, the fastest first.

    `volume_ZHW`, `brain_ZHW`: sizes of the volume and of the brain's bounding box. The others look at the brain only,
    with patches not larger than their authors', and not flat: a side is at least half as long as the longest, unless
    it covers the brain or is one slice. Each is smaller than all before it, since it would be pointless otherwise.
    """
    own = _tiling(network.window_ZHW, volume_ZHW if network.whole else brain_ZHW, not network.whole)
    sides = (_sides(*each) for each in zip(brain_ZHW, network.window_ZHW, network.stride_ZHW, strict=True))
    others = [_tiling(patch_ZHW, brain_ZHW, True) for patch_ZHW in product(*sides) if _thick(patch_ZHW, brain_ZHW)]
    found, least = [own], math.prod(own.patch_ZHW)
    for each in sorted(others, key=lambda each: (each.voxels, math.prod(each.patch_ZHW))):
        if math.prod(each.patch_ZHW) < least:
            found.append(each)
            least = math.prod(each.patch_ZHW)
    return found


def crops(network: PatchNetwork, volume_ZHW: Sequence[int]) -> list[Sides]:
    """The crops worth training with: that of the network's authors, then ever smaller ones.

    `volume_ZHW`: the largest that there is; where it is smaller than a crop, the crop is no longer than it has to be.
    Raises InputError for a network that is not trained here.
    """
    if not network.crops_ZHW:
        found = f"{type(network).__name__}, which sees patches and is imported"
        raise InputError("--network", found, "a network that can be trained here", "Choose another.")
    found_ZHW = list[Sides]()
    for crop_ZHW in network.crops_ZHW:
        sides = zip(crop_ZHW, volume_ZHW, network.stride_ZHW, strict=True)
        z, h, w = (min(side, -(-size // stride) * stride) for side, size, stride in sides)
        if not found_ZHW or math.prod((z, h, w)) < math.prod(found_ZHW[-1]):
            found_ZHW.append((z, h, w))
    return found_ZHW


def _tiling(patch_ZHW: Sequence[int], size_ZHW: Sequence[int], cropped: bool) -> Tiling:
    z, h, w = patch_ZHW
    passes = math.prod(len(starts(*each)) for each in zip(size_ZHW, patch_ZHW, strict=True))
    return Tiling((z, h, w), cropped, passes * z * h * w)


def _thick(patch_ZHW: Sequence[int], brain_ZHW: Sequence[int]) -> bool:
    longest = max(patch_ZHW)
    sides = zip(patch_ZHW, brain_ZHW, strict=True)
    return all(2 * side >= longest or side >= size or side == 1 for side, size in sides)


def _sides(size: int, window: int, stride: int) -> Iterator[int]:
    """Lengths of a patch along an axis, so that ever more of them cover it: multiples of the stride, at least two."""
    if window == 1:
        yield 1
        return
    last, least = 0, min(2 * stride, window)
    for count in range(1, size + 2):
        side = max(min(-(-2 * size // (count + 1)), window), least)
        side = min(-(-side // stride) * stride, window)
        if side != last:
            yield side
        if side <= least:
            return
        last = side

"""Tumour regions, label conventions, and the way from one to the other.

The three regions are nested: WT (whole tumour) ⊇ TC (tumour core) ⊇ ET (enhancing tumour). A label map holds each
voxel's innermost tissue: necrotic or non-enhancing core (NCR), oedema (ED) or enhancing tumour (ET).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.errors import InputError, did_you_mean

Mask = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.uint8]
TOUCHING = np.ones((3, 3, 3), np.bool_)
"""Voxels that share a face, an edge or a corner belong to one piece of a mask (26-connected)."""
WHOLE_TO = 1e-3
"""How far a label in a file may be from a whole number, as scale factors leave it."""


class Region(str, Enum):
    """A binary target of the BraTS evaluation; a network segments one of them, or all three."""

    WT = "wt"
    """Whole tumour: NCR, ED and ET."""
    TC = "tc"
    """Tumour core: NCR and ET."""
    ET = "et"
    """Enhancing tumour."""

    @property
    def parent(self) -> Region | None:
        """The region that contains this one; its network runs first (None for WT)."""
        return {Region.WT: None, Region.TC: Region.WT, Region.ET: Region.TC}[self]

    @property
    def depth(self) -> int:
        """Nesting depth: 1 for WT, 2 for TC, 3 for ET; a voxel of depth d lies in every region of depth ≤ d."""
        return {Region.WT: 1, Region.TC: 2, Region.ET: 3}[self]


def groups_of(names: Collection[str], outputs: int) -> list[tuple[Region, ...]]:
    """The regions of each network that segments some of the named ones, in the order of training.

    `outputs`: of each network; 1: a network per region, more: one network of them all.
    """
    regions = tuple(region for region in Region if region.value in names)
    return [regions] if outputs > 1 else [(region,) for region in regions]


def names_of(regions: Iterable[Region]) -> str:
    """What a network of these regions is called: `wt`, or `wt tc et`."""
    return " ".join(region.value for region in regions)


def regions_of(name: str) -> tuple[Region, ...]:
    """The regions of a network that is called so. Raises ValueError for an unknown one."""
    return tuple(Region(each) for each in name.split())


def stem_of(name: str) -> str:
    """How files of a network that is called so begin: `wt`, or `wt-tc-et`."""
    return name.replace(" ", "-")


@dataclass(frozen=True)
class LabelConvention:
    """The integers that a data set writes for the three tissues; 0 is background in all of them."""

    name: str
    ncr: int
    ed: int
    et: int

    @property
    def values(self) -> tuple[int, ...]:
        """The labels that may occur, background included, ascending."""
        return tuple(sorted((0, self.ncr, self.ed, self.et)))

    @property
    def tissues(self) -> dict[str, int]:
        """Tissue name → label."""
        return {"necrotic core": self.ncr, "oedema": self.ed, "enhancing tumour": self.et}


CONVENTIONS = {
    row.name: row
    for row in (
        LabelConvention("brats2020", ncr=1, ed=2, et=4),  # BraTS 2017–2022
        LabelConvention("brats2023", ncr=1, ed=2, et=3),
        LabelConvention("msd", ncr=2, ed=1, et=3),  # Medical Segmentation Decathlon Task01, nnU-Net
    )
}


def convention_of(name: str) -> LabelConvention:
    """The label convention of a name. Raises InputError for a name that is none of CONVENTIONS."""
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise InputError("--labels", repr(name), f"one of {known}", did_you_mean(name, CONVENTIONS, "Use brats2020."))
    return CONVENTIONS[name]


def as_labels(values: npt.NDArray[Any], where: object) -> LabelMap:
    """A file's numbers as labels: uint8, of the same shape.

    `values`: of any real type; what is within WHOLE_TO of a whole number, as a scale factor in the file may leave it,
    is rounded. `where` names their origin in errors. Raises InputError where one is no whole number from 0 to 255.
    """
    nearest = np.rint(values) if values.dtype.kind == "f" else values
    whole = np.abs(values - nearest) <= WHOLE_TO
    inside = (nearest >= 0) & (nearest <= 255)
    wrong = values[~(whole & inside)]
    if wrong.size:
        examples = [str(value).removesuffix(".0") for value in np.unique(wrong)[:4]]
        listed = ", ".join(examples[:3]) + (" and others" if len(examples) > 3 else "")
        found = f"{wrong.size} voxels of value {listed}"
        advice = "Give these voxels the label of their tissue, or 0 for background."
        if not np.all(whole):
            advice = "Turn probabilities into labels; resample label maps to their nearest neighbour."
        raise InputError(where, found, "whole-number labels from 0 to 255", advice)
    return nearest.astype(np.uint8)


def warnings_of(label: LabelMap, convention: LabelConvention) -> list[str]:
    """A warning where a label map may be the mask of one region, which would be taken for one tissue."""
    if label.max(initial=0) != 1:
        return []
    (tissue,) = (name for name, value in convention.tissues.items() if value == 1)
    return [f"its only label is 1, {tissue}: a mask of another region would be taken for that"]


def fuse_regions(masks: Mapping[Region, Mask], convention: LabelConvention, nested: bool = True) -> LabelMap:
    """Fuse three binary masks into one label map.

    `masks`: one boolean array per region, all of one shape. `nested`: TC counts inside WT only and ET inside TC only;
    otherwise WT, TC and ET are painted in this order, as MONAI's bundle and nnU-Net do. Returns uint8 of that shape.
    """
    whole = masks[Region.WT]
    core = masks[Region.TC] & whole if nested else masks[Region.TC]
    label = np.zeros(whole.shape, np.uint8)
    label[whole] = convention.ed
    label[core] = convention.ncr
    label[masks[Region.ET] & core if nested else masks[Region.ET]] = convention.et
    return label


def of_tissues(logit_4ZHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits of WT, TC and ET, [3, …], from those of background, NCR, ED and ET, [4, …], of which one is true.

    Each is positive exactly where the most probable of the four lies in the region.
    """
    background, core, oedema, enhancing = logit_4ZHW
    inner = np.maximum(core, enhancing)
    whole = np.maximum(inner, oedema) - background
    return np.stack([whole, inner - np.maximum(background, oedema), enhancing - np.maximum.reduce(logit_4ZHW[:3])])


def nesting_depth(masks: Mapping[Region, Mask]) -> LabelMap:
    """How many of the three nested regions hold each voxel: uint8, 0 to 3, of the masks' shape."""
    depth: LabelMap = np.stack([masks[region] for region in Region]).sum(axis=0, dtype=np.uint8)
    return depth


def split_regions(label: npt.NDArray[np.integer], convention: LabelConvention, where: object) -> dict[Region, Mask]:
    """Split a label map into its three nested masks.

    `label`: integers, any shape; `where` names its origin in errors.
    Raises InputError when it holds a value that the convention does not know.
    """
    present = _values_in(label)
    unknown = sorted(present - set(convention.values))
    if unknown:
        fitting = [c.name for c in CONVENTIONS.values() if present <= set(c.values)]
        advice = "Relabel the file."
        if fitting:
            advice = f"Pass --labels {' or '.join(fitting)} if that is its convention."
        elif len(present) <= 2:
            advice = "A mask of one region does not tell the tissues apart: give a label map that does."
        raise InputError(
            where,
            f"unknown label{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))}",
            f"only {', '.join(map(str, convention.values))} ({convention.name})",
            advice,
        )
    enhancing = label == convention.et
    core = enhancing | (label == convention.ncr)
    return {Region.WT: core | (label == convention.ed), Region.TC: core, Region.ET: enhancing}


def _values_in(label: npt.NDArray[np.integer]) -> set[int]:
    """The different values of a label map; of uint8 without sorting, which takes four times as long."""
    if label.dtype != np.uint8:
        return set(np.unique(label).tolist())
    found = np.zeros(256, np.bool_)
    found[label] = True
    return set(np.flatnonzero(found).tolist())


def format_millilitres(volume_ml: float) -> str:
    """A volume with one decimal, or with as many as show two digits of a small one: `12.3`, `0.031`; `0.0` for none."""
    decimals = 1 if volume_ml >= 0.1 or volume_ml <= 0 else 1 - math.floor(math.log10(volume_ml))
    return f"{volume_ml:.{decimals}f}"

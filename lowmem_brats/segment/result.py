"""The result of segmenting a case: its label map, volumes and warnings, and how it was made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.case import Case
from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.labels import convention_of, format_millilitres
from lowmem_brats.data.nifti import label_image, write_label_map
from lowmem_brats.errors import InputError
from lowmem_brats.measure.label_map import Measurements, measure_volume
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.segment.result_path import names_label_map


@dataclass
class SegmentReport:
    """Everything that happened to one case."""

    case_id: str
    weights: str
    """Name of the set, or the names of several."""
    labels: str
    """Name of the label convention, a key of `labels.CONVENTIONS`."""
    checksums: list[tuple[str, str]]
    """Of each weights file, the names of its regions and its sha256."""
    vram: str
    """The budget as the user wrote it."""
    versions: dict[str, str]
    """Name → version: this program and the libraries that compute."""
    plan: InferencePlan
    """Made when the size of the brain is known."""
    seconds: dict[str, float]
    """Per stage, in order; `load` is reading and slicing, and loading torch's planning tools."""
    output: str = ""
    """Path of the label map; empty until it is saved."""
    slices: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per network, named by its regions: `run`, in whole or in part, and `skipped`, of the slices that hold brain."""
    looked_at: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    """Per network and view: the slices of the volume, in LPS order, that were looked at, in whole or in part, as
    [first, one after the last] of each run of them."""
    pixels: dict[str, int] = field(default_factory=dict)
    """Per network: those of all slices, or parts of slices, that it was run on."""
    members: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a bank, for its decision network and each member: the `slices` that it was run on, `gmac`, 10⁹ multiply-adds,
    and `seconds`."""
    boxes: dict[str, list[list[list[int]]]] = field(default_factory=dict)
    """Per network that looks closely inside boxes only: for each box its first voxel and the one after its last, as
    [x, y, z] of the volume in LPS order."""
    patches: dict[str, int] = field(default_factory=dict)
    """Per network that sees patches: how many of them it was run on."""
    voxels: dict[str, int] = field(default_factory=dict)
    """Per tissue."""
    millilitres: dict[str, float] = field(default_factory=dict)
    """Per tissue."""
    doubtful_millilitres: dict[str, float] = field(default_factory=dict)
    """What `drop_doubtful` took away: `wt`, islands that became background; `et`, which became core."""
    expected_dice: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per region that was found, where the weights tell: `dice`; four cases of five lie between `low` and `high`."""
    min_confidence: float = 0.0
    """The share that `drop_doubtful` was called with."""
    min_confidence_of: str = ""
    """Where that share comes from: `--min-confidence`, or the name of the weights."""
    peak_bytes: int = 0
    """Most bytes of tensors on the device at once, to compare with `plan.predicted_bytes`."""
    cuda_peak: dict[str, int] | None = None
    """On a card: most bytes reserved, and used as the driver sees it."""
    process_peak_bytes: int | None = None
    """Most resident host memory of the whole process so far, torch itself included; None where unknown."""
    warnings: list[str] = field(default_factory=list)
    """What may be wrong with the images or the result, and every fallback."""


@dataclass(frozen=True, repr=False)
class Segmentation:
    """A segmented case in memory."""

    case: Case
    """The images, in LPS order."""
    label_XYZ: npt.NDArray[np.uint8]
    """The label map in LPS order, as `case.images_CXYZ`."""
    report: SegmentReport
    origin: str = ""
    """Checksum of all that it was made from (`segment.case.origin`); empty if the images were not read from files."""

    @property
    def label(self) -> npt.NDArray[np.uint8]:
        """The label map in the shape and axis order of the T1 image; without one, of the first in T1ce, T2, FLAIR."""
        return np.asarray(label_image(self.label_XYZ, self.case.reference).dataobj, np.uint8)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 × 4: voxel of `label` → position, in the unit of length of that image's header, nearly always mm."""
        return np.asarray(self.case.reference.header.get_best_affine(), np.float64)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Tissue → volume in mL: necrotic core, oedema, enhancing tumour."""
        return self.report.millilitres

    @property
    def volume(self) -> Volume:
        """The label map in LPS order, with its place in space."""
        grid = self.case.reference
        return Volume(self.label_XYZ, grid.affine, grid.header, grid.to_disk)

    @cached_property
    def measurements(self) -> Measurements:
        """Volumes of regions and tissues, and the diameters, place and side of each enhancing lesion."""
        convention = convention_of(self.report.labels)
        return measure_volume(self.report.case_id, self.volume, convention, self.case.brain_XYZ)

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with the images or the result, and every fallback."""
        return self.report.warnings

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the label map as .nii or .nii.gz in the grid of `label`: the whole file, or none.

        Raises InputError for another suffix, a folder that cannot be written to, and, unless `overwrite`, an existing
        file.
        """
        if not names_label_map(path):
            raise InputError(path, "no file for a label map", "a .nii or .nii.gz file", "Name the file.")
        write_label_map(self.label_XYZ, self.case.reference, Path(path), self.origin, overwrite)
        self.report.output = str(path)

    def __repr__(self) -> str:
        """Volumes in one line, then each warning in a line."""
        volumes = ", ".join(f"{tissue} {format_millilitres(ml)} mL" for tissue, ml in self.volumes_ml.items())
        return "\n".join([f"{self.report.case_id}: {volumes}", *(f"warning: {text}" for text in self.warnings)])

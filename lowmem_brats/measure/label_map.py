"""Measure label maps: volumes and enhancing lesions of each, written out as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from lowmem_brats.data.case import Case
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.labels import LabelConvention, Mask, Region, split_regions, warnings_of
from lowmem_brats.data.nifti import read_label
from lowmem_brats.measure.lesions import Lesion, find_lesions, middle_of, sum_of_products

LARGEST = ("longest_mm", "perpendicular_mm", "product_mm2", "slice", "longest_in_space_mm", "side")
"""Fields of the largest lesion that are columns of the CSV."""


@dataclass(frozen=True)
class Measurements:
    """What was measured in one label map."""

    case_id: str
    file: str
    """Its path; empty for one in memory."""
    volumes_ml: dict[str, float]
    """Volume of each region, `wt`, `tc`, `et`, and of each tissue, `necrotic core`, `oedema`; ET is a tissue too."""
    sum_of_products_mm2: float
    """Of the measurable lesions, at most of the five largest."""
    lesions: list[Lesion]
    """The connected pieces of enhancing tumour; the one with the largest product comes first."""
    warnings: tuple[str, ...] = ()
    """What may be wrong with the file."""

    @property
    def measurable(self) -> int:
        """The number of lesions that are measurable by RANO."""
        return sum(lesion.measurable for lesion in self.lesions)


def measure_volume(
    case_id: str,
    volume: Volume,
    convention: LabelConvention,
    brain_XYZ: Mask | None = None,
    path: Path | None = None,
) -> Measurements:
    """Measure one label map.

    `volume`: its `data` are uint8 labels in LPS order; `brain_XYZ`: the voxels of the brain, which tell left from
    right, None where no image shows it; `path`: the label map's file.
    Raises InputError for a label that the convention does not know.
    """
    # In the box of the tumour everything is several times faster, and positions are moved back.
    box = (ndimage.find_objects((volume.data > 0).view(np.uint8)) or [(slice(0, 1),) * 3])[0]
    masks = split_regions(volume.data[box], convention, path or case_id)
    to_volume = np.eye(4)
    to_volume[:3, 3] = [part.start for part in box]
    middle_mm = None if brain_XYZ is None or not brain_XYZ.any() else middle_of(brain_XYZ, volume.affine)
    core_XYZ = masks[Region.TC] & ~masks[Region.ET]
    found = find_lesions(masks[Region.ET], core_XYZ, volume.affine @ to_volume, volume.spacing_mm, middle_mm)
    lesions = [replace(lesion, slice=lesion.slice + box[2].start) for lesion in found]
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    return Measurements(
        case_id,
        "" if path is None else str(path),
        {name: float(np.count_nonzero(mask) * voxel_ml) for name, mask in _volumes(masks).items()},
        sum_of_products(lesions),
        lesions,
    )


def measure_file(case_id: str, path: Path, convention: LabelConvention, case: Case | None = None) -> Measurements:
    """Read a label map and measure it.

    `case`: the patient's images on the same grid, which tell left from right. Raises InputError for a file that cannot
    be read, a label that the convention does not know, or another grid than that of the images.
    """
    volume = read_label(path)
    if case:
        check_same_grid(volume, path, case.reference, Path(case.case_id))
    warnings = (*volume.warnings, *warnings_of(volume.data, convention))
    measured = measure_volume(case_id, volume, convention, case.brain_XYZ if case else None, path)
    return replace(measured, warnings=warnings)


def _volumes(masks: dict[Region, Mask]) -> dict[str, Mask]:
    """What each volume of Measurements is the volume of."""
    whole, core, enhancing = (masks[region] for region in Region)
    regions = {region.value: mask for region, mask in masks.items()}
    return regions | {"necrotic core": core & ~enhancing, "oedema": whole & ~core}


def to_csv(measured: list[Measurements]) -> str:
    """The measurements as CSV: a header, and a row per label map, with its largest lesion where it has one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    volumes = [f"{name.replace(' ', '_')}_ml" for name in measured[0].volumes_ml]
    axes = [f"centroid_ras_mm_{axis}" for axis in "xyz"]
    writer.writerow(("case", "file", *volumes, "lesions", "measurable", "sum_of_products_mm2", *LARGEST, *axes))
    for each in measured:
        row = [each.case_id, each.file, *each.volumes_ml.values()]
        row += [len(each.lesions), each.measurable, each.sum_of_products_mm2]
        for lesion in each.lesions[:1]:
            row += [*(getattr(lesion, name) for name in LARGEST), *lesion.centroid_ras_mm]
        writer.writerow(row)
    return text.getvalue()


def to_json(measured: list[Measurements]) -> str:
    """The measurements as JSON: `{"label_maps": [...]}`, in each the fields of Measurements and of every Lesion."""
    return json.dumps({"label_maps": [asdict(each) for each in measured]}, indent=2, allow_nan=False) + "\n"

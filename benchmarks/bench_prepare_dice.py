"""Measure how much Dice is lost on the way through `prepare`: degraded BraTS cases, prepared, segmented, scored.

    python benchmarks/bench_prepare_dice.py CASES_FOLDER CASE... -o results/prepare_dice_DATE.json

Each case is turned by 10° and moved by 5 mm, and T1, T2 and FLAIR by 6° and 6 mm more; then it is sampled in thick
slices or its intensities are spoilt. The labels are carried along, and the result is scored on the raw T1ce's grid,
and once more after it is carried back onto the original grid. A thick T1ce is prepared in two ways: on its own slices,
as the program does, and resampled to 1 mm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from bench_prepare import rigid
from PIL import Image

from lowmem_brats import segment_tumour
from lowmem_brats.config import MODALITIES, PrepareConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.geometry import Affine, Volume
from lowmem_brats.data.labels import CONVENTIONS, LabelMap, split_regions
from lowmem_brats.data.nifti import read_label, read_volume
from lowmem_brats.prepare import itk
from lowmem_brats.prepare.case_folder import write_case
from lowmem_brats.prepare.run import prepare_study
from lowmem_brats.segment.native import carried

LABELS = CONVENTIONS["brats2020"]
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Between RAS+ and LPS+."""
OTHERS = ("t1", "t2", "flair")
WAYS: dict[str, tuple[dict[str, float], bool, tuple[float, ...]]] = {
    "1 mm": ({}, False, (itk.THICK_MM,)),
    "T1, T2, FLAIR 5 mm": (dict.fromkeys(OTHERS, 5.0), False, (itk.THICK_MM,)),
    "bias field, min-max": ({}, True, (itk.THICK_MM,)),
    "T1ce 3 mm": ({"t1ce": 3.0}, False, (itk.THICK_MM, np.inf)),
    "T1ce 5 mm": ({"t1ce": 5.0}, False, (itk.THICK_MM, np.inf)),
}
"""Name → distance of slices by modality, whether intensities are spoilt, from which distance on slices are kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for case in options.cases:
        files = find_case(options.folder / case)
        volumes = {modality: read_volume(path) for modality, path in files.images.items()}
        label = read_label(next((options.folder / case).glob("*seg.nii*")))
        label.data[label.data == 3] = LABELS.et
        found = dice(segment_tumour(options.folder / case).label_XYZ, label.data)
        rows.append({"case": case, "what": "as it is", "dice_on_raw_t1ce": found, "dice_on_original": found})
        for way in options.ways:
            rows += degraded(case, way, volumes, label)
            done = {"what": "Dice lost by prepare", "date": time.strftime("%Y-%m-%d"), "rows": rows}
            options.output.write_text(json.dumps(done, indent=1) + "\n")


def degraded(case: str, way: str, volumes: dict[str, Volume], label: Volume) -> list[dict[str, object]]:
    """Prepare and segment a case degraded in one way: a row for each way of handling T1ce's slices."""
    thick, spoilt, kept_from = WAYS[way]
    rng, t1ce, rows = np.random.default_rng(sum(map(ord, case))), volumes["t1ce"], []
    middle = (FLIP @ t1ce.affine @ [*(np.array(t1ce.data.shape) - 1) / 2, 1])[:3]
    base = turned(rng, 10.0, 5.0, middle)
    moved = FLIP @ matrix(base) @ FLIP
    with tempfile.TemporaryDirectory() as work:
        study = Path(work, "study")
        study.mkdir()
        for modality in MODALITIES:
            own = [] if modality == "t1ce" else [turned(rng, 6.0, 6.0, middle)]
            image = scanned(volumes[modality], sitk.CompositeTransform([*own, base]), thick.get(modality, 1.0))
            sitk.WriteImage(spoil(image, rng) if spoilt else image, str(study / f"{modality}.nii.gz"))
        for number, distance_mm in enumerate(kept_from):
            itk.THICK_MM = distance_mm
            prepared = prepare_study(study, {}, (), PrepareConfig(force=True))
            write_case(prepared, Path(work, f"case{number}"), Image.new("RGB", (4, 4)))
            result = segment_tumour(Path(work, f"case{number}"))
            affine = result.case.reference.affine
            on_raw = carried(result.label_XYZ, affine, prepared.t1ce)
            on_original = carried(result.label_XYZ, np.linalg.inv(moved) @ affine, label)
            rows.append(
                {
                    "case": case,
                    "what": way,
                    "grid_mm": [round(size, 2) for size in prepared.grid.spacing_mm],
                    "problems": prepared.problems,
                    "dice_on_raw_t1ce": dice(on_raw, carried(label.data, moved @ label.affine, prepared.t1ce)),
                    "dice_on_original": dice(on_original, label.data),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    itk.THICK_MM = kept_from[0]
    return rows


def turned(rng: np.random.Generator, degrees: float, shift_mm: float, middle: np.ndarray) -> sitk.Euler3DTransform:
    """A rotation about a random axis through `middle` and a shift in a random direction."""
    axis, way = (each / np.linalg.norm(each) for each in rng.normal(size=(2, 3)))
    turn = sitk.VersorRigid3DTransform()
    turn.SetCenter(middle.tolist())
    turn.SetRotation(axis.tolist(), np.radians(degrees))
    turn.SetTranslation((way * shift_mm).tolist())
    return rigid(turn)


def matrix(transform: sitk.Transform) -> Affine:
    """4 × 4, LPS+ mm."""
    zero = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    found = np.eye(4)
    found[:3, :3] = np.stack([np.array(transform.TransformPoint(axis)) - zero for axis in np.eye(3).tolist()], axis=1)
    found[:3, 3] = zero
    return found


def scanned(volume: Volume, move: sitk.Transform, slice_mm: float) -> sitk.Image:
    """The image of a brain that was moved, in slices of `slice_mm`; 0 outside the brain, with a sharp edge."""
    image, brain = (itk.to_itk(data, volume.affine) for data in (volume.data, volume.data != 0))
    if slice_mm > 1:
        image = sitk.SmoothingRecursiveGaussian(image, [0.01, 0.01, 0.4 * slice_mm])  # a slice shows what lies in it
    spacing_mm = (1.0, 1.0, slice_mm)
    size = np.ceil(np.array(image.GetSize()) * image.GetSpacing() / np.array(spacing_mm)).astype(int).tolist()
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing_mm)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.GetOrigin())
    seen, inside = (sitk.Resample(each, grid, move.GetInverse(), sitk.sitkLinear, 0.0) for each in (image, brain))
    return sitk.Maximum(seen, 1.0) * sitk.Cast(inside > 0.5, sitk.sitkFloat32)


def spoil(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """A smooth bias field of up to a factor of 1.6 either way, and intensities from 0 to 255."""
    data = sitk.GetArrayFromImage(image)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij")
    field = sum(weight * term for weight, term in zip(rng.normal(size=6), (x, y, z, x * y, x**2, z**2), strict=True))
    field -= field.mean()
    data *= np.exp(np.log(1.6) * field / np.abs(field).max())
    made = sitk.GetImageFromArray((255 * data / data.max()).astype(np.float32))
    made.CopyInformation(image)
    return made


def dice(found: LabelMap, true: LabelMap) -> dict[str, float]:
    """Dice of each region."""
    pairs = zip(
        split_regions(found, LABELS, "result").items(), split_regions(true, LABELS, "labels").values(), strict=True
    )
    return {
        region.name: round(2 * float((first & second).sum()) / max(int(first.sum() + second.sum()), 1), 4)
        for (region, first), second in pairs
    }


if __name__ == "__main__":
    main()

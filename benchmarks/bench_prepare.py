"""Measure `lowmem-brats prepare`: a raw study end to end, registrations of known truth, and what the gate lets through.

    python benchmarks/bench_prepare.py RAW_STUDY CASES_FOLDER --cases 6 -o results/prepare_cpu_DATE.json

Truth: T1, T2 and FLAIR of BraTS cases are moved by random rigid transforms of up to 20° and 15 mm and resampled to
0.9 × 0.9 × 5 mm; the error is the mean distance, over the brain, between where a voxel was moved and where the
registration found it. Gate: the same images judged registered, unregistered, and broken in known ways.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from lowmem_brats.config import PrepareConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.nifti import read_volume
from lowmem_brats.prepare import itk
from lowmem_brats.prepare.case_folder import record_of
from lowmem_brats.prepare.extra import versions
from lowmem_brats.prepare.gate import judge_modality
from lowmem_brats.prepare.lay import Anchor, kept, laid_by, lay_on
from lowmem_brats.prepare.register import described
from lowmem_brats.prepare.run import prepare_study

MOVED = ("t1", "t2", "flair")
DEGREES, SHIFT_MM, SCANNED_MM = 20.0, 15.0, (0.9, 0.9, 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--cases", dest="count", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, object] = {
        "what": "prepare: end to end, registration truth, gate",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, other programs running beside",
        "versions": versions(),
    }
    folders = sorted(path for path in options.cases.iterdir() if path.is_dir())
    folders = folders[:: max(1, len(folders) // options.count)][: options.count]
    with itk.threads():
        found["truth"] = truth(folders)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    found["raw"] = raw(options.raw)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


def raw(study: Path) -> dict[str, object]:
    """The whole preparation of one raw study."""
    cpu = time.process_time()
    prepared = prepare_study(study, {}, (), PrepareConfig())
    record = record_of(prepared)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kept_of_record = {name: record[name] for name in ("registration", "brain", "grid", "seconds", "warnings")}
    return kept_of_record | {"cpu_seconds": round(time.process_time() - cpu, 1), "peak_mib_of_process": round(peak_mib)}


def truth(folders: list[Path]) -> list[dict[str, object]]:
    """One row per case and modality."""
    rows, rng = [], np.random.default_rng(0)
    for folder in folders:
        files = find_case(folder).images
        volumes = {modality: read_volume(path) for modality, path in files.items()}
        t1ce = volumes["t1ce"]
        brain_XYZ = t1ce.data != 0
        grid = itk.grid_around(t1ce)
        image_XYZ = kept(np.asarray(t1ce.data, np.float32), brain_XYZ)
        anchor = Anchor(itk.to_itk(t1ce.data, t1ce.affine), grid, brain_XYZ, image_XYZ)
        points_mm = brain_points(brain_XYZ, t1ce.affine, rng)
        for modality in MOVED:
            moving, true = scanned(itk.to_itk(volumes[modality].data, volumes[modality].affine), points_mm, rng)
            began, cpu = time.perf_counter(), time.process_time()
            laid = lay_on(modality, moving, anchor)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            rows.append(
                {
                    "case": folder.name,
                    "modality": modality,
                    "moved": described(true, anchor.fixed, "").__dict__ | {"transform": None},
                    "error_mm": round(distance(laid.registration.transform, true, points_mm), 3),
                    "start": laid.registration.start,
                    "seconds": round(seconds, 1),
                    "cpu_seconds": round(cpu, 1),
                    "registered": judged(modality, laid.registration.transform, moving, anchor),
                    "unregistered": judged(modality, sitk.Euler3DTransform(), moving, anchor),
                    "broken": {
                        name: judged(modality, transform, image, anchor)
                        for name, (transform, image) in broken(
                            laid.registration.transform, moving, points_mm, rng
                        ).items()
                    },
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def scanned(image: sitk.Image, points_mm: np.ndarray, rng: np.random.Generator) -> tuple[sitk.Image, sitk.Transform]:
    """The image moved and sampled as a clinical scan, and the transform that a registration has to find."""
    true = random_rigid(points_mm, rng, DEGREES, SHIFT_MM)
    size = np.ceil(np.array(image.GetSize()) * image.GetSpacing() / np.array(SCANNED_MM)).astype(int).tolist()
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(SCANNED_MM)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.GetOrigin())
    thick = sitk.SmoothingRecursiveGaussian(image, [0.4, 0.4, 2.0])  # a slice shows the mean of what lies in it
    moved = sitk.Resample(thick, grid, true.GetInverse(), sitk.sitkLinear, 0.0)
    return moved, true


def random_rigid(points_mm: np.ndarray, rng: np.random.Generator, degrees: float, shift_mm: float) -> sitk.Transform:
    """Turn about a random axis through the brain's middle by up to `degrees`, then shift by up to `shift_mm`."""
    axis, way = (each / np.linalg.norm(each) for each in rng.normal(size=(2, 3)))
    turn = sitk.VersorRigid3DTransform()
    turn.SetCenter(points_mm.mean(0).tolist())
    turn.SetRotation(axis.tolist(), np.radians(degrees) * float(rng.uniform(0.3, 1)))
    turn.SetTranslation((way * shift_mm * rng.uniform(0.3, 1)).tolist())
    return rigid(turn)


def rigid(transform: sitk.Transform) -> sitk.Euler3DTransform:
    """As Euler angles."""
    made = sitk.Euler3DTransform()
    made.SetCenter(transform.GetCenter())
    made.SetMatrix(transform.GetMatrix(), 1e-6)
    made.SetTranslation(transform.GetTranslation())
    return made


def broken(
    good: sitk.Euler3DTransform, moving: sitk.Image, points_mm: np.ndarray, rng: np.random.Generator
) -> dict[str, tuple[sitk.Transform, sitk.Image]]:
    """Registrations that are wrong in known ways: name → transform, image."""
    found = {}
    for name, degrees, shift_mm in (("8 mm aside", 0.0, 8.0), ("turned by 12°", 12.0, 0.0), ("5 mm and 8°", 8.0, 5.0)):
        axis, way = (each / np.linalg.norm(each) for each in rng.normal(size=(2, 3)))
        turn = sitk.VersorRigid3DTransform()
        turn.SetCenter(points_mm.mean(0).tolist())
        turn.SetRotation(axis.tolist(), np.radians(degrees))
        turn.SetTranslation((way * shift_mm).tolist())
        matrix = np.array(good.GetMatrix()).reshape(3, 3) @ np.array(turn.GetMatrix()).reshape(3, 3)
        wrong = sitk.Euler3DTransform()
        wrong.SetMatrix(matrix.ravel().tolist(), 1e-6)
        zero = np.array(good.TransformPoint(turn.TransformPoint((0.0, 0.0, 0.0))))
        wrong.SetTranslation(zero.tolist())
        found[name] = wrong, moving
    for name, axis in (("left and right swapped", 0), ("upside down", 2)):
        flipped = sitk.Flip(moving, [each == axis for each in range(3)])
        flipped.CopyInformation(moving)
        found[name] = good, flipped
    return found


def judged(modality: str, transform: sitk.Transform, moving: sitk.Image, anchor: Anchor) -> dict[str, object]:
    """What the gate says of a transform."""
    measures = laid_by(described(transform, anchor.fixed, ""), moving, anchor).measures
    refused = bool(judge_modality(modality, measures))
    return {"over_probes": round(measures.over_probes, 3), "refused": refused}


def brain_points(brain_XYZ: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The places, LPS+ mm, of 2000 voxels of the brain."""
    voxels = np.argwhere(brain_XYZ)
    chosen = voxels[rng.integers(len(voxels), size=2000)]
    return (chosen @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)


def distance(found: sitk.Transform, true: sitk.Transform, points_mm: np.ndarray) -> float:
    """Mean distance in mm between where two transforms move points."""
    ends = [[transform.TransformPoint(point.tolist()) for point in points_mm] for transform in (found, true)]
    return float(np.linalg.norm(np.subtract(*ends), axis=1).mean())


if __name__ == "__main__":
    main()

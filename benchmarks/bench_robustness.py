"""How much accuracy a set loses on images that are worse than those it was scored on.

    python benchmarks/bench_robustness.py DATA WORK OUT.json [--weights SET...] [--tta]

DATA: a folder of labelled BraTS cases (240 × 240 × 155, 1 mm) that the weights never saw. Every scenario changes all
cases in the same way, label maps too where geometry changes, and runs them from NIfTI to NIfTI. WORK keeps what was
made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from bench_accuracy import per_patient, score

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import MODALITIES, SegmentConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.data.slices import zscore_brain
from lowmem_brats.evaluate.pairs import summarise
from lowmem_brats.train.augment import BIAS_MEAN

Volume = npt.NDArray[np.float32]
BIAS = 0.4
"""Of the logarithm of the field, from the middle of the image to either side."""


def without(lost: str) -> Callable[[str, Volume], Volume]:
    """A modality that was not acquired."""
    return lambda modality, image_XYZ: image_XYZ * (modality != lost)


def mirrored(modality: str, array_XYZ: Volume) -> Volume:
    """Left and right swapped."""
    return array_XYZ[::-1]


def thick(modality: str, array_XYZ: Volume) -> Volume:
    """Every second axial slice."""
    return array_XYZ[:, :, ::2]


def biased(modality: str, image_XYZ: Volume) -> Volume:
    """A coil to one side, another for each modality; z-scored values hold no zero of intensity, so one is assumed."""
    if modality == "seg":
        return image_XYZ
    axis = MODALITIES.index(modality) % 3
    ramp = np.linspace(-BIAS, BIAS, image_XYZ.shape[axis], dtype=np.float32)
    field_XYZ = np.exp(ramp).reshape([-1 if i == axis else 1 for i in range(3)])
    scored_XYZ = zscore_brain(image_XYZ[None])[0]
    return np.where(image_XYZ != 0, np.maximum((scored_XYZ + BIAS_MEAN) * field_XYZ, 1e-3), 0).astype(np.float32)


SCENARIOS: dict[str, tuple[Callable[[str, Volume], Volume], tuple[int, int, int]]] = {
    "as they are": (lambda modality, array_XYZ: array_XYZ, (1, 1, 1)),
    **{f"no {modality}": (without(modality), (1, 1, 1)) for modality in MODALITIES},
    "left and right swapped": (mirrored, (1, 1, 1)),
    "slices of 2 mm": (thick, (1, 1, 2)),
    "strong bias field": (biased, (1, 1, 1)),
}
"""What happens to each array, and by what the voxels grow."""


def change(source: Path, target: Path, modality: str, scenario: str) -> None:
    """Write one changed file; none for an image that holds nothing, as if it had not been acquired."""
    make, grow = SCENARIOS[scenario]
    image = nibabel.load(source)
    array_XYZ = make(modality, np.asarray(image.dataobj, np.float32))
    if not array_XYZ.any() and modality != "seg":
        return
    affine = image.affine @ np.diag([*grow, 1])
    nibabel.save(nibabel.Nifti1Image(array_XYZ.astype(np.uint8 if modality == "seg" else np.float32), affine), target)


def run_scenario(name: str, data: Path, work: Path, settings: SegmentConfig) -> dict[str, object]:
    """Change, segment and score all cases."""
    changed = []
    for files in read_cases(data)[0]:
        folder = work / name.replace(" ", "-") / files.case_id
        folder.mkdir(parents=True, exist_ok=True)
        for modality, path in {**files.images, "seg": files.labels[0]}.items():
            target = folder / f"{files.case_id}_{modality}.nii.gz"
            if not target.exists():
                change(path, target, modality, name)
        changed.append(find_case(folder, allow_missing=MODALITIES))
    scores, _ = score(changed, work / "results" / name.replace(" ", "-"), settings)
    mean = {region.value: round(row.dice, 4) for region, row in summarise(scores).mean.items()}
    return {"scenario": name, "mean_dice": mean, "dice": per_patient(scores, "dice")}


def main() -> None:
    """Run all scenarios and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", nargs="+", default=())
    parser.add_argument("--tta", action="store_true")
    options = parser.parse_args()
    settings = SegmentConfig(weights=options.weights, tta=options.tta, device="cpu")
    rows = []
    for name in SCENARIOS:
        rows.append(run_scenario(name, options.data, options.work, settings))
        print(f"{name:25s}", *(f"{key} {value:.3f}" for key, value in rows[-1]["mean_dice"].items()))  # type: ignore[attr-defined]
    options.out.write_text(json.dumps(conditions("cpu") | {"tta": options.tta, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Score predicted label maps against reference label maps: pair the files, score each patient, average, write out."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path

from lowmem_brats.data.case_files import kind_of, niftis, stem
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.labels import LabelConvention, Region, split_regions, warnings_of
from lowmem_brats.data.nifti import read_label
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate.lesion_wise import COLUMNS, LesionScore, mean_score, score_lesions
from lowmem_brats.evaluate.metrics import RegionScore, score_region

MEASURES = tuple(field.name for field in fields(RegionScore))


@dataclass(frozen=True)
class LabelledVolume:
    """A label map, and how to read it."""

    volume: Volume
    """`data`: uint8, in LPS order."""
    convention: LabelConvention
    path: Path
    """What to call it in errors and warnings."""


@dataclass(frozen=True)
class PatientScores:
    """The scores of one patient."""

    case_id: str
    """Name of the patient's scan, as `pair_files` finds it."""
    regions: dict[Region, RegionScore]
    """One score per region."""
    warnings: tuple[str, ...] = ()
    """What may be wrong with the patient's files."""
    lesions: dict[Region, LesionScore] = field(default_factory=dict)
    """The lesions of each region, where they were asked for."""

    def __getitem__(self, region: str) -> RegionScore:
        """The score of a region: `wt`, `tc` or `et`."""
        return self.regions[Region(region)]


@dataclass(frozen=True)
class Summary:
    """Scores over patients, each patient counting the same."""

    patients: int
    """How many were scored."""
    mean: dict[Region, RegionScore]
    """Mean of each measure."""
    std: dict[Region, RegionScore]
    """Sample standard deviation (n − 1 in the denominator) of each measure; 0 for a single patient."""
    lesions: dict[Region, LesionScore] = field(default_factory=dict)
    """Mean of each measure of the lesions over the patients who have it, where they were asked for."""


def evaluate_pairs(
    pairs: list[tuple[str, Path, Path]],
    predicted_convention: LabelConvention,
    reference_convention: LabelConvention,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    lesion_wise: bool = False,
) -> list[PatientScores]:
    """Read and score the pairs of `pair_files` one after the other; only one pair is in memory at a time.

    `lesion_wise`: score lesions too, as `score_lesions`. `on_progress(done, total)` is called after each patient.
    Raises InputError for a file that cannot be read, a pair of different grids, or a label unknown to its convention.
    """
    scores = []
    for case_id, *paths in pairs:
        predicted, reference = (
            LabelledVolume(read_label(path), convention, path)
            for path, convention in zip(paths, (predicted_convention, reference_convention), strict=True)
        )
        scores.append(score_patient(case_id, predicted, reference, lesion_wise))
        on_progress(len(scores), len(pairs))
    return scores


def score_patient(
    case_id: str, predicted: LabelledVolume, reference: LabelledVolume, lesion_wise: bool = False
) -> PatientScores:
    """Score the label map of one patient; `lesion_wise`: and its lesions.

    Raises InputError for different grids, or a label unknown to its convention.
    """
    check_same_grid(predicted.volume, predicted.path, reference.volume, reference.path)
    masks, warnings = [], []
    for each in (predicted, reference):
        masks.append(split_regions(each.volume.data, each.convention, each.path))
        found = [*each.volume.warnings, *warnings_of(each.volume.data, each.convention)]
        warnings += [f"{each.path}: {text}" for text in found]
    spacing_mm = reference.volume.spacing_mm
    regions = {region: score_region(masks[0][region], masks[1][region], spacing_mm) for region in Region}
    lesions = score_lesions(masks[0], masks[1], spacing_mm) if lesion_wise else {}
    return PatientScores(case_id, regions, tuple(warnings), lesions)


def summarise(scores: list[PatientScores]) -> Summary:
    """Mean and standard deviation of each measure of each region; `scores`: at least one patient."""
    mean, std = {}, {}
    for region in Region:
        columns = list(zip(*(astuple(patient.regions[region]) for patient in scores), strict=True))
        mean[region] = RegionScore(*map(statistics.fmean, columns))
        std[region] = RegionScore(*(statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns))
    lesions = {region: mean_score([patient.lesions[region] for patient in scores]) for region in scores[0].lesions}
    return Summary(len(scores), mean, std, lesions)


def to_csv(scores: list[PatientScores], summary: Summary) -> str:
    """The scores as CSV: a header, a row per patient and region, then the rows `mean` and `std` per region.

    Scores of lesions stand in further columns, empty where there are none.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "region", *MEASURES, *(COLUMNS.values() if summary.lesions else ())))
    groups = [(patient.case_id, patient.regions, patient.lesions) for patient in scores]
    for name, regions, lesions in (*groups, ("mean", summary.mean, summary.lesions), ("std", summary.std, {})):
        for region, score in regions.items():
            of_lesions = astuple(lesions[region]) if lesions else [None] * (len(COLUMNS) if summary.lesions else 0)
            writer.writerow((name, region.value, *astuple(score), *of_lesions))
    return text.getvalue()


def to_json(scores: list[PatientScores], summary: Summary) -> str:
    """The scores as JSON: `{"patients": [{"case", "regions", "warnings"}], "summary": {"patients", "mean", "std"}}`.

    Scores of lesions are added to each patient and to the summary, as `lesions`.
    """
    content = {
        "patients": [
            {"case": patient.case_id, "regions": _plain(patient.regions), "warnings": patient.warnings}
            | ({"lesions": _plain(patient.lesions)} if patient.lesions else {})
            for patient in scores
        ],
        "summary": {"patients": summary.patients, "mean": _plain(summary.mean), "std": _plain(summary.std)}
        | ({"lesions": _plain(summary.lesions)} if summary.lesions else {}),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def pair_files(predicted: Path, reference: Path) -> list[tuple[str, Path, Path]]:
    """Pair predicted with reference label maps: two files, or two folders matched by case id.

    A folder holds label maps beside each other (where any is named `*_seg` or `*-seg`, only those count, so modality
    files may lie there too) or a folder per case with one such label map. The case id is the case folder's name, or
    else the file name without its suffix and `_seg`; for two files it is taken from the reference.
    Returns (case id, predicted, reference), sorted by case id.
    Raises InputError when a path is missing, a file meets a folder, a folder holds no label map, two have one case id,
    or any label map has no partner: a case left out would change the mean silently.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise InputError(path, "no such file or folder", "label maps (.nii or .nii.gz)", "Check the path.")
    if predicted.is_dir() != reference.is_dir():
        file, folder = (reference, predicted) if predicted.is_dir() else (predicted, reference)
        raise InputError(file, f"a file, against the folder {folder}", "two files or two folders", "Give both alike.")
    if predicted.is_file():
        return [(case_id_of(reference), predicted, reference)]
    predictions, references = _label_maps(predicted), _label_maps(reference)
    alone = {"reference": predictions.keys() - references.keys(), "prediction": references.keys() - predictions.keys()}
    if any(alone.values()):
        raise InputError(
            f"{predicted} against {reference}",
            "; ".join(f"no {partner} for {', '.join(sorted(ids))}" for partner, ids in alone.items() if ids),
            "one prediction for each reference, of the same case id",
            "Rename the files, or give folders that hold the same cases.",
        )
    return [(case_id, predictions[case_id], references[case_id]) for case_id in sorted(predictions)]


def find_label_maps(path: Path) -> list[tuple[str, Path]]:
    """The label maps that a path means, each with its case id: a file, or those in a folder, sorted by case id.

    Layouts and errors as `pair_files`.
    """
    return sorted(_label_maps(path).items()) if path.is_dir() else [(case_id_of(path), path)]


def _label_maps(folder: Path) -> dict[str, Path]:
    """Case id → label map, for each case in a folder; the layouts and errors of `pair_files`."""
    flat = niftis(folder)
    found = [(case_id_of(path), path) for path in [p for p in flat if kind_of(p) == "seg"] or flat]
    for case in folder.iterdir():
        if case.is_dir() and not case.name.startswith("."):
            found += [(case.name, path) for path in niftis(case) if kind_of(path) == "seg"]
    if not found:
        raise InputError(folder, "no label map", "CASE.nii.gz or CASE/CASE_seg.nii.gz", "Check the folder.")
    label_maps: dict[str, Path] = {}
    for case_id, path in sorted(found):
        if case_id in label_maps:
            both = f"{label_maps[case_id]} and {path}"
            raise InputError(folder, f"two label maps of {case_id}: {both}", "one per case", "Move one of them away.")
        label_maps[case_id] = path
    return label_maps


def case_id_of(path: Path) -> str:
    """The file name without .nii[.gz] and without a last token seg."""
    return re.sub(r"[_\-.\s]segm?$", "", stem(path), flags=re.IGNORECASE)


def _plain(regions: Mapping[Region, RegionScore | LesionScore]) -> dict[str, dict[str, float | None]]:
    """Region name → measure → value."""
    return {region.value: asdict(score) for region, score in regions.items()}

"""How well a set segments patients that it never saw, in each precision or budget, with intervals over the patients.

    python benchmarks/bench_accuracy.py DATA WORK OUT.json [--weights SET...] [--only bf16 ... | --vram 64M 32M ...]

DATA: a folder of labelled cases. Every case is segmented from NIfTI to NIfTI as `lowmem-brats segment` does; WORK keeps
the label maps. Nothing may be chosen by what this prints if DATA are test patients.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.evaluate.pairs import PatientScores, evaluate_pairs
from lowmem_brats.segment.case import segment_case
from lowmem_brats.segment.result import SegmentReport

DRAWS = 10_000
CPU = SegmentConfig(device="cpu")
VARIANTS = {
    "bf16": replace(CPU, precision="bf16"),
    "fp32": replace(CPU, precision="fp32"),
    "fp16": replace(CPU, precision="fp16"),
    "bf16, mirrored too": replace(CPU, precision="bf16", tta=True),
    "bf16, every slice": replace(CPU, precision="bf16", narrow=False),
    "bf16, fast": replace(CPU, precision="bf16", fast=True),
}


def score(
    cases: Sequence[CaseFiles], results: Path, settings: SegmentConfig
) -> tuple[list[PatientScores], list[SegmentReport]]:
    """Segment the cases into a folder, and score the label maps."""
    results.mkdir(parents=True, exist_ok=True)
    pairs, reports = [], []
    for files in cases:
        output = results / f"{files.case_id}_seg.nii.gz"
        reports.append(segment_case(files, output, settings).report)
        pairs.append((files.case_id, output, files.labels[0]))
    convention = CONVENTIONS[settings.labels]
    return evaluate_pairs(pairs, convention, convention), reports


def per_patient(scores: Sequence[PatientScores], measure: str) -> dict[str, dict[str, float]]:
    """Patient → region → one of the measures."""
    return {s.case_id: {key.value: round(getattr(row, measure), 4) for key, row in s.regions.items()} for s in scores}


def summary_of(scores: Sequence[PatientScores]) -> dict[str, dict[str, object]]:
    """Region → mean, its percentile-bootstrap interval over the patients, median; mean and median HD95; both rates."""
    drawn = np.random.default_rng(0).integers(len(scores), size=(DRAWS, len(scores)))
    table: dict[str, dict[str, object]] = {}
    for region in Region:
        rows = [patient.regions[region] for patient in scores]
        dice = np.array([row.dice for row in rows])
        interval = np.percentile(dice[drawn].mean(axis=1), [2.5, 97.5])
        table[region.value] = {
            "dice": round(float(dice.mean()), 4),
            "dice_95": [round(float(end), 4) for end in interval],
            "dice_median": round(float(np.median(dice)), 4),
            "hd95_mm": round(statistics.fmean(row.hd95_mm for row in rows), 2),
            "hd95_median_mm": round(statistics.median(row.hd95_mm for row in rows), 2),
            "sensitivity": round(statistics.fmean(row.sensitivity for row in rows), 4),
            "specificity": round(statistics.fmean(row.specificity for row in rows), 5),
        }
    return table


def main() -> None:
    """Score every variant and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", nargs="+", default=())
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--vram", nargs="+", default=(), help="in fp32 within each of these budgets, and nothing else")
    options = parser.parse_args()
    variants = {f"fp32 in {vram}": replace(VARIANTS["fp32"], vram=vram) for vram in options.vram}
    cases, rows = read_cases(options.data)[0], []
    for name, variant in (variants or {name: VARIANTS[name] for name in options.only}).items():
        settings = replace(variant, weights=options.weights)
        scores, reports = score(cases, options.work / name, settings)
        rows.append(
            {
                "variant": name,
                "regions": summary_of(scores),
                "dice": per_patient(scores, "dice"),
                "hd95_mm": per_patient(scores, "hd95_mm"),
                "patches": [each.plan.patch_ZHW for each in reports if each.plan.patch_ZHW],
                "peak_bytes": max(report.peak_bytes for report in reports),
                "seconds_median": round(statistics.median(sum(r.seconds.values()) for r in reports), 2),
            }
        )
        shown = (f"{key} {row['dice']:.4f} {row['dice_95']}" for key, row in rows[-1]["regions"].items())  # type: ignore[attr-defined]
        print(f"{name:20s}", *shown, flush=True)
    weights = reports[0].weights
    options.out.write_text(json.dumps(conditions("cpu") | {"weights": weights, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

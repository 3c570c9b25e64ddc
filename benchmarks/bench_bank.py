"""A bank beside its members, each alone: Dice, operations, seconds and peak of a case, as table 3 of Med-DANet.

    python benchmarks/bench_bank.py DATA BANK WORK OUT.json

DATA: a folder or list of labelled cases that none of BANK's networks was trained on; BANK: a folder written by
`lowmem-brats train --bank`; WORK keeps the label maps. A member alone segments every slice that holds brain, from each
of its views. All run on the CPU, in bf16 if it computes that, else in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench_accuracy import per_patient, score, summary_of

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.segment.result import SegmentReport
from lowmem_brats.weights.store import open_set


def gmac_of(report: SegmentReport, member: str | None, gmac_per_megapixel: Mapping[str, float]) -> float:
    """10⁹ multiply-adds of a case: of a member alone, or of the bank with its decision network."""
    if member is None:
        return sum(row["gmac"] for row in report.members.values())
    return sum(report.pixels.values()) * gmac_per_megapixel[member] / 1e6


def main() -> None:
    """Score the bank and every member, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "bank", "work", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    weights = open_set(str(options.bank))
    if weights.bank is None:
        parser.error(f"{options.bank} is no bank")
    cases, rows = read_cases(options.data)[0], []
    settings = SegmentConfig(weights=str(options.bank), device="cpu")
    for member in (*weights.bank.gmac_per_megapixel, None):
        variant = replace(settings, member=member, narrow=member is None)
        scores, reports = score(cases, options.work / (member or "routed"), variant)
        gmac = [gmac_of(report, member, weights.bank.gmac_per_megapixel) for report in reports]
        slices = [sum(n["run"] for n in report.slices.values()) for report in reports]
        networks = [sum(report.seconds[name] for name in report.slices) for report in reports]
        rows.append(
            {
                "segmented by": member or "the member that is chosen",
                "regions": summary_of(scores),
                "dice": per_patient(scores, "dice"),
                "precision": reports[0].plan.precision,
                "gmac_per_case": round(statistics.fmean(gmac), 2),
                "gmac_per_slice_run": round(sum(gmac) / max(sum(slices), 1), 4),
                "slices_run": round(statistics.fmean(slices), 1),
                "slices_of_members": [report.members for report in reports],
                "networks_seconds_median": round(statistics.median(networks), 2),
                "peak_bytes": max(report.peak_bytes for report in reports),
                "predicted_bytes": max(report.plan.predicted_bytes for report in reports),
            }
        )
        dice = " ".join(f"{key} {row['dice']:.4f}" for key, row in rows[-1]["regions"].items())  # type: ignore[attr-defined]
        told = "{gmac_per_case} GMAC, {slices_run} slices, {networks_seconds_median} s, {peak_bytes} B".format(
            **rows[-1]
        )
        print(f"{member or 'routed':20s} {dice}  {told}", flush=True)
    options.out.write_text(json.dumps(conditions("cpu") | {"bank": weights.name, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

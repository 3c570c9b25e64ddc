"""Slices against crops of volumes at equal cost: as much processor time, the same patients, the same scoring.

    python benchmarks/bench_equal_cost.py TRAIN TEST WORK OUT.json [--cpu-minutes 30] [--vram 1G] [--only slices]

TRAIN, TEST: folders or lists of labelled cases, without a patient in common. Each network is trained on all of TRAIN
from fresh weights, by one thread; the time is that of the processor, so that what else the machine does hardly counts.
The last weights are taken, masks are where the logit is above 0, and nothing is chosen by TEST. WORK keeps the run
folders: a network that is finished there is not trained again, and one that was interrupted goes on. nnU-Net's 2-D
network is not among them, because it cannot be trained here. `crops` needs the extra `monai`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_accuracy import per_patient, score, summary_of
from bench_networks import train_by_processor_time

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import PRESETS, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.errors import InputError
from lowmem_brats.networks import build_any

OURS = TrainConfig(validation=0.0, test=0.0, device="cpu")
RUNS: dict[str, TrainConfig] = {
    "slices": replace(
        OURS, network=NetworkConfig(width=16, outputs=3, views=3, norm="none"), window=112, loss="dice+ce"
    ),
    "crops": replace(
        OURS, network=NetworkConfig(name="segresnet", width=8, outputs=3), **PRESETS["segresnet"].training
    ),
}


def train(name: str, data: Path, work: Path, minutes: float, vram: str) -> dict[str, Any]:
    """Train one network, unless it is there; returns what its run folder says."""
    out = work / name
    if not (out / "index.json").exists():
        begun, config = (out / "run.json").exists(), replace(RUNS[name], vram=vram)
        train_by_processor_time(data, out, config, minutes, resume=begun, cache=work / "cache")
    run: dict[str, Any] = json.loads((out / "run.json").read_text())
    (network,) = run["networks"].values()
    return {
        "steps": network["epochs"][-1]["steps"],
        "train_seconds": round(network["epochs"][-1]["seconds"]),
        "train_peak_bytes": network["peak_bytes"],
        "plans": run["plans"],
        "notes": run["notes"],
    }


def segment(name: str, data: Path, work: Path, vram: str) -> dict[str, Any]:
    """Segment and score the cases with a network, by one thread."""
    torch.set_num_threads(1)
    settings = SegmentConfig(weights=str(work / name), device="cpu", vram=vram)
    scores, reports = score(read_cases(data)[0], work / name / "segmented", settings)
    return {
        "regions": summary_of(scores),
        "dice": per_patient(scores, "dice"),
        "segment_seconds_median": round(statistics.median(sum(r.seconds.values()) for r in reports), 2),
        "segment_peak_bytes": max(report.peak_bytes for report in reports),
    }


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu-minutes", type=float, default=30.0)
    parser.add_argument("--vram", default="max", help="of training and of segmenting")
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS))
    options = parser.parse_args()
    patients = [{case.patient for case in read_cases(part)[0]} for part in (options.train, options.test)]
    if both := patients[0] & patients[1]:
        raise InputError(
            options.test, f"{', '.join(sorted(both))}, in {options.train} too", "others", "Leave them out."
        )
    rows = []
    for name in options.only:
        row = train(name, options.train, options.work, options.cpu_minutes, options.vram)
        parameters = sum(parameter.numel() for parameter in build_any(RUNS[name].network).parameters())
        row = {"variant": name, "parameters": parameters} | row
        rows.append(row | segment(name, options.test, options.work, options.vram))
        shown = (f"{key} {region['dice']:.4f} {region['dice_95']}" for key, region in rows[-1]["regions"].items())
        print(f"{name:8s} {row['steps']} steps", *shown, flush=True)
    stated = {"cpu_minutes": options.cpu_minutes, "vram": options.vram, "training_cases": len(patients[0])}
    options.out.write_text(json.dumps(conditions("cpu") | stated | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

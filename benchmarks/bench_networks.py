"""Networks side by side: the same patients, seed and computing time; what each costs and what it finds.

    python benchmarks/bench_networks.py DATA WORK OUT.json [--cpu-minutes 20] [--jobs 2]

DATA: a folder of labelled cases; a fifth of its patients, drawn by the seed, is held out, and scored once per network
from NIfTI to NIfTI. Every network has three outputs and sees axial slices. Training time is processor time of one
thread, so that what else the machine does hardly counts. WORK keeps the run folders; networks that are finished there
are not trained again. Time and memory of a case are measured afterwards, alone, on all threads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import BRATS_SHAPE, PRESETS, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.data.labels import Region
from lowmem_brats.memory.footprint import multiply_adds
from lowmem_brats.networks import build_network, padded_size
from lowmem_brats.segment.case import segment_case
from lowmem_brats.train import loop as fit
from lowmem_brats.train.run import train_set

OURS = TrainConfig(loss="dice+ce", test=0.2)
U_NET, EMCAD = NetworkConfig(width=32, outputs=3), NetworkConfig(name="emcad-b0", outputs=3)
RUNS: dict[str, TrainConfig] = {
    "unet2d of width 32": replace(OURS, network=U_NET),
    "emcad-b0": replace(OURS, network=EMCAD),
    "emcad-b0, settings of its paper": replace(OURS, network=EMCAD, **PRESETS["emcad"].training),
}


def train_by_processor_time(data: Path, out: Path, config: TrainConfig, minutes: float, **options: Any) -> None:
    """Train for so many minutes of one thread's processor time; otherwise as `train_set`."""
    torch.set_num_threads(1)
    fit.time = SimpleNamespace(monotonic=time.process_time)
    train_set(data, out, replace(config, max_seconds=minutes * 60), **options)


def train(name: str, data: Path, work: Path, minutes: float) -> None:
    """Train and score one network in its own folder, in so many minutes of one thread's processor time.

    Does nothing if the folder holds scores already.
    """
    out, cache = work / name, work / f"cache {RUNS[name].network.name}"
    if (out / "test" / "scores.csv").exists():
        return
    train_by_processor_time(data, out, replace(RUNS[name], device="cpu"), minutes, cache=cache)


def row_of(name: str, out: Path) -> dict[str, object]:
    """What a network's run folder says."""
    run = json.loads((out / "run.json").read_text())
    lines = [line.split(",") for line in (out / "test" / "scores.csv").read_text().splitlines()[1:]]
    dice = {r.value: [float(c[2]) for c in lines if c[1] == r.value and c[0] not in ("mean", "std")] for r in Region}
    last = [network["epochs"][-1] for network in run["networks"].values()]
    return {
        "variant": name,
        "mean_dice": {region: round(float(np.mean(values)), 4) for region, values in dice.items()},
        "mean_of_three": round(float(np.mean(list(dice.values()))), 4),
        "dice": dice,
        "steps": {epoch["network"]: epoch["steps"] for epoch in last},
        "seconds_per_step": round(sum(e["seconds"] for e in last) / sum(e["steps"] for e in last), 4),
        "fallback_steps": sum(epoch["fallback_steps"] for epoch in last),
        "switches": {key: network["switches"] for key, network in run["networks"].items()},
        "peak_bytes": {key: network["peak_bytes"] for key, network in run["networks"].items()},
        "plans": run["plans"],
        "test_cases": run["test_cases"],
        "training_cases": len(run["training_cases"]),
    }


def cost_of(network: NetworkConfig) -> dict[str, object]:
    """Parameters, and multiply-accumulates of one slice of BraTS, padded as the network needs it."""
    size_HW = padded_size(network, BRATS_SHAPE[:2])
    parameters = sum(p.numel() for p in build_network(network).parameters())
    gmac = multiply_adds(network, size_HW) / 1e9
    return {"parameters": parameters, "size_HW": size_HW, "gmac_per_slice": round(gmac, 3)}


def segment_held_out(data: Path, run: Path, held_out: list[str]) -> dict[str, object]:
    """Seconds and peak memory of a case, from NIfTI to NIfTI, the median and the most over the patients held out."""
    settings = SegmentConfig(weights=str(run), device="cpu")
    cases = [case for case in read_cases(data)[0] if case.case_id in held_out]
    reports = [segment_case(case, run / "timed_seg.nii.gz", settings).report for case in (cases[0], *cases)][1:]
    return {
        "seconds_per_case": round(statistics.median(sum(report.seconds.values()) for report in reports), 2),
        "segment_peak_bytes": max(report.peak_bytes for report in reports),
    }


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu-minutes", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    arguments = [(name, options.data, options.work, options.cpu_minutes) for name in RUNS]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        pool.starmap(train, arguments, chunksize=1)
    rows = []
    for name, config in RUNS.items():
        row = row_of(name, options.work / name)
        measured = segment_held_out(options.data, options.work / name, row["test_cases"])  # type: ignore[arg-type]
        rows.append(row | cost_of(config.network) | measured)
        dice = " ".join(f"{region} {value:.3f}" for region, value in row["mean_dice"].items())  # type: ignore[attr-defined]
        print(f"{name:35s} {dice}  {row['steps']}  {json.dumps(cost_of(config.network) | measured)}")
    stated = conditions("cpu") | {"cpu_minutes": options.cpu_minutes, "training_threads": 1}
    options.out.write_text(json.dumps(stated | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

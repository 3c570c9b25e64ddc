"""What each part of the recipe brings: the same patients, seed and computing time, one thing changed at a time.

    python benchmarks/bench_ablation.py DATA WORK OUT.json [--cpu-minutes 10] [--width 16] [--jobs 2]

DATA: a folder of labelled cases; a fifth of its patients, drawn by the seed, is held out, and scored once per variant
from NIfTI to NIfTI. The time is processor time of one thread, so that what else the machine does hardly counts. WORK
keeps the run folders; variants that are finished there are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from lowmem_brats import fit
from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.labels import Region
from lowmem_brats.train import train_set

VARIANTS: dict[str, dict[str, object]] = {
    "three networks, augmented, batch Dice, assorted precision (the recipe)": {},
    "no augmentation": {"augment": False},
    "one network, no augmentation": {"outputs": 3, "augment": False},
    "one network": {"outputs": 3},
    "per-slice Dice": {"loss": "slice-dice"},
    "cross-entropy": {"loss": "ce"},
    "focal": {"loss": "focal"},
    "fp32": {"precision": "fp32"},
    "batch Dice + cross-entropy": {"loss": "dice+ce"},
    "class-balanced cross-entropy": {"loss": "balanced-ce"},
}


def train_timed(data: Path, out: Path, config: TrainConfig, minutes: float, cache: Path) -> None:
    """Train and score a set, unless it is there already, in so many minutes of one thread's processor time."""
    if (out / "test" / "scores.csv").exists():
        return
    torch.set_num_threads(1)
    fit.time = SimpleNamespace(monotonic=time.process_time)
    train_set(data, out, replace(config, max_seconds=minutes * 60, device="cpu"), cache=cache)


def run_variant(name: str, data: Path, work: Path, minutes: float, width: int) -> Path:
    """Train and score one variant in its own folder."""
    out = work / name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    changes = dict(VARIANTS[name])
    network = NetworkConfig(width=width, outputs=int(changes.pop("outputs", 1)))  # type: ignore[call-overload]
    config = replace(TrainConfig(network=network, test=0.2), **changes)  # type: ignore[arg-type]
    train_timed(data, out, config, minutes, work / "cache")
    return out


def row_of(name: str, out: Path) -> dict[str, object]:
    """What a variant's run folder says."""
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


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu-minutes", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    arguments = [(name, options.data, options.work, options.cpu_minutes, options.width) for name in VARIANTS]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        folders = pool.starmap(run_variant, arguments, chunksize=1)
    rows = [row_of(name, folder) for name, folder in zip(VARIANTS, folders, strict=True)]
    stated = conditions("cpu") | {"cpu_minutes_per_set": options.cpu_minutes, "width": options.width, "threads": 1}
    stated["command"] = (
        f"python benchmarks/bench_ablation.py DATA WORK OUT.json --cpu-minutes {options.cpu_minutes:g} "
        f"--width {options.width} --jobs {options.jobs}"
    )
    options.out.write_text(json.dumps(stated | {"rows": rows}, indent=2) + "\n")
    for row in rows:
        dice = " ".join(f"{region} {value:.3f}" for region, value in row["mean_dice"].items())  # type: ignore[attr-defined]
        print(f"{row['variant']:70s} {dice}  mean {row['mean_of_three']:.3f}  steps {row['steps']}")


if __name__ == "__main__":
    main()

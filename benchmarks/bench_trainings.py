"""Trainings side by side at equal cost: as much processor time, the same patients and seed, the same scoring.

    python benchmarks/bench_trainings.py TABLE TRAIN TEST WORK OUT.json --minutes 60 [--only ROW ...]
        [--device cuda [--train-only]]
    python benchmarks/bench_trainings.py precisions TRAIN TEST WORK OUT.json --epochs 1

TABLE: one of those in `TABLES`. TRAIN, TEST: folders or lists of labelled cases, without a patient in common. Each row
is trained on all of TRAIN from fresh weights, by one thread; the minutes are of processor time, so that what else the
machine does hardly counts, and on a card of the clock. The last weights are taken, masks are where the logit is above
0, and nothing is chosen by TEST, which is segmented on the CPU. WORK keeps the run folders: a row that is finished
there is not trained again, wherever that was, and one that was interrupted goes on. `systems` needs the extras `monai`
and `nnunet`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import foreign_models as models
from bench_accuracy import CPU, per_patient, score, summary_of
from bf16_rounding import Bf16ByRounding

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import PRESETS, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.engine.precision import cpu_has_bf16
from lowmem_brats.errors import InputError
from lowmem_brats.networks import build_any
from lowmem_brats.networks.nnunet import NnUNet
from lowmem_brats.train import loop
from lowmem_brats.train import networks as training
from lowmem_brats.train.run import train_set
from lowmem_brats.weights.store import open_set


@dataclass(frozen=True)
class Training:
    """One row of a table."""

    config: TrainConfig
    first: Training | None = None
    """The training whose weights this one starts from."""
    share: float = 1.0
    """Its share of the row's time."""
    settings: SegmentConfig = CPU
    """How its set segments."""

    def stages(self) -> Iterator[tuple[str, Training]]:
        """The trainings of this row in their order, each with the end of its folder's name."""
        yield from [("-first", self.first)] if self.first else []
        yield "", self


def preset(name: str, **changes: Any) -> TrainConfig:
    """The recipe of this name, from fresh weights and without patients held out; `changes`: of its network, by name."""
    recipe = PRESETS[name]
    network = NetworkConfig(**dict(recipe.network) | changes)
    return TrainConfig(network=network, validation=0.0, test=0.0, **recipe.training)


SHIPPED, SEGRESNET = preset("shipped"), preset("segresnet", width=8, patch="96x96x96")
NNUNET_PATCH = (1, 192, 160)
PLANNED = models.architecture(dimensions=2, levels=6)["arch_kwargs"]
PLANNED["features_per_stage"] = [min(32 * 2**level, 512) for level in range(6)]
NNUNET = NetworkConfig(
    name="nnunet",
    outputs=3,
    patch="x".join(map(str, NNUNET_PATCH)),
    architecture=json.dumps({"class": "PlainConvUNet", "settings": PLANNED}, sort_keys=True),
)

SYSTEMS = {
    # As the shipped set was trained: a network of three regions, and then one for each, which begins with its weights.
    "unet2d": Training(
        replace(SHIPPED, network=replace(SHIPPED.network, outputs=1), learning_rate=SHIPPED.learning_rate / 2),
        Training(SHIPPED, share=0.25),
        share=0.75,
    ),
    # Of the rates 1e-3 and 1e-4 that with the lower loss after 4 minutes; of crops of 64³ and 96³ those that show more
    # voxels a minute.
    "segresnet": Training(replace(SEGRESNET, learning_rate=1e-3)),
    # Four slices a step: with 16, as ours takes, there were only 180 steps in an hour.
    "nnunet": Training(replace(SHIPPED, network=NNUNET, window=0, batch=4)),
}
THREE = SHIPPED.network
ABLATION = {
    "three networks": SYSTEMS["unet2d"],
    "one network": Training(SHIPPED),
    "one network, whole slices": Training(replace(SHIPPED, window=0), settings=replace(CPU, narrow=False)),
    "one network, width 24": Training(replace(SHIPPED, network=replace(THREE, width=24))),
    "one network, group norm": Training(replace(SHIPPED, network=replace(THREE, norm="group"))),
    "one network, one view": Training(replace(SHIPPED, network=replace(THREE, views=1))),
}
ONE_VIEW = ABLATION["one network, one view"].config
# Pandya et al., at equal steps (--epochs): `assorted` is bf16, and fp32 while training is unstable. The other seed
# shows how far apart two trainings of one format are.
PRECISIONS = {
    name: Training(replace(SYSTEMS["segresnet"].config, precision=precision))
    for name, precision in {"fp32": "fp32", "bf16": "bf16", "assorted": "auto"}.items()
}
PRECISIONS["bf16, another seed"] = Training(replace(PRECISIONS["bf16"].config, seed=1))
NETWORKS = {
    name: Training(replace(ONE_VIEW, network=network, window=128))  # all of them take multiples of 32
    for name, network in {
        "unet2d": ONE_VIEW.network,
        "emcad-b0": NetworkConfig(name="emcad-b0", outputs=3),
        "transunet": NetworkConfig(name="transunet", outputs=3),
    }.items()
}
# Those that were compared for U-Net and TransUNet on BraTS 2020, and batch Dice beside them.
LOSSES = {
    f"{loss}, {rate:g}": Training(replace(ONE_VIEW, loss=loss, learning_rate=rate))
    for loss in ("ce", "balanced-ce", "focal1", "focal", "dice")
    for rate in (1e-4, 1e-5)
}
EMCAD = replace(preset("emcad", outputs=3), window=128, learning_rate=1e-3)
OPTIONS: dict[str, dict[str, Any]] = {
    "batch 6": {},
    "stochastic depth 0.1": {"stochastic_depth": 0.1},
    "restarts": {"schedule": "restarts"},
    "radam": {"optimizer": "radam"},
} | {f"batch {batch}": {"batch": batch} for batch in (16, 25, 100)}
TABLES: dict[str, dict[str, Training]] = {
    "systems": SYSTEMS,
    "ablation": ABLATION,
    "precisions": PRECISIONS,
    "networks": NETWORKS,
    "losses": LOSSES,
    "emcad": {name: Training(replace(EMCAD, **changes)) for name, changes in OPTIONS.items()},
}


ENDLESS = 10**4


@dataclass(frozen=True)
class Limits:
    """How long, in how much memory and where each row is trained."""

    minutes: float | None
    epochs: int = ENDLESS
    vram: str = "max"
    device: str = "cpu"


def train(row: Training, data: Path, out: Path, limits: Limits) -> None:
    """Train what is missing of a row; the minutes are of one thread's processor time, on a card of the clock."""
    torch.set_num_threads(1)
    NnUNet.crops_ZHW = (NNUNET_PATCH,)  # the program trains no network of nnU-Net, though all that it takes is there
    before: str | None = None
    with ExitStack() as stack:
        if limits.device == "cpu":
            loop.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
            if not cpu_has_bf16():
                stack.enter_context(Bf16ByRounding())
            if row is PRECISIONS["assorted"]:
                training.choose_precision = lambda wanted, device: "bf16"
        for end, stage in row.stages():
            folder = Path(f"{out}{end}")
            if not (folder / "index.json").exists():
                seconds = limits.minutes and limits.minutes * 60 * stage.share
                config = replace(stage.config, finetune=before, max_seconds=seconds, epochs=limits.epochs)
                config = replace(config, vram=limits.vram, device=limits.device)
                train_set(data, folder, config, resume=(folder / "run.json").exists(), cache=out.parent / "cache")
            before = str(folder)


def row_of(row: Training, out: Path) -> dict[str, Any]:
    """What the run folders of a row say."""
    runs = [json.loads(Path(f"{out}{end}/run.json").read_text()) for end, _ in row.stages()]
    networks = [network for run in runs for network in run["networks"].values()]
    return {
        "parameters": sum(p.numel() for file in open_set(str(out)).files for p in build_any(file.network).parameters()),
        "steps": [network["epochs"][-1]["steps"] for network in networks],
        "train_seconds": round(sum(network["epochs"][-1]["seconds"] for network in networks)),
        "fallback_steps": [sum(epoch["fallback_steps"] for epoch in network["epochs"]) for network in networks],
        "switches": [network["switches"] for network in networks],
        "train_peak_bytes": max(peak for network in networks for peak in network["peak_bytes"].values()),
        "plans": [plan for run in runs for plan in run["plans"]],
        "notes": [note for run in runs for note in run["notes"]],
        "versions": runs[-1]["versions"],
    }


def segment(row: Training, data: Path, out: Path) -> dict[str, Any]:
    """Segment and score the cases with the set of a row, by one thread."""
    torch.set_num_threads(1)
    scores, reports = score(read_cases(data)[0], out / "segmented", replace(row.settings, weights=str(out)))
    return {
        "regions": summary_of(scores),
        "dice": per_patient(scores, "dice"),
        "segment_seconds_median": round(statistics.median(sum(r.seconds.values()) for r in reports), 2),
        "segment_peak_bytes": max(report.peak_bytes for report in reports),
    }


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    for name in ("train", "test", "work", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--epochs", type=int, default=ENDLESS, help="instead of --minutes: passes over the patients")
    parser.add_argument("--device", default="cpu", help="to train on")
    parser.add_argument("--train-only", action="store_true", help="leave the scores and the table to a later run")
    parser.add_argument("--vram", default="max", help="of training")
    parser.add_argument("--only", nargs="+", help="these rows alone")
    options = parser.parse_args()
    table = TABLES[options.table]
    if unknown := set(options.only or ()) - table.keys():
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    patients = [{case.patient for case in read_cases(part)[0]} for part in (options.train, options.test)]
    if both := patients[0] & patients[1]:
        raise InputError(
            options.test, f"{', '.join(sorted(both))}, in {options.train} too", "others", "Leave them out."
        )
    limits, rows = Limits(options.minutes, options.epochs, options.vram, options.device), []
    for name in options.only or table:
        out = options.work / name.replace(", ", "-").replace(" ", "-")
        train(table[name], options.train, out, limits)
        if options.train_only:
            continue
        rows.append({"row": name} | row_of(table[name], out) | segment(table[name], options.test, out))
        shown = (f"{key} {region['dice']:.4f} {region['dice_95']}" for key, region in rows[-1]["regions"].items())
        print(name, *shown, "steps", rows[-1]["steps"], flush=True)
        in_bf16 = any(plan["precision"] == "bf16" for each in rows for plan in each["plans"])
        by_rounding = in_bf16 and limits.device == "cpu" and not cpu_has_bf16()
        stated = asdict(limits) | {"threads": 1, "bf16_by_rounding": by_rounding}
        stated |= {"training_patients": len(patients[0]), "test_patients": len(patients[1])}
        options.out.write_text(json.dumps(conditions("cpu") | stated | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Cross-validation: every patient is segmented once, from NIfTI to NIfTI, by a set that was trained without it.

    python benchmarks/bench_folds.py DATA WORK OUT.json --minutes 60 [--recipe plain] [--folds 5] [--only 1 3]
        [--also LIST]

DATA: a folder or list of labelled cases, split by patient. Of each fold, a set is trained from fresh weights on the
other folds and, with --also, on those cases of LIST whose patients are not in the fold, for so many minutes of one
thread's processor time. Whom a case shows is told by the column `patient` of a list, or else by its name: where data
sets number one patient differently, only the column prevents that a patient is trained on and scored. Nothing is chosen
by the fold that is scored: the last weights are taken. WORK keeps the run folders: a finished set is not trained again,
an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_accuracy import per_patient, score, summary_of
from bench_trainings import SYSTEMS, Limits, Training, row_of, train

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case_list import LabelledCase, read_cases
from lowmem_brats.data.labels import Region
from lowmem_brats.evaluate.pairs import PatientScores
from lowmem_brats.train.dataset import Split, split_cases
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import open_set

PLAIN = TrainConfig(network=NetworkConfig(width=16), validation=0.0, test=0.0)
RECIPES = {"plain": Training(PLAIN), "shipped": SYSTEMS["unet2d"]}
"""`plain`: the paper's three binary networks of axial slices, batch Dice."""
MASKS_AT = {"plain": 0.0, "shipped": -1.0}
"""Logit above which a pixel is tumour."""


def training_cases(split: Split, others: Sequence[LabelledCase]) -> list[LabelledCase]:
    """The cases that a fold's sets learn from: its own, and those of `others` whose patients it does not validate.

    A case of `others` that has the name of one in the fold is left out too: it is the same case.
    """
    own = [case for part in split.parts for case in part]
    names, validated = {case.case_id for case in own}, {case.patient for case in split.validation}
    added = [case for case in others if case.case_id not in names and case.patient not in validated]
    return [*split.training, *added]


def write_list(cases: Sequence[LabelledCase], out: Path) -> Path:
    """A list of cases that `train` reads, with absolute paths and the patients."""
    rows = []
    for case in cases:
        paths = dict(case.images) | ({"case": case.stacked} if case.stacked else {}) | {"seg": case.labels[0]}
        named = {"case_id": case.case_id, "patient": case.patient}
        rows.append({key: str(path.resolve()) for key, path in paths.items()} | named)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    return out


def lower_masks(run: Path, threshold: float) -> None:
    """Make the logit `threshold` the 0 of a set's networks."""
    weights, paths = open_set(str(run)), dict[Region, Path]()
    for file in weights.files:
        network = load_network(file)
        network.take_masks_at([threshold] * len(file.regions))
        save_network(network, file)
        paths |= dict.fromkeys(file.regions, file.path)
    write_index(run, weights.name, paths)


def train_set_of(training: Sequence[LabelledCase], work: Path, recipe: str, minutes: float) -> dict[str, Any]:
    """Train the set of a fold, unless it is there; returns what it took."""
    done = work / "done"
    if not done.exists():
        train(RECIPES[recipe], write_list(training, work.with_suffix(".json")), work, Limits(minutes))
        lower_masks(work, MASKS_AT[recipe])
        done.touch()
    return row_of(RECIPES[recipe], work) | {"training_cases": len(training)}


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="shipped")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="of these folds alone")
    parser.add_argument("--also", type=Path)
    options = parser.parse_args()
    cases = read_cases(options.data)[0]
    others = read_cases(options.also)[0] if options.also else []
    scores, folds = list[PatientScores](), []
    for k in options.only or range(1, options.folds + 1):
        split = split_cases(cases, 0.0, 0.0, (k, options.folds), PLAIN.seed)
        work = options.work / f"{options.recipe}_{k}"
        took = train_set_of(training_cases(split, others), work, options.recipe, options.minutes)
        found, _ = score(split.validation, work / "segmented", SegmentConfig(weights=str(work), device="cpu"))
        scores += found
        folds.append({"held_out": [case.case_id for case in split.validation]} | took)
        means = (f"{key} {row['dice']:.4f}" for key, row in summary_of(found).items())
        print(f"fold {k} of {options.folds}: {len(found)} patients", *means, flush=True)
    table = summary_of(scores)
    stated = {"recipe": options.recipe, "minutes": options.minutes, "masks_at": MASKS_AT[options.recipe]}
    rows = {"regions": table, "dice": per_patient(scores, "dice"), "folds": folds}
    options.out.write_text(json.dumps(conditions("cpu") | stated | rows, indent=2) + "\n")
    print(options.recipe, *(f"{key} {row['dice']:.4f} {row['dice_95']}" for key, row in table.items()))


if __name__ == "__main__":
    main()

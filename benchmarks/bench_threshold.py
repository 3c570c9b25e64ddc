"""At which logit a network's mask is best taken: Dice of patients that it was not trained on, by threshold.

    python benchmarks/bench_threshold.py DATA OUT.json RUN...

RUN: folders written by `train`; of each, the patients of validation and test are segmented axially, slice by slice, and
scored at every threshold, regions nested as in fusion. A threshold t is the same as adding −t to the head's bias.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.case import read_case
from lowmem_brats.case_files import CaseFiles
from lowmem_brats.case_list import read_cases
from lowmem_brats.cli.bench import conditions
from lowmem_brats.labels import CONVENTIONS, Mask, Region, nesting_depth, split_regions
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.memory.step import predict_batch
from lowmem_brats.metrics import mask_dice
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.nifti import read_label
from lowmem_brats.predict import place
from lowmem_brats.slices import SliceStack, cut_label, occupied, prepare
from lowmem_brats.weights import load_network, open_set

THRESHOLDS = (1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0)
PLAN = InferencePlan("cpu", "bf16", batch=4)


def read(files: CaseFiles, stride: int) -> tuple[SliceStack, npt.NDArray[np.uint8]]:
    """A case cut into slices, and in how many of the nested regions each voxel lies."""
    stack = prepare(read_case(files).images_CXYZ, stride)
    regions = split_regions(read_label(files.labels[0]).data, CONVENTIONS["brats2020"], files.labels[0])
    return stack, cut_label(nesting_depth(regions), stack)


def nested_dice(masks: Iterable[Mask], depth_ZHW: npt.NDArray[np.uint8]) -> list[float]:
    """Dice of WT, TC and ET, each inside the one before; `masks`: in this order, as found."""
    nested = accumulate(masks, np.logical_and)
    return [mask_dice(mask_ZHW, depth_ZHW >= region.depth) for region, mask_ZHW in zip(Region, nested, strict=True)]


def means_by(values: Sequence[float], tables: Sequence[Sequence[Sequence[float]]]) -> dict[str, dict[Region, float]]:
    """Value → region → mean over the patients; `tables`: of each patient a row per value, a column per region."""
    means = np.mean(tables, axis=0).round(4).tolist()
    return {str(value): dict(zip(Region, row, strict=True)) for value, row in zip(values, means, strict=True)}


def parse(description: str | None) -> argparse.Namespace:
    """DATA, OUT and the runs from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    return parser.parse_args()


def score(files: CaseFiles, network: SliceNetwork, stride: int) -> list[list[float]]:
    """Dice by threshold and region."""
    stack, depth_ZHW = read(files, stride)
    logits_KZHW = np.full((len(Region), *depth_ZHW.shape), -np.inf, np.float32)
    active = np.flatnonzero(occupied(stack.brain_ZHW, 1)[0])
    for n in np.array_split(active, -(-len(active) // PLAN.batch)):
        logits_KZHW[:, n] = predict_batch(network, torch.from_numpy(stack.slices_ZCHW[n])).numpy().swapaxes(0, 1)
    logits_KZHW[:, ~stack.brain_ZHW] = -np.inf
    return [nested_dice(logits_KZHW > threshold, depth_ZHW) for threshold in THRESHOLDS]


def main() -> None:
    """Print and write the mean over the patients of each run."""
    options = parse(__doc__)
    cases, runs = {case.case_id: case for case in read_cases(options.data)[0]}, []
    for run in options.runs:
        told = json.loads((run / "run.json").read_text())
        held_out = told["validation_cases"] + told["test_cases"]
        file = open_set(str(run)).files[0]
        network = place(load_network(file), PLAN)
        rows = means_by(THRESHOLDS, [score(cases[name], network, stride_of(file.network)) for name in held_out])
        runs.append({"run": run.name, "patients": held_out, "mean_dice": rows})
        for threshold, row in rows.items():
            print(
                f"{run.name:32s} {threshold:>5s}",
                *(f"{key.value} {value:.4f}" for key, value in row.items()),
                flush=True,
            )
    options.out.write_text(json.dumps(conditions("cpu") | {"runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()

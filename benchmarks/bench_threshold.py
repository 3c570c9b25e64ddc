"""At which logit a network's mask is best taken: Dice of patients that it was not trained on, by threshold.

    python benchmarks/bench_threshold.py DATA OUT.json RUN...

RUN: folders written by `train`; of each, the patients of validation and test are segmented axially, slice by slice, and
scored at every threshold, regions nested as in fusion. A threshold t is the same as adding −t to the head's bias.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.case_files import CaseFiles
from lowmem_brats.case_list import read_cases
from lowmem_brats.cli.bench import conditions
from lowmem_brats.labels import CONVENTIONS, Region, nesting_depth, split_regions
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.memory.step import predict_batch
from lowmem_brats.metrics import dice
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.nifti import read_case, read_label
from lowmem_brats.predict import place
from lowmem_brats.slices import cut_label, occupied, prepare
from lowmem_brats.weights import load_network, open_set

THRESHOLDS = (1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0)
PLAN = InferencePlan("cpu", "bf16", batch=4)


def score(files: CaseFiles, network: SliceNetwork, stride: int) -> npt.NDArray[np.float64]:
    """Dice by threshold and region, [T, K]."""
    stack = prepare(read_case(files).images_CXYZ, stride)
    label_XYZ = read_label(files.labels[0]).data
    depth_XYZ = nesting_depth(split_regions(label_XYZ, CONVENTIONS["brats2020"], files.labels[0]))
    depth_ZHW = cut_label(depth_XYZ, stack)
    logits_KZHW = np.full((len(Region), *depth_ZHW.shape), -np.inf, np.float32)
    active = np.flatnonzero(occupied(stack.brain_ZHW, 1)[0])
    for n in np.array_split(active, -(-len(active) // PLAN.batch)):
        logits_KZHW[:, n] = predict_batch(network, torch.from_numpy(stack.slices_ZCHW[n])).numpy().swapaxes(0, 1)
    logits_KZHW[:, ~stack.brain_ZHW] = -np.inf
    table = np.empty((len(THRESHOLDS), len(Region)))
    for row, threshold in zip(table, THRESHOLDS, strict=True):
        found_ZHW = np.ones_like(stack.brain_ZHW)
        for k, region in enumerate(Region):
            found_ZHW &= logits_KZHW[k] > threshold
            true_ZHW = depth_ZHW >= region.depth
            row[k] = dice(*(int(m.sum()) for m in (found_ZHW & true_ZHW, found_ZHW & ~true_ZHW, true_ZHW & ~found_ZHW)))
    return table


def main() -> None:
    """Print and write the mean over the patients of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    cases, runs = {case.case_id: case for case in read_cases(options.data)[0]}, []
    for run in options.runs:
        told = json.loads((run / "run.json").read_text())
        held_out = told["validation_cases"] + told["test_cases"]
        file = open_set(str(run)).files[0]
        network = place(load_network(file), PLAN)
        table = np.mean([score(cases[name], network, stride_of(file.network)) for name in held_out], axis=0)
        rows = {
            str(t): dict(zip(Region, row.round(4).tolist(), strict=True))
            for t, row in zip(THRESHOLDS, table, strict=True)
        }
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

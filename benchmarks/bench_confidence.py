"""How sure an island or enhancing tumour must be, against the main tumour: Dice of patients that were not trained on.

    python benchmarks/bench_confidence.py DATA OUT.json RUN...

RUN: folders written by `train` or `bench_folds.py`, each one network of all regions; of DATA, the labelled cases that
are not among its training cases are segmented as `segment` does and cleaned by `drop_doubtful` with every share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats.case_files import CaseFiles
from lowmem_brats.case_list import read_cases
from lowmem_brats.cli.bench import conditions
from lowmem_brats.labels import CONVENTIONS, Region, nesting_depth, split_regions
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.metrics import dice
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.nifti import read_case, read_label
from lowmem_brats.postprocess import drop_doubtful
from lowmem_brats.predict import place, predict_stack
from lowmem_brats.slices import cut_label, occupied, prepare
from lowmem_brats.weights import WeightsFile, load_network, open_set

SHARES = (0.0, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
PLAN = InferencePlan("cpu", "bf16", batch=4)


def predict(
    files: CaseFiles, network: SliceNetwork, file: WeightsFile
) -> tuple[dict[Region, npt.NDArray[np.float32]], npt.NDArray[np.uint8]]:
    """Logits of the three regions, and how many of them hold each voxel in truth."""
    stack = prepare(read_case(files).images_CXYZ, stride_of(file.network))
    active_VN = occupied(stack.brain_ZHW, 1 if stack.flat else file.network.views)
    found = predict_stack(network, stack.slices_ZCHW, active_VN, PLAN, narrow=True, flat=stack.flat)
    regions = split_regions(read_label(files.labels[0]).data, CONVENTIONS["brats2020"], files.labels[0])
    return dict(zip(file.regions, found.sum_KZHW, strict=True)), cut_label(nesting_depth(regions), stack)


def score(
    logit_ZHW: Mapping[Region, npt.NDArray[np.float32]], depth_ZHW: npt.NDArray[np.uint8], share: float
) -> list[float]:
    """Dice of WT, TC and ET, nested."""
    masks, _ = drop_doubtful(logit_ZHW, share)
    found_ZHW, scores = np.ones_like(depth_ZHW, np.bool_), []
    for region in Region:
        found_ZHW = found_ZHW & masks[region]
        true_ZHW = depth_ZHW >= region.depth
        hits = int((found_ZHW & true_ZHW).sum())
        scores.append(dice(hits, int(found_ZHW.sum()) - hits, int(true_ZHW.sum()) - hits))
    return scores


def main() -> None:
    """Print and write the means over all patients and over those of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    cases, runs, tables = read_cases(options.data)[0], [], []
    for run in options.runs:
        seen = set(json.loads((run / "run.json").read_text())["training_cases"])
        file = open_set(str(run)).files[0]
        network = place(load_network(file), PLAN)
        table, patients = [], [case for case in cases if case.case_id not in seen]
        for files in patients:
            logit_ZHW, depth_ZHW = predict(files, network, file)
            table.append([score(logit_ZHW, depth_ZHW, share) for share in SHARES])
            print(run.name, files.case_id, *table[-1][0], flush=True)
        tables.append(np.array(table))
        runs.append({"run": run.name, "patients": [files.case_id for files in patients], **rows(tables[-1])})
    everyone = rows(np.concatenate(tables))
    options.out.write_text(json.dumps(conditions("cpu") | everyone | {"runs": runs}, indent=2) + "\n")
    for share, means in everyone["mean_dice"].items():
        print(f"{share:>5s}", *(f"{key.value} {value:.4f}" for key, value in means.items()))


def rows(table_NSK: npt.NDArray[np.float64]) -> dict[str, dict[str, dict[Region, float]]]:
    """Share → region → mean Dice over the patients N."""
    means = table_NSK.mean(axis=0).round(4).tolist()
    return {"mean_dice": {str(s): dict(zip(Region, row, strict=True)) for s, row in zip(SHARES, means, strict=True)}}


if __name__ == "__main__":
    main()

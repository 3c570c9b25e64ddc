"""How sure an island or enhancing tumour must be, against the main tumour: Dice of patients that were not trained on.

    python benchmarks/bench_confidence.py DATA OUT.json RUN...

RUN: folders written by `train` or `bench_folds.py`, each one network of all regions; of DATA, the labelled cases that
are not among its training cases are segmented as `segment` does and cleaned by `drop_doubtful` with every share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from bench_threshold import PLAN, means_by, nested_dice, parse, read

from lowmem_brats.case_files import CaseFiles
from lowmem_brats.case_list import read_cases
from lowmem_brats.cli.bench import conditions
from lowmem_brats.labels import Region
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.postprocess import drop_doubtful
from lowmem_brats.predict import place, predict_stack
from lowmem_brats.slices import occupied
from lowmem_brats.weights import WeightsFile, load_network, open_set

SHARES = (0.0, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)


def predict(
    files: CaseFiles, network: SliceNetwork, file: WeightsFile
) -> tuple[dict[Region, npt.NDArray[np.float32]], npt.NDArray[np.uint8]]:
    """Logits of the three regions, and how many of them hold each voxel in truth."""
    stack, depth_ZHW = read(files, stride_of(file.network))
    active_VN = occupied(stack.brain_ZHW, 1 if stack.flat else file.network.views)
    found = predict_stack(lambda view: network, stack.slices_ZCHW, active_VN, PLAN, narrow=True, flat=stack.flat)
    return dict(zip(file.regions, found.sum_KZHW, strict=True)), depth_ZHW


def score(
    logit_ZHW: Mapping[Region, npt.NDArray[np.float32]], depth_ZHW: npt.NDArray[np.uint8], share: float
) -> list[float]:
    """Dice of WT, TC and ET."""
    masks, _ = drop_doubtful(logit_ZHW, share)
    return nested_dice((masks[region] for region in Region), depth_ZHW)


def main() -> None:
    """Print and write the means over all patients and over those of each run."""
    options = parse(__doc__)
    cases, runs, everyone = read_cases(options.data)[0], [], list[list[list[float]]]()
    for run in options.runs:
        seen = set(json.loads((run / "run.json").read_text())["training_cases"])
        file = open_set(str(run)).files[0]
        network = place(load_network(file), PLAN)
        tables, patients = [], [case for case in cases if case.case_id not in seen]
        for files in patients:
            logit_ZHW, depth_ZHW = predict(files, network, file)
            tables.append([score(logit_ZHW, depth_ZHW, share) for share in SHARES])
            print(run.name, files.case_id, *tables[-1][0], flush=True)
        everyone += tables
        names = [files.case_id for files in patients]
        runs.append({"run": run.name, "patients": names, "mean_dice": means_by(SHARES, tables)})
    rows = means_by(SHARES, everyone)
    options.out.write_text(json.dumps(conditions("cpu") | {"mean_dice": rows, "runs": runs}, indent=2) + "\n")
    for share, means in rows.items():
        print(f"{share:>5s}", *(f"{key.value} {value:.4f}" for key, value in means.items()))


if __name__ == "__main__":
    main()

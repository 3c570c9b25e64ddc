"""Imported networks beside their authors' own inference: memory, time, and how far the results differ.

It writes a MONAI bundle and an nnU-Net model folder with random weights of their authors' classes, imports them, and
segments one case in several budgets and as the authors do. Or it compares with what nnU-Net's own predictor gave for a
model folder (nnunet_predictor.py). Seconds are the processor's: with one thread they do not depend on what else runs.
Needs the extras `monai` and `nnunet`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import foreign_models as models

from lowmem_brats.config import MODALITIES
from lowmem_brats.config.network import sides_of
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.whole import box_of, prepare_whole
from lowmem_brats.memory.budget import MIB, MemoryBudget, parse_budget
from lowmem_brats.memory.device import LiveBytes
from lowmem_brats.memory.planner import plan_inference
from lowmem_brats.memory.tiles import starts
from lowmem_brats.segment.patches import gaussian, predict_volume
from lowmem_brats.segment.stack import place
from lowmem_brats.weights.file import load_patch_network
from lowmem_brats.weights.foreign import Foreign, write_foreign
from lowmem_brats.weights.monai_bundle import read_bundle
from lowmem_brats.weights.nnunet_folder import read_nnunet
from lowmem_brats.weights.store import open_set, versions

BUDGETS = ("256M", "300M", "400M", "512M", "1G", "2G", "max")
ROI = (240, 240, 160)
Logits = npt.NDArray[np.float32]


def nnunet_configuration() -> dict[str, Any]:
    """The 3-D network that nnU-Net plans for BraTS: `peers.PLANNED`."""
    stored = models.configuration(patch=(128, 128, 128))
    stored["architecture"] = models.architecture(levels=6)
    stored["architecture"]["arch_kwargs"]["features_per_stage"] = [32, 64, 128, 256, 320, 320]
    return stored


def monai_inference(network: torch.nn.Module, images_CXYZ: Logits) -> tuple[Logits, int, float]:
    """The bundle's preprocessing and sliding window: logits [K, Z, H, W] in its order, peak bytes, seconds."""
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import NormalizeIntensity

    order = [MODALITIES.index(each) for each in ("t1ce", "t1", "t2", "flair")]
    images = torch.as_tensor(NormalizeIntensity(nonzero=True, channel_wise=True)(images_CXYZ[order]))[None]
    inferer = SlidingWindowInferer(roi_size=ROI, sw_batch_size=1, overlap=0.5)
    counter = LiveBytes()
    counter.track(*network.parameters())
    began = time.process_time()
    with torch.no_grad(), counter:
        found = inferer(images, network)[0]
    seconds = time.process_time() - began
    return found.numpy().transpose(0, 3, 2, 1), counter.peak, seconds


def nnunet_inference(
    network: torch.nn.Module, images_CZHW: Logits, patch: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[Logits, int, float]:
    """nnU-Net's tiles by a network, added up in `dtype`: logits [K, Z, H, W] of its crop, a tile's peak, seconds.

    nnU-Net itself adds up in fp16, with weights ten times as large, of which none may become 0.
    """
    missing = [max(side - size, 0) for size, side in zip(images_CZHW.shape[1:], patch, strict=True)]
    inner = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, images_CZHW.shape[1:], strict=True))
    images_CZHW = np.pad(images_CZHW, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    size = images_CZHW.shape[1:]
    weight = (10 * torch.from_numpy(gaussian(patch))).to(dtype)
    weight[weight == 0] = weight[weight > 0].min()
    total, counted = torch.zeros(3, *size, dtype=dtype), torch.zeros(size, dtype=dtype)
    counter = LiveBytes()
    counter.track(*network.parameters())
    began = time.process_time()
    for corner in product(*(starts(*each) for each in zip(size, patch, strict=True))):
        inside = tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        tile = torch.from_numpy(np.ascontiguousarray(images_CZHW[(slice(None), *inside)]))[None]
        with torch.no_grad(), counter:
            logits = network(tile)[0]
        total[(slice(None), *inside)] += logits * weight
        counted[inside] += weight
    mean_KZHW = (total / counted).float().numpy()[(slice(None), *inner)]
    return mean_KZHW, counter.peak, time.process_time() - began


def ours(
    folder: Path, images_CXYZ: Logits, budgets: list[str], precision: str
) -> Iterator[tuple[dict[str, Any], Logits]]:
    """Each budget's plan, measurements and logits [K, Z, H, W]."""
    (file,) = open_set(str(folder)).files
    stack = prepare_whole(images_CXYZ, file.preprocessing, file.modalities)
    brain_ZHW = tuple(side.stop - side.start for side in box_of(stack.brain_ZHW))
    for text in budgets:
        budget = MemoryBudget(None) if text == "max" else parse_budget(text)
        shape_ZHW = stack.brain_ZHW.shape
        plan = plan_inference(file.network, shape_ZHW, budget, "cpu", precision, brain_ZHW=brain_ZHW)
        began = time.process_time()
        found = predict_volume(place(load_patch_network(file), plan), stack, plan)
        row = {"budget": text, "processor_seconds": round(time.process_time() - began, 1), "plan": asdict(plan)}
        row |= {"measured_bytes": found.peak_bytes, "measured_of_predicted": found.peak_bytes / plan.predicted_bytes}
        yield row, found.sum_KZHW


def difference(theirs: Logits, found: Logits) -> dict[str, float | int]:
    """How far two logit maps of WT, TC and ET differ."""
    dice = [2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1) for a, b in zip(theirs > 0, found > 0, strict=True)]
    return {
        "largest_difference_of_logits": float(np.abs(theirs - found).max()),
        "voxels_of_another_label": int(((theirs > 0) != (found > 0)).any(axis=0).sum()),
        "least_dice_between_them": min(dice),
    }


def authors_of_bundle(folder: Path, images_CXYZ: Logits) -> tuple[Foreign, Logits, dict[str, Any]]:
    """Write a bundle and run it as MONAI does: what to import, logits of WT, TC and ET, and what it took."""
    settings, network = models.inference_settings(16, ROI), models.segresnet(16)
    foreign = read_bundle(models.write_bundle(folder, settings, network.state_dict()))
    logits, peak, seconds = monai_inference(network, images_CXYZ)
    order = [foreign.outputs.index(name) for name in ("wt", "tc", "et")]
    return foreign, logits[order], {"processor_seconds": round(seconds, 1), "measured_bytes": peak}


def authors_of_nnunet(folder: Path, images_CXYZ: Logits) -> tuple[Foreign, Logits, dict[str, Any]]:
    """Write a model folder and run its class in nnU-Net's tiles; as `authors_of_bundle`."""
    (network,) = models.write_nnunet(folder, nnunet_configuration())
    stack = prepare_whole(images_CXYZ, "zscore-mask")
    inside = (slice(None), *box_of(stack.brain_ZHW))
    logits, peak, seconds = nnunet_inference(network, stack.slices_ZCHW.swapaxes(0, 1)[inside], (128, 128, 128))
    return read_nnunet(folder), logits, {"processor_seconds": round(seconds, 1), "measured_bytes": peak}


def main() -> None:
    """Run the comparison of one network and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("monai", "nnunet"))
    parser.add_argument("case", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for the models")
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--model", type=Path, help="a model folder of nnU-Net that is there already, with --logits")
    parser.add_argument("--logits", type=Path, help="what nnunet_predictor.py wrote for --model")
    options = parser.parse_args()
    images_CXYZ = read_case(find_case(options.case)).stored_CXYZ
    folder = options.work / options.network
    if options.model:
        foreign, took = read_nnunet(options.model), {"by": "nnU-Net's own predictor, which adds up in fp16"}
        with np.load(options.logits) as stored:
            logits = stored["logits"].astype(np.float32)
    else:
        run = {"monai": authors_of_bundle, "nnunet": authors_of_nnunet}[options.network]
        foreign, logits, took = run(folder, images_CXYZ)
        print(f"authors: {took['processor_seconds']} s, {took['measured_bytes'] / MIB:.0f} MiB", flush=True)
    facts = {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), **versions()}
    result = {**facts, "case": options.case.name, "network": options.network, "authors": took}
    write_foreign(foreign, options.work / "set")
    inside = (slice(None), *box_of((images_CXYZ != 0).any(axis=0).transpose(2, 1, 0)))
    if options.model:
        (file, *_) = open_set(str(options.work / "set"), alone=True).files
        crop_CZHW = prepare_whole(images_CXYZ, file.preprocessing, file.modalities).slices_ZCHW.swapaxes(0, 1)[inside]
        in_half, *_ = nnunet_inference(load_patch_network(file), crop_CZHW, sides_of(file.network.patch), torch.half)
        result["added_up_in_fp16"] = difference(logits, in_half)
        print(result["added_up_in_fp16"])
    rows = []
    for row, found in ours(options.work / "set", images_CXYZ, options.budgets, options.precision):
        same = row["plan"]["relative_time"] == 1.0
        if same:  # random weights tell nothing of how much it matters to see another part of the case
            row |= difference(logits, found if options.network == "monai" else found[inside])
        rows.append(row)
        print({key: value for key, value in row.items() if key != "plan"}, row["plan"]["patch_ZHW"], flush=True)
        options.output.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

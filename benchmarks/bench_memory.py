"""What the project promises about memory, each row planned and then run: `python benchmarks/bench_memory.py OUT.json`.

The code is that of `lowmem-brats bench`. Without a card the plans run on the CPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from lowmem_brats.bench import run_plan
from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import BRATS_SHAPE, NetworkConfig
from lowmem_brats.memory.budget import CUDA_RESERVE, MIB, MemoryBudget
from lowmem_brats.memory.planner import InferencePlan, TrainPlan, plan_inference, plan_train
from lowmem_brats.networks import padded_size

SIZE = BRATS_SHAPE[:2]
W32, W64, B0 = NetworkConfig(width=32), NetworkConfig(width=64), NetworkConfig(name="emcad-b0")
TRANSUNET = NetworkConfig(name="transunet")
TENSORS_OF_2G = 2048 * MIB - CUDA_RESERVE


def promises(device: str) -> dict[str, tuple[NetworkConfig, InferencePlan | TrainPlan, int]]:
    """Name → network, plan, and the most MiB of tensors that it may need."""

    def segment(network: NetworkConfig, precision: str) -> InferencePlan:
        unlimited = MemoryBudget(None)
        return plan_inference(network, padded_size(network, SIZE), unlimited, device, precision, smallest=True)

    def train(network: NetworkConfig, batch: int, most: int | None, smallest: bool = False) -> TrainPlan:
        size_HW = padded_size(network, SIZE)
        return plan_train(network, size_HW, batch, MemoryBudget(most), device, "bf16", smallest=smallest)

    in_2g = f"in {TENSORS_OF_2G // MIB} MiB, what 2 GiB leave beside CUDA"
    return (
        {
            "inference, width 32, smallest plan, bf16": (W32, segment(W32, "bf16"), 32),
            "inference, width 32, smallest plan, fp32": (W32, segment(W32, "fp32"), 64),
            f"training, width 64, batch 10, {in_2g}, bf16": (W64, train(W64, 10, TENSORS_OF_2G), TENSORS_OF_2G // MIB),
            "training, width 32, batch 10, smallest plan, bf16": (W32, train(W32, 10, None, smallest=True), 256),
            "training, width 32, 155 slices as one batch, bf16": (W32, train(W32, 155, 512 * MIB), 512),
            "inference, emcad-b0, smallest plan, bf16": (B0, segment(B0, "bf16"), 16),
            "training, emcad-b0, batch 6, smallest plan, bf16": (B0, train(B0, 6, None, smallest=True), 128),
        }
        | {
            f"training, emcad-b0, batch {batch}, {in_2g}, bf16": (
                B0,
                train(B0, batch, TENSORS_OF_2G),
                TENSORS_OF_2G // MIB,
            )
            for batch in (6, 16, 25, 100)
        }
        | {
            f"training, transunet, batch 10, {in_2g}, bf16": (
                TRANSUNET,
                train(TRANSUNET, 10, TENSORS_OF_2G),
                TENSORS_OF_2G // MIB,
            )
        }
    )


def main() -> None:
    """Run every promise, print a line each, write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    rows = []
    for name, (network, plan, most) in promises(arguments.device).items():
        measured, reserved, seconds = run_plan(network, plan, padded_size(network, SIZE), repeats=1)
        ratio = measured / plan.predicted_bytes
        kept = "kept" if measured <= most * MIB else "BROKEN"
        print(f"{name}: {measured / MIB:.1f} of {most} MiB, measured ÷ predicted {ratio:.3f}, {seconds:.2f} s, {kept}")
        figures = {"measured_bytes": measured, "reserved_bytes": reserved, "seconds": seconds}
        rows.append({"name": name, "most_mib": most} | figures | asdict(plan))
    arguments.out.write_text(json.dumps(conditions(arguments.device) | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

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
from lowmem_brats.config import NetworkConfig
from lowmem_brats.memory.budget import CUDA_RESERVE, MIB, MemoryBudget
from lowmem_brats.memory.planner import InferencePlan, TrainPlan, plan_inference, plan_train

SIZE = (240, 240)
W32, W64 = NetworkConfig(width=32), NetworkConfig(width=64)


def promises(device: str) -> dict[str, tuple[NetworkConfig, InferencePlan | TrainPlan, int]]:
    """Name → network, plan, and the most MiB of tensors that it may need."""
    two_gib = MemoryBudget(2048 * MIB, CUDA_RESERVE)
    return {
        "inference, width 32, smallest plan, bf16": (W32, _segment(device, "bf16"), 32),
        "inference, width 32, smallest plan, fp32": (W32, _segment(device, "fp32"), 64),
        "training, width 64, batch 10, in 2 GiB with the reserve, bf16": (
            W64,
            plan_train(W64, SIZE, 10, two_gib, device, "bf16"),
            (2048 * MIB - CUDA_RESERVE) // MIB,
        ),
        "training, width 32, batch 10, smallest plan, bf16": (W32, _smallest(10, 256, device), 256),
        "training, width 32, 155 slices as one batch, bf16": (W32, _train(155, 512, device), 512),
    }


def _segment(device: str, precision: str) -> InferencePlan:
    return plan_inference(W32, SIZE, MemoryBudget(64 * MIB), device, precision, smallest=True)


def _train(batch: int, mib: int, device: str) -> TrainPlan:
    return plan_train(W32, SIZE, batch, MemoryBudget(mib * MIB), device, "bf16")


def _smallest(batch: int, mib: int, device: str) -> TrainPlan:
    return plan_train(W32, SIZE, batch, MemoryBudget(mib * MIB), device, "bf16", smallest=True)


def main() -> None:
    """Run every promise, print a line each, write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    rows = []
    for name, (network, plan, most) in promises(arguments.device).items():
        measured, reserved, seconds = run_plan(network, plan, SIZE, repeats=1)
        ratio = measured / plan.predicted_bytes
        kept = "kept" if measured <= most * MIB else "BROKEN"
        print(f"{name}: {measured / MIB:.1f} of {most} MiB, measured ÷ predicted {ratio:.3f}, {seconds:.2f} s, {kept}")
        figures = {"measured_bytes": measured, "reserved_bytes": reserved, "seconds": seconds}
        rows.append({"name": name, "most_mib": most} | figures | asdict(plan))
    arguments.out.write_text(json.dumps(conditions(arguments.device) | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

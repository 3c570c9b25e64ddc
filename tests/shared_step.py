"""What `test_parallel` computes, alone and under torchrun: a share of a batch, its loss, gradient, and three steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import TrainingStep, split_batch
from lowmem_brats.networks import build_network

LOSSES = ("dice", "dice+ce")


def take_share(rank: int, size: int) -> dict[str, object]:
    """This process's findings on five slices shared by `size`: the first takes its slices one by one."""
    found: dict[str, object] = {}
    for name in LOSSES:
        torch.manual_seed(0)
        slices, target = torch.randn(5, 4, 16, 16).double(), (torch.rand(5, 1, 16, 16) < 0.2).double()
        step = TrainingStep(build_network(NetworkConfig(width=8, depth=1)).double().train(), find_loss(name))
        share = split_batch(slices[rank::size], target[rank::size], 1 + rank)
        found[name] = [float(value) for value in step.compute_gradients(share, torch.float64)]
        parameters = list(step.network.parameters())
        found[f"{name} gradient"] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).tolist()
        for _ in range(3):
            step.take(share, 1e-2, torch.float64)
        found[f"{name} weights"] = torch.cat([p.detach().flatten() for p in parameters]).tolist()
    return found


def main() -> None:
    """Write this process's findings to a folder."""
    torch.set_num_threads(1)
    with parallel.processes():
        rank = parallel.rank()
        found = take_share(rank, parallel.size()) | {"rank": rank, "size": parallel.size()}
        found |= {"furthest": parallel.furthest(0.25 + rank / 2), "first": parallel.first({"of": rank})}
        found["device"] = parallel.local_device("cpu")
        parallel.wait()
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""What augmentation costs, alone and as a share of a training step: `python benchmarks/bench_augment.py OUT.json`.

Steps with and without it alternate, and the ratio is the median over such pairs, so a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lowmem_brats.augment import apply_augmentation, sample_augmentation
from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import MODALITIES, NetworkConfig, TrainConfig
from lowmem_brats.loss import find_loss
from lowmem_brats.memory.step import TrainingStep, place
from lowmem_brats.networks import build_network
from lowmem_brats.precision import DTYPES, choose_precision

BATCH, SIZE = 10, (192, 160)
WIDTHS = (16, 32)
BATCHES, PAIRS = 50, 41


def noise_in_an_ellipse() -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of z-scores with as much background as BraTS slices have; the target is its brightest pixels."""
    generator = torch.Generator().manual_seed(0)
    slices_NCHW = torch.randn(BATCH, len(MODALITIES), *SIZE, generator=generator)
    y_H1, x_1W = torch.linspace(-1, 1, SIZE[0])[:, None], torch.linspace(-1, 1, SIZE[1])
    slices_NCHW *= y_H1**2 + x_1W**2 < 0.95
    return slices_NCHW, (slices_NCHW[:, :1] > 1).float()


def seconds(run: Callable[[], object], device: str) -> float:
    """Time of one run, until the device has finished."""
    began = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print a line each, write all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = arguments.device
    precision = choose_precision("auto", torch.device(device))
    rng, (slices_NCHW, target_N1HW) = np.random.default_rng(0), noise_in_an_ellipse()

    def augment() -> tuple[torch.Tensor, torch.Tensor]:
        draw = sample_augmentation(rng, slices_NCHW.shape, TrainConfig.modality_dropout)
        augmented = apply_augmentation(draw, slices_NCHW.to(device), target_N1HW.to(device))
        return augmented[0].cpu(), augmented[1].cpu()

    augment()
    alone = statistics.median(seconds(augment, device) for _ in range(BATCHES))
    print(f"augmentation alone: {BATCH / alone:.0f} slices/s, {alone * 1000:.1f} ms per batch of {BATCH}")
    rows = []
    for width in WIDTHS:
        network = place(build_network(NetworkConfig(width=width)), torch.device(device)).train()
        step = TrainingStep(network, find_loss(TrainConfig.loss))

        def train(augmented: bool, step: TrainingStep = step) -> object:
            batch = augment() if augmented else (slices_NCHW, target_N1HW)
            return step.take([batch], TrainConfig.learning_rate, DTYPES[precision])

        train(True)  # the first step makes Adam's state
        pairs = [[seconds(lambda a=augmented: train(a), device) for augmented in (False, True)] for _ in range(PAIRS)]
        ratio = statistics.median(augmented / without for without, augmented in pairs)
        without, augmented = (1 / statistics.median(each) for each in zip(*pairs, strict=True))
        print(f"width {width}: {without:.3f} steps/s without, {augmented:.3f} with; time × {ratio:.3f}")
        rows.append(
            {
                "width": width,
                "steps_per_second_without": without,
                "steps_per_second_with": augmented,
                "time_with_over_without": ratio,
            }
        )
    result = conditions(device) | {
        "precision": precision,
        "batch": BATCH,
        "size_HW": SIZE,
        "statistic": f"medians: of {BATCHES} batches alone; of {PAIRS} alternating pairs of steps and of their ratio",
        "augmentation_slices_per_second": BATCH / alone,
        "augmentation_seconds_per_batch": alone,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

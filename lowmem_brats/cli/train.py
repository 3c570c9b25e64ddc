"""`lowmem-brats train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.errors import InputError

if TYPE_CHECKING:
    from lowmem_brats.fit import Epoch


@click.command()
@click.argument("data", type=options.FILE)
@click.option("-o", "--output", type=options.FILE, required=True, help="Folder for the weights set and run.json.")
@click.option("--width", default=NetworkConfig.width, show_default=True, help="Channels of the U-Net's first level.")
@click.option("--epochs", default=TrainConfig.epochs, show_default=True, help="Passes over the slices, per region.")
@click.option("--max-minutes", type=float, help="Time limit for all three regions; the learning rate still decays.")
@click.option("--batch", default=TrainConfig.batch, show_default=True, help="Slices per step.")
@click.option("--learning-rate", default=TrainConfig.learning_rate, show_default=True, help="Adam's first step size.")
@click.option("--validation", default=TrainConfig.validation, show_default=True, help="Share of patients held out.")
@click.option("--augment/--no-augment", default=TrainConfig.augment, show_default=True, help="Warp the slices.")
@options.device
@options.vram
@options.precision
@options.labels
@click.option("--seed", default=TrainConfig.seed, show_default=True, help="Of split, weights, order and warps.")
@options.overwrite
@options.quiet
def train(data: Path, output: Path, width: int, overwrite: bool, quiet: bool, **settings: object) -> None:
    """Train the WT, TC and ET networks on DATA, a folder of case folders with label maps (*_seg.nii.gz).

    OUTPUT becomes a weights set: lowmem-brats segment --weights OUTPUT.
    """
    config = TrainConfig(network=NetworkConfig(width=width), **settings)  # type: ignore[arg-type]
    if (output / "index.json").exists() and not overwrite:
        raise InputError(output, "holds a weights set already", "a new folder", "Pass --overwrite or another -o.")
    from lowmem_brats.train import train_set

    with console.progress(quiet) as on_progress:
        shown = () if quiet else (_show, console.show_plan)
        report = train_set(data, output, config, on_progress, *shown)
    for text in report.notes:
        console.warn(text)
    if not quiet:
        console.show_peak(report.peak_bytes, report.plan, report.cuda_peak)
        cases = f"{len(report.training_cases)} cases, {len(report.validation_cases)} to validate"
        console.out.print(f"wrote        {output} ({cases}): segment with it by --weights {output}")


def _show(epoch: Epoch) -> None:
    console.out.print(
        f"{epoch.region.upper()} epoch {epoch.number:3d}  step {epoch.steps:6d}  loss {epoch.loss:.3f}  "
        f"validation Dice {epoch.mean_dice:.3f}  {epoch.seconds:.0f} s"
        + (f"  {epoch.skipped_steps} steps left out: gradient not finite" if epoch.skipped_steps else "")
    )

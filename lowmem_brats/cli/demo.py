"""`lowmem-brats demo`."""

from __future__ import annotations

from pathlib import Path

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.phantom import write_phantom
from lowmem_brats.cli.segment import segment_one
from lowmem_brats.config import BRATS_SHAPE, SegmentConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS


@click.command()
@click.argument("out", type=options.FILE, default=Path("lowmem-brats-demo"))
@click.option("--seed", default=0, show_default=True, help="Seed of the synthetic case.")
@options.of(SegmentConfig, "device")
def demo(out: Path, seed: int, device: str) -> None:
    """Make a synthetic case, segment it, score it and draw it: no data, GPU or download needed.

    Everything is written to OUT (default: lowmem-brats-demo). The scores show that the program works on this machine;
    they say nothing about patients.
    """
    from lowmem_brats.evaluate.pairs import evaluate_pairs, summarise
    from lowmem_brats.segment.result_path import Outputs

    config = SegmentConfig(device=device)
    console.out.print("making a synthetic case (geometry and noise, not a patient) …")
    folder = write_phantom(out, seed, BRATS_SHAPE, overwrite=True)
    label_map = out / f"{folder.name}_seg.nii.gz"
    outputs = Outputs.beside(label_map, folder.name, preview=True, page=True)
    segment_one(find_case(folder), outputs, config, quiet=False, overwrite=True)
    convention = CONVENTIONS[config.labels]
    pair = (folder.name, label_map, folder / f"{folder.name}_seg.nii.gz")
    scores = evaluate_pairs([pair], convention, convention)
    console.show_scores(scores, summarise(scores))

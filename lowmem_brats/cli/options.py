"""Options that several commands share; defaults are read from the configuration."""

from __future__ import annotations

from pathlib import Path

import click

from lowmem_brats.config import PRECISIONS, SegmentConfig
from lowmem_brats.labels import CONVENTIONS

FILE = click.Path(path_type=Path)

quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bars and no tables; warnings stay.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace files that exist already.")
device = click.option(
    "--device",
    default=SegmentConfig.device,
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    help="auto: CUDA when usable, else the CPU.",
)
precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=SegmentConfig.precision,
    show_default=True,
    help="auto: the half format that the device has hardware for, else fp32.",
)
vram = click.option(
    "--vram",
    default=SegmentConfig.vram,
    show_default=True,
    metavar="2G|1536M|75%|max",
    help="Memory budget, G is GiB. On a card for everything, CUDA included; on the CPU for live tensors.",
)
labels = click.option(
    "--labels",
    type=click.Choice(list(CONVENTIONS)),
    default=SegmentConfig.labels,
    show_default=True,
    help="Label convention: ET is 4 in brats2020 and 3 in brats2023; msd swaps 1 and 2.",
)

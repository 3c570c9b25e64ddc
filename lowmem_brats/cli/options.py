"""Options that several commands share; their defaults are read from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from lowmem_brats.config import BRATS_SHAPE, MODALITIES, PRECISIONS, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.errors import InputError

FILE = click.Path(path_type=Path)

Command = TypeVar("Command", bound=Callable[..., Any])


def setting(
    name: str, field: str, text: str, *, of: type[NetworkConfig | SegmentConfig | TrainConfig], **settings: Any
) -> Callable[[Command], Command]:
    """An option with the default of a field of a configuration class; `text` is its help."""
    default = getattr(of, field)
    return click.option(name, field, default=default, show_default=default is not None, help=text, **settings)


quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress bars and tables, only warnings.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")
device = setting(
    "--device",
    "device",
    "Where to compute. auto: a usable CUDA card, else the CPU.",
    of=SegmentConfig,
    metavar="auto|cpu|cuda[:N]",
)
precision = setting(
    "--precision",
    "precision",
    "Floating-point format. auto: a half format if the device has hardware for it, else fp32.",
    of=SegmentConfig,
    type=click.Choice(PRECISIONS),
)
network = click.option(
    "--network",
    default=NetworkConfig.name,
    show_default=True,
    metavar="unet2d|emcad-b0|emcad-b2",
    help="Architecture, as listed under Networks in the README.",
)
size = click.option(
    "--size",
    nargs=2,
    type=int,
    metavar="H W",
    help="Size of a slice in pixels. Default: 240 240, padded if the network needs it.",
)
vram = setting(
    "--vram",
    "vram",
    "Memory budget; G means GiB. On a card it includes CUDA; on the CPU it is for live tensors only.",
    of=SegmentConfig,
    metavar="2G|1536M|75%|max",
)
allow_missing = click.option(
    "--allow-missing",
    multiple=True,
    type=click.Choice(MODALITIES),
    help="Go on without this modality where it is missing, with zeros in its place; repeatable, two must be there. "
    "Without t1ce no enhancing tumour is found.",
)
labels = setting(
    "--labels",
    "labels",
    "Label convention: ET is 4 in brats2020 and 3 in brats2023; msd is brats2023 with 1 and 2 swapped.",
    of=SegmentConfig,
    type=click.Choice(list(CONVENTIONS)),
)


def check_width(network: NetworkConfig, named: Collection[str]) -> None:
    """Raise InputError if `named` holds a width although the network's width cannot be chosen."""
    from lowmem_brats.networks import has_width

    if "width" in named and not has_width(network):
        raise InputError("--width", f"a width for {network.name}", "none: its size is fixed", "Leave the option out.")


def size_of(network: NetworkConfig, size: tuple[int, int] | None) -> tuple[int, int]:
    """The slice size that the user gave, or BraTS's, padded as the network needs it."""
    from lowmem_brats.networks import padded_size

    return size or padded_size(network, BRATS_SHAPE[:2])


def named(ctx: click.Context) -> set[str]:
    """The names of the parameters that the user gave on the command line."""
    sources = {key: ctx.get_parameter_source(key) for key in ctx.params}
    return {key for key, source in sources.items() if source is ParameterSource.COMMANDLINE}

"""`lowmem-brats import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.errors import InputError

if TYPE_CHECKING:
    from lowmem_brats.weights.foreign import Foreign


@click.command("import")
@click.argument("source", type=options.FILE)
@click.option("-o", "--output", type=options.FILE, required=True, help="A folder for the set; made if need be.")
@options.overwrite
@options.quiet
def import_(source: Path, output: Path, overwrite: bool, quiet: bool) -> None:
    """Make a set of weights for `segment --weights` out of a network that others have trained.

    SOURCE is the folder of a MONAI bundle with a SegResNet for BraTS, or a trained model folder of nnU-Net v2. Nothing
    in it is ever run. The order of channels and outputs, normalisation and patch are carried over; a model of which
    something cannot be carried over is refused. The folds of an nnU-Net become sets whose predictions are averaged, one
    in memory at a time.
    """
    from lowmem_brats.networks import title_of
    from lowmem_brats.weights.foreign import write_foreign
    from lowmem_brats.weights.index import INDEX

    if (output / INDEX).exists() and not overwrite:
        raise InputError(output, "a set is there already", "a new folder", "Choose another -o, or pass --overwrite.")
    foreign = _read(source)
    written = write_foreign(foreign, output)
    for note in foreign.notes:
        console.warn(note)
    if not quiet:
        network = foreign.network
        console.out.print(f"imported     {foreign.kind}: {title_of(network)}, patches of {network.patch} (Z × Y × X)")
        console.out.print(f"channels     {' '.join(foreign.modalities)} · outputs {' '.join(foreign.outputs)}")
        console.out.print("wrote        " + "\n             ".join(map(str, [*written, output / INDEX])))


def _read(source: Path) -> Foreign:
    """Read a source as what it is. Raises InputError for one that is neither a bundle nor a model folder."""
    from lowmem_brats.weights.monai_bundle import CONFIGS, WEIGHTS, read_bundle
    from lowmem_brats.weights.nnunet_folder import read_nnunet

    folder = source.absolute().parents[1] if source.name == WEIGHTS.name and source.is_file() else source
    if (source / "plans.json").is_file():
        return read_nnunet(source)
    if (folder / CONFIGS / "metadata.json").is_file():
        return read_bundle(folder)
    found = "no configs/metadata.json and no plans.json in it" if source.exists() else "not there"
    expected = "the folder of a MONAI bundle, or a trained model folder of nnU-Net v2"
    raise InputError(source, found, expected, "Name the folder that holds all its files.")

"""`lowmem-brats phantom`."""

from __future__ import annotations

from pathlib import Path

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import BRATS_SHAPE, MODALITIES
from lowmem_brats.files import check_output


@click.command()
@click.argument("out", type=options.FILE)
@click.option("-n", "count", default=1, show_default=True, type=click.IntRange(min=1), help="Number of cases.")
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the first case; each further case has the next number."
)
@click.option(
    "--shape", nargs=3, type=int, default=BRATS_SHAPE, show_default=True, metavar="X Y Z", help="Size in voxels."
)
@options.overwrite
@options.quiet
def phantom(out: Path, count: int, seed: int, shape: tuple[int, int, int], overwrite: bool, quiet: bool) -> None:
    """Write synthetic BraTS-like cases with their label maps to OUT/<case_id>/.

    They are made from geometry and noise, not from patients: good for trying the program, not for training a useful
    network.
    """
    with console.progress(quiet) as on_progress:
        for number in range(count):
            write_phantom(out, seed + number, shape, overwrite)
            on_progress("phantoms", number + 1, count)
    if not quiet:
        console.out.print(f"wrote {count} synthetic case{'s' if count > 1 else ''} to {out}")


def write_phantom(out: Path, seed: int, shape: tuple[int, int, int], overwrite: bool) -> Path:
    """Make one synthetic case and write it as a BraTS folder inside `out`; returns the folder.

    `shape`: voxels X, Y, Z. Raises InputError for an existing file, unless `overwrite`.
    """
    from lowmem_brats.data.nifti import write_volume
    from lowmem_brats.data.phantom import make_phantom

    case = make_phantom(seed, shape)
    folder = out / case.case_id
    folder.mkdir(parents=True, exist_ok=True)
    volumes = dict(zip((*MODALITIES, "seg"), (*case.images_CXYZ, case.label_XYZ), strict=True))
    paths = {name: folder / f"{case.case_id}_{name}.nii.gz" for name in volumes}
    for path in paths.values():
        check_output(path, overwrite)
    for name, volume in volumes.items():
        write_volume(volume, case.affine, paths[name], overwrite)
    return folder

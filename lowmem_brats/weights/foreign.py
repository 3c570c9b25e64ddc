"""Networks that others have trained, made into sets of weights of this project.

`monai_bundle` and `nnunet_folder` read what their authors wrote and say all that they want to be carried over; here it
is checked against the network itself and written. Files are read and checked one at a time, and nothing is written
before all are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem_brats.config import FUSIONS, MODALITIES, PREPROCESSING, NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.networks import build_patch_network, mismatches
from lowmem_brats.weights.file import save_tensors
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import write_sets

NOTES = "notes"
"""Among what a header says of the training: how the network is not run as its authors run it."""
TISSUES = ("background", "ncr", "ed", "et")
"""The outputs of a network of tissues, in this project's order."""


@dataclass(frozen=True)
class Foreign:
    """A network as its authors left it, and what it wants."""

    kind: str
    """In words: `MONAI bundle`."""
    network: NetworkConfig
    modalities: tuple[str, ...]
    """The order of its channels."""
    outputs: tuple[str, ...]
    """The order of its outputs: names of regions, or of TISSUES."""
    checkpoints: Mapping[str, Path]
    """Name of each set → its file; those of several folds are averaged."""
    read: Callable[[Path], Mapping[str, Tensor]]
    """Reads the tensors of a file, named as the authors' class names them."""
    preprocessing: str = PREPROCESSING
    facts: Mapping[str, Any] | None = None
    """What else its files say, for the header."""
    notes: Sequence[str] = ()
    """What is never run here as its authors run it."""


def check_carried(where: Path, problems: Sequence[str], kind: str) -> None:
    """Raise InputError listing all that cannot be carried over, if there is anything."""
    if problems:
        expected = "a network for the four BraTS images at 1 mm and its three regions"
        advice = f"This {kind} cannot be run here as its authors run it."
        raise InputError(where, "; ".join(problems), expected, advice)


def write_foreign(foreign: Foreign, folder: Path) -> list[Path]:
    """Write the sets of a network into a folder, with their index; returns the files.

    Raises WeightsError listing every tensor that does not fit, before anything is written.
    """
    for path in foreign.checkpoints.values():
        _carried(foreign, path)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.safetensors" for name in foreign.checkpoints}
    for name, path in foreign.checkpoints.items():
        training = {"imported": foreign.kind, "outputs": list(foreign.outputs), NOTES: list(foreign.notes)}
        file = WeightsFile(files[name], tuple(Region), foreign.network, training | dict(foreign.facts or {}), {})
        file = replace(file, modalities=foreign.modalities, preprocessing=foreign.preprocessing, fusion=FUSIONS[1])
        save_tensors(_carried(foreign, path), file)
    write_sets(folder, {name: dict.fromkeys(Region, path) for name, path in files.items()})
    return [*files.values()]


def _carried(foreign: Foreign, path: Path) -> dict[str, Tensor]:
    """The tensors of a file as the network here names and orders them, fp32. Raises WeightsError."""
    with torch.device("meta"):
        network = build_patch_network(foreign.network)
    found, keys = foreign.read(path), network.authors_keys
    problems = [f"{key} missing" for key, ours in keys.items() if ours and key not in found]
    problems += [f"{key} unexpected" for key in found if key not in keys]
    carried = {keys[key]: value.float() for key, value in found.items() if keys.get(key)}
    if not problems:
        problems = mismatches(carried, network.state_dict())
    if problems:
        told = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise WeightsError(path, told, f"the tensors of {foreign.network.name} as configured", "Copy the folder again.")
    head, wanted = id(network.last_bias()), TISSUES if foreign.network.tissues else tuple(each.value for each in Region)
    order = [foreign.outputs.index(name) for name in wanted]
    (bias,) = (key for key, tensor in network.state_dict(keep_vars=True).items() if id(tensor) == head)
    for key in (bias, bias.removesuffix("bias") + "weight"):
        carried[key] = carried[key][order]
    return carried


MODALITY_NAMES = {
    **dict.fromkeys(("t1", "t1n", "t1w", "t1native"), "t1"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1wce", "ct1", "t1contrast"), "t1ce"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("flair", "t2f", "fla", "t2flair"), "flair"),
}
"""What authors call a modality, in small letters without marks → what it is called here."""


def plain(name: object) -> str:
    """A name in small letters, without marks and spaces."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def modalities_of(names: Sequence[object]) -> tuple[tuple[str, ...], list[str]]:
    """The modalities that the names of channels mean, in order, and what is wrong with them."""
    found = tuple(MODALITY_NAMES.get(plain(name), "") for name in names)
    if sorted(found) != sorted(MODALITIES):
        return MODALITIES, [f"channels {', '.join(map(str, names)) or 'none'}, not T1, T1ce, T2 and FLAIR"]
    return found, []

"""Weights files: safetensors in fp16, one per network, each with a header that describes it.

A set is three networks of one region each, or one network of all three, and an `index.json` with checksums. Several
sets of one kind can be opened together: they share the views. Weights are untrusted input: they are checked, never
unpickled, and never downloaded.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lowmem_brats import __version__
from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import WeightsError, did_you_mean
from lowmem_brats.files import replace_when_complete
from lowmem_brats.networks import (
    AnyNetwork,
    PatchNetwork,
    SliceNetwork,
    build_network,
    build_patch_network,
    mismatches,
    patches_of,
)
from lowmem_brats.weights.header import WeightsFile as WeightsFile
from lowmem_brats.weights.header import header_of
from lowmem_brats.weights.header import read_header as read_header

INDEX = "index.json"
MIN_CONFIDENCE = "min_confidence"
"""Beside a set's regions in the index: `WeightsSet.min_confidence`."""
_PACKAGE = Path(__file__).parents[1]
SHIPPED = next((p for p in (_PACKAGE / "_weights", _PACKAGE.parent / "weights") if p.is_dir()), _PACKAGE / "_weights")
"""Inside the wheel, or beside the package in a checkout."""


@dataclass(frozen=True)
class WeightsSet:
    """The networks of a set, or of several."""

    name: str
    files: tuple[WeightsFile, ...]
    """The files of the first set (three of one region each, WT first, or one of all three), then of the next."""
    min_confidence: float = 0.0
    """The share for `drop_doubtful` that suits these networks; 0, which keeps all, where a set states none."""

    @property
    def network(self) -> NetworkConfig:
        """The architecture, which all networks share."""
        return self.files[0].network

    def by_region(self) -> list[list[WeightsFile]]:
        """For each region (WT first), or once for all three: the file of each set, in the order of the sets."""
        return [[f for f in self.files if f.regions == each] for each in dict.fromkeys(f.regions for f in self.files)]


def open_set(names: str | Sequence[str] = (), alone: bool = False) -> WeightsSet:
    """Open sets of weights: verify checksums and read the headers, but no tensors yet.

    `names`: names of shipped sets or folders, one or several to open together; none: the shipped default, which may be
    several; `alone`: open only the first of several. Raises WeightsError if there is no such set, if files are damaged
    or have headers that this version cannot use (all listed at once), if the sets are of different networks, or if
    there are more sets than sides from which they see a case.
    """
    places = [_find(name) for name in ([names] if isinstance(names, str) else names)] or [_find_in(SHIPPED)]
    found = [each for place in places for each in place]
    opened = [_open_one(folder, name) for folder, name in (found[:1] if alone else found)]
    if len({weights.network for weights in opened}) > 1:
        kinds = "; ".join(f"{weights.name}: {weights.network}" for weights in opened)
        raise WeightsError("--weights", kinds, "sets of one kind", "Name one of them.")
    views = opened[0].network.views
    if len(opened) > views and not patches_of(opened[0].network):
        expected = f"at most {views}: each set looks from another side, and these networks see {views}"
        raise WeightsError("--weights", f"{len(opened)} sets", expected, "Name fewer sets.")
    files = tuple(file for weights in opened for file in weights.files)
    least = min(weights.min_confidence for weights in opened)
    return WeightsSet(" + ".join(weights.name for weights in opened), files, least)


def _find(name: str) -> list[tuple[Path, str]]:
    """The folder and name of every set that one name stands for."""
    return _find_in(Path(name)) if name and Path(name).is_dir() else [(SHIPPED, name)]


def _find_in(folder: Path) -> list[tuple[Path, str]]:
    return [(folder, name) for name in _read_index(folder / INDEX)["default"]]


def _open_one(folder: Path, chosen: str) -> WeightsSet:
    index = _read_index(folder / INDEX)
    if chosen not in index["sets"]:
        known = ", ".join(index["sets"])
        advice = did_you_mean(chosen, index["sets"], "Check --weights.")
        raise WeightsError(f"weights {chosen!r}", "no such set or folder", f"a folder or one of: {known}", advice)
    files, problems = dict[tuple[str, str], WeightsFile](), dict[str, str]()
    for region in Region:
        row = index["sets"][chosen].get(region.value)
        try:
            if row is None:
                raise WeightsError(
                    folder / INDEX, f"no {region.value} in {chosen}", "wt, tc and et", "Train the region."
                )
            key = row["file"], row["sha256"]
            file = files[key] = files.get(key) or _open_file(folder, row["file"], row["sha256"])
            if region not in file.regions:
                advice = "Put the files in their places."
                raise WeightsError(file.path, f"weights for {file.name}", f"for {region.value}", advice)
        except WeightsError as p:
            problems[f"{p.where}: {p.found}, expected {p.expected}"] = p.advice
    if problems:
        advice = next(iter(problems.values()))
        raise WeightsError(f"weights {chosen!r}", "; ".join(problems), "sound files for wt, tc and et", advice)
    opened = tuple(files.values())
    if len({file.network for file in opened}) > 1 or [r for file in opened for r in file.regions] != list(Region):
        found = "; ".join(f"{file.path.name}: {file.network}" for file in opened)
        expected = "one network of all three regions, or three of one kind"
        raise WeightsError(f"weights {chosen!r}", found, expected, "Do not mix files of different sets.")
    return WeightsSet(chosen, opened, float(index["sets"][chosen].get(MIN_CONFIDENCE, 0)))


def _read_index(path: Path) -> dict[str, Any]:
    """The sets by name, and the names of the default sets, which share the views."""
    if not path.exists() and (path.parent / "run.json").exists():
        found, advice = "a training that has given no set yet", "Go on: lowmem-brats train DATA -o FOLDER --resume."
        raise WeightsError(path.parent, found, "one with networks for wt, tc and et", advice)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        sets = index["sets"].values()
        entries = [entry for rows in sets for key, entry in rows.items() if key != MIN_CONFIDENCE]
        shares = [rows.get(MIN_CONFIDENCE, 0) for rows in sets]
        default = index["default"]
        names = [default] if isinstance(default, str) else [*default]
        texts = [*names, *(entry[key] for entry in entries for key in ("file", "sha256"))]
        sound = all(type(share) in (float, int) and 0 <= share <= 1 for share in shares)
        if names and sound and all(isinstance(text, str) for text in texts):
            return {"default": names, "sets": index["sets"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise WeightsError(path, "missing or damaged", "an index of weights sets", "Reinstall, or train the set again.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open_file(folder: Path, name: str, sha256: str) -> WeightsFile:
    """Open a file that an index names. Raises WeightsError where it lies outside the index's folder, by a link too."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no name for a file, or links in a circle
        inside = False
    if not inside:
        found, advice = f"names {name!r}, outside its folder", "Put the file itself into the folder, and name it there."
        raise WeightsError(folder / INDEX, found, "files beside it or below", advice)
    if not path.is_file():
        raise WeightsError(path, "missing", "a weights file", "Reinstall, or train the set again.")
    if _sha256(path) != sha256:
        raise WeightsError(path, "checksum differs", f"sha256 {sha256[:12]}…", "The file is damaged: copy it again.")
    return replace(read_header(path), sha256=sha256)


def load_network(file: WeightsFile) -> SliceNetwork:
    """Build the network of a weights file on the CPU, fp32, in evaluation mode.

    Raises WeightsError listing every tensor that is missing, unexpected, of another shape or not finite.
    """
    return _load(file, build_network)


def load_patch_network(file: WeightsFile) -> PatchNetwork:
    """As `load_network`, for a file whose network sees patches."""
    return _load(file, build_patch_network)


def _load(file: WeightsFile, build: Callable[[NetworkConfig], AnyNetwork]) -> AnyNetwork:
    with torch.device("meta"):  # no memory yet: the header is untrusted, and the file must hold as much as it says
        network = build(file.network)
    wanted = network.state_dict()
    try:
        with safe_open(file.path, framework="pt") as stored:
            found = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (it is not a dict)
        problems = mismatches(found, wanted)
    except (SafetensorError, RuntimeError, TypeError, OSError) as error:  # a format that torch cannot read or check
        raise WeightsError(file.path, f"tensors not understood ({error})", "sound weights", "Copy it again.") from error
    if problems:
        expected = f"the tensors of {file.network}"
        raise WeightsError(file.path, "; ".join(problems), expected, "Use weights of this network.")
    network.load_state_dict({key: found[key].to(like.dtype) for key, like in wanted.items()}, assign=True)
    return network.eval()


def save_network(network: SliceNetwork, file: WeightsFile) -> None:
    """Write a network's weights in fp16 with their header to `file.path`, whole or not at all."""
    save_tensors({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}, file)


def save_tensors(tensors: Mapping[str, Tensor], file: WeightsFile, **more: str) -> None:
    """Write tensors as they are, as `save_network`; `more`: of a network of patches, `fusion`."""
    with replace_when_complete(file.path) as partial:
        # save_file() reports a full disk as an error of its own
        partial.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, header_of(file) | more))


def versions() -> dict[str, str]:
    """The versions of this program, torch and Python, for reports and headers."""
    return {"lowmem-brats": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_index(folder: Path, name: str, files: Mapping[Region, Path]) -> None:
    """Write `folder/index.json` for one set of files that lie in or under `folder`."""
    write_sets(folder, {name: files})


def write_sets(folder: Path, sets: Mapping[str, Mapping[Region, Path]]) -> None:
    """Write `folder/index.json` for sets that are used together; files as in `write_index`."""
    rows = {
        name: {
            region.value: {"file": path.relative_to(folder).as_posix(), "sha256": _sha256(path)}
            for region, path in files.items()
        }
        for name, files in sets.items()
    }
    default = [*rows] if len(rows) > 1 else next(iter(rows))
    with replace_when_complete(folder / INDEX) as partial:
        partial.write_text(json.dumps({"default": default, "sets": rows}, indent=2) + "\n", encoding="utf-8")

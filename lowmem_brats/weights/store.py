"""Sets of weights: which files they are made of, opened and checked.

A set is three networks of one region each, or one network of all three, and an `index.json` with checksums. Several
sets of one kind can be opened together: they share the views. A bank is several sets of one network of all three each,
of different kinds, and a decision network that says which of them segments a slice. Nothing is ever downloaded.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lowmem_brats import __version__
from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import WeightsError, did_you_mean
from lowmem_brats.networks import patches_of, stride_of
from lowmem_brats.weights.decision import Bank, read_decision
from lowmem_brats.weights.expected import EXPECTED_DICE, DiceModel, read_models
from lowmem_brats.weights.header import WeightsFile, read_header
from lowmem_brats.weights.index import INDEX, MIN_CONFIDENCE, read_index, sha256_of

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
    expected: Mapping[Region, DiceModel] = field(default_factory=dict)
    """What the set knows of its mistakes; empty where it states nothing, and for several sets and banks."""
    bank: Bank | None = None
    """Where they are a bank: its members, in the order of `files`, and what chooses among them."""

    @property
    def network(self) -> NetworkConfig:
        """The architecture, which all networks share; of a bank that of its largest member."""
        return self.files[-1].network

    @property
    def networks(self) -> tuple[NetworkConfig, ...]:
        """The architectures: one, but in a bank one for each member."""
        return tuple(dict.fromkeys(file.network for file in self.files))

    @property
    def stride(self) -> int:
        """H and W must be multiples of this for every network."""
        return math.lcm(*map(stride_of, self.networks))

    @property
    def paths(self) -> list[Path]:
        """All files that make it up."""
        return [file.path for file in self.files] + ([self.bank.decision.path] if self.bank else [])

    @property
    def checksums(self) -> list[tuple[str, str]]:
        """Of each file, the names of its regions, or its name in a bank, and its sha256."""
        if not self.bank:
            return [(file.name, file.sha256) for file in self.files]
        decision = self.bank.decision
        return [*decision.members.items(), ("decision", decision.sha256)]

    def by_region(self) -> list[list[WeightsFile]]:
        """For each region (WT first), or once for all three: the file of each set, in the order of the sets."""
        return [[f for f in self.files if f.regions == each] for each in dict.fromkeys(f.regions for f in self.files)]


def shipped_names() -> tuple[str, ...]:
    """The names of the sets that come with the program, the default first. Raises WeightsError without an index."""
    index = read_index(SHIPPED / INDEX)
    return tuple(dict.fromkeys((*index["default"], *index["sets"])))


def open_set(names: str | Sequence[str] = (), alone: bool = False, member: str | None = None) -> WeightsSet:
    """Open sets of weights: verify checksums and read the headers, but no tensors yet.

    `names`: names of shipped sets or folders, one or several to open together; none: the shipped default, which may be
    several; `alone`: open only the first of several; `member`: open only this member of a bank. Raises WeightsError if
    there is no such set or member, if files are damaged or have headers that this version cannot use (all listed at
    once), if the sets are of different networks, or if there are more sets than sides from which they see a case.
    """
    places = [_find(name) for name in ([names] if isinstance(names, str) else names)] or [_find_in(SHIPPED)]
    found = [each for place in places for each in place]
    opened = [_open_one(folder, name, member) for folder, name in (found[:1] if alone else found)]
    if len(opened) > 1 and any(weights.bank for weights in opened):
        raise WeightsError("--weights", "a bank and other sets", "a bank alone", "Name one of them.")
    if len({weights.network for weights in opened}) > 1:
        kinds = "; ".join(f"{weights.name}: {weights.network}" for weights in opened)
        raise WeightsError("--weights", kinds, "sets of one kind", "Name one of them.")
    views = opened[0].network.views
    if len(opened) > views and not patches_of(opened[0].network):
        expected = f"at most {views}: each set looks from another side, and these networks see {views}"
        raise WeightsError("--weights", f"{len(opened)} sets", expected, "Name fewer sets.")
    files = tuple(file for weights in opened for file in weights.files)
    least = min(weights.min_confidence for weights in opened)
    models = opened[0].expected if len(opened) == 1 else {}
    return WeightsSet(" + ".join(weights.name for weights in opened), files, least, models, opened[0].bank)


def _find(name: str) -> list[tuple[Path, str]]:
    """The folder and name of every set that one name stands for."""
    return _find_in(Path(name)) if name and Path(name).is_dir() else [(SHIPPED, name)]


def _find_in(folder: Path) -> list[tuple[Path, str]]:
    return [(folder, name) for name in read_index(folder / INDEX)["default"]]


def _open_one(folder: Path, chosen: str, member: str | None = None) -> WeightsSet:
    """Open a set, a bank or a member of it."""
    index = read_index(folder / INDEX)
    bank = index["banks"].get(chosen)
    if member is not None:
        members = bank["gmac_per_megapixel"] if bank else {}
        if member not in members:
            found = f"{member!r}, no member of {chosen}"
            expected = f"one of: {', '.join(members)}" if bank else "none: these weights are no bank"
            raise WeightsError("--member", found, expected, did_you_mean(member, members, "Check --member."))
        return replace(_open_set(folder, member, index), name=f"{chosen}, {member}")
    if bank:
        return _open_bank(folder, chosen, index)
    if chosen not in index["sets"]:
        known = ", ".join((*index["banks"], *index["sets"]))
        advice = did_you_mean(chosen, [*index["banks"], *index["sets"]], "Check --weights.")
        raise WeightsError(f"weights {chosen!r}", "no such set or folder", f"a folder or one of: {known}", advice)
    return _open_set(folder, chosen, index)


def _open_bank(folder: Path, chosen: str, index: Mapping[str, Any]) -> WeightsSet:
    """Open the members and read the decision network's header. Raises WeightsError listing all that does not fit."""
    row, problems, members = index["banks"][chosen], list[str](), list[WeightsSet]()
    for name in row["gmac_per_megapixel"]:
        try:
            if name not in index["sets"]:
                raise WeightsError(folder / INDEX, f"no set {name}", "every member", "Train the bank again.")
            members.append(_open_set(folder, name, index))
        except WeightsError as problem:
            problems.append(f"{problem.where}: {problem.found}, expected {problem.expected}")
    try:
        sha256 = row["decision"]["sha256"]
        decision = replace(read_decision(_checked(folder, row["decision"]["file"], sha256)), sha256=sha256)
    except WeightsError as problem:
        problems.append(f"{problem.where}: {problem.found}, expected {problem.expected}")
    if not problems:
        problems += [f"{each.name}: a network for each region" for each in members if len(each.files) > 1]
        seen = {(each.network.views, each.network.context) for each in members}
        problems += ["members of different views or neighbours"] if len(seen) > 1 else []
        there = [(each.name, each.files[0].sha256) for each in members]
        problems += ["the decision network was trained for other members"] * ([*decision.members.items()] != there)
    if problems:
        expected = "members of all three regions each, and the decision network that was trained for them"
        advice = "Do not mix files of different banks: copy or train the whole bank again."
        raise WeightsError(f"bank {chosen!r}", "; ".join(problems), expected, advice)
    files = tuple(each.files[0] for each in members)
    least = min(each.min_confidence for each in members)
    return WeightsSet(chosen, files, least, bank=Bank(row["gmac_per_megapixel"], decision))


def _open_set(folder: Path, chosen: str, index: Mapping[str, Any]) -> WeightsSet:
    """Open the networks of the three regions. Raises WeightsError listing all that is wrong with them."""
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
    row = index["sets"][chosen]
    return WeightsSet(chosen, opened, float(row.get(MIN_CONFIDENCE, 0)), read_models(row.get(EXPECTED_DICE, {})))


def _open_file(folder: Path, name: str, sha256: str) -> WeightsFile:
    return replace(read_header(_checked(folder, name, sha256)), sha256=sha256)


def _checked(folder: Path, name: str, sha256: str) -> Path:
    """A file that an index names. Raises WeightsError where it is missing, damaged or, by a link too, elsewhere."""
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
    if sha256_of(path) != sha256:
        raise WeightsError(path, "checksum differs", f"sha256 {sha256[:12]}…", "The file is damaged: copy it again.")
    return path


def versions() -> dict[str, str]:
    """The versions of this program, torch and Python, for reports and headers."""
    return {"lowmem-brats": __version__, "torch": torch.__version__, "python": platform.python_version()}

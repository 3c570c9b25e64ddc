"""`index.json` of a folder of weights: which files make up which set, their checksums, and which sets are the default.

A bank is an entry of its own that names sets of the same index as its members, and the file of its decision network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowmem_brats.data.labels import Region
from lowmem_brats.errors import WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.weights.expected import EXPECTED_DICE, read_models

INDEX = "index.json"
MIN_CONFIDENCE = "min_confidence"
"""Beside a set's regions in the index: `WeightsSet.min_confidence`."""


def read_index(path: Path) -> dict[str, Any]:
    """`default`: the names of the default sets, which share the views; `sets` and `banks` by name.

    Raises WeightsError where there is no such file, or one that does not say this.
    """
    if not path.exists() and (path.parent / "run.json").exists():
        found, advice = "a training that has given no set yet", "Go on: lowmem-brats train DATA -o FOLDER --resume."
        raise WeightsError(path.parent, found, "one with networks for wt, tc and et", advice)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        default, sets, banks = index["default"], index["sets"], index.get("banks", {})
        names = [default] if isinstance(default, str) else [*default]
        if names and all(isinstance(text, str) for text in (*names, *_texts(sets, banks))) and _numbers(sets, banks):
            for rows in sets.values():
                read_models(rows.get(EXPECTED_DICE, {}))
            return {"default": names, "sets": sets, "banks": banks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise WeightsError(path, "missing or damaged", "an index of weights sets", "Reinstall, or train the set again.")


def _texts(sets: dict[str, Any], banks: dict[str, Any]) -> Iterator[object]:
    """Everything that must be text."""
    beside = MIN_CONFIDENCE, EXPECTED_DICE
    files = [entry for rows in sets.values() for key, entry in rows.items() if key not in beside]
    for entry in (*files, *(bank["decision"] for bank in banks.values())):
        yield from (entry["file"], entry["sha256"])
    for bank in banks.values():
        yield from bank["gmac_per_megapixel"].keys()


def _numbers(sets: dict[str, Any], banks: dict[str, Any]) -> bool:
    """Whether everything that must be a number is one that makes sense."""
    shares = [rows.get(MIN_CONFIDENCE, 0) for rows in sets.values()]
    costs = [cost for bank in banks.values() for cost in bank["gmac_per_megapixel"].values()]
    are_numbers = all(type(number) in (float, int) for number in (*shares, *costs))
    return are_numbers and all(0 <= share <= 1 for share in shares) and all(0 < cost < 1e6 for cost in costs)


def write_index(folder: Path, name: str, files: Mapping[Region, Path]) -> None:
    """Write `folder/index.json` for one set of files that lie in or under `folder`."""
    write_sets(folder, {name: files})


def write_sets(folder: Path, sets: Mapping[str, Mapping[Region, Path]]) -> None:
    """Write `folder/index.json` for sets that are used together; files as in `write_index`."""
    rows = {name: _rows(folder, files) for name, files in sets.items()}
    _write(folder, {"default": [*rows] if len(rows) > 1 else next(iter(rows)), "sets": rows})


def write_bank_index(folder: Path, name: str, members: Mapping[str, tuple[Path, float]], decision: Path) -> None:
    """Write `folder/index.json` for a bank whose files lie in or under `folder`.

    `members`: name → the weights file of all three regions, and 10⁹ multiply-adds per megapixel; the smallest first.
    """
    sets = {member: _rows(folder, dict.fromkeys(Region, path)) for member, (path, _) in members.items()}
    costs = {member: round(cost, 4) for member, (_, cost) in members.items()}
    bank = {"gmac_per_megapixel": costs, "decision": _row(folder, decision)}
    _write(folder, {"default": name, "sets": sets, "banks": {name: bank}})


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(folder: Path, files: Mapping[Region, Path]) -> dict[str, dict[str, str]]:
    return {region.value: _row(folder, path) for region, path in files.items()}


def _row(folder: Path, path: Path) -> dict[str, str]:
    return {"file": path.relative_to(folder).as_posix(), "sha256": sha256_of(path)}


def _write(folder: Path, index: Mapping[str, Any]) -> None:
    with replace_when_complete(folder / INDEX) as partial:
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

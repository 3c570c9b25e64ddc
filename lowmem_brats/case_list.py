"""The labelled cases of a training: a folder of case folders, or a list of them as CSV or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowmem_brats.case_files import CaseFiles, as_columns, entries, find_case, named_case
from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import InputError
from lowmem_brats.readable import problem_of

KEYS = ("case", "case_id", *MODALITIES, "seg")


def read_cases(
    data: Path, strict: bool = False, allow_missing: Collection[str] = ()
) -> tuple[list[CaseFiles], list[str]]:
    """The labelled cases of `data`, and a note on each case left out and on files that are not used.

    `data`: a folder of case folders in any naming convention; or a .csv with a header row, or a .json list of objects,
    with `case` (a case folder or 4-D file) or with `t1`, `t1ce`, `t2`, `flair` (files), each with an optional `seg` and
    `case_id`; items of a .json may also be the case folders themselves. Paths are relative to the list. Left out are
    cases that are ambiguous, lack a modality that is not in `allow_missing`, or have not exactly one label map; where
    `strict`, they raise. Raises InputError for a list that cannot be read, two cases of one name, or no case at all.
    """
    try:
        folder, entries = (data, _case_folders(data)) if data.is_dir() else (data.parent, _read_list(data))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(data, f"cannot be read ({error})", "a folder or list of cases", "Check it.") from error
    cases, notes = [], []
    for number, entry in enumerate(entries, 1):
        try:
            case = _case(entry, folder, f"{data}, case {number}", allow_missing)
            notes += [f"{case.case_id}: {note}" for note in case.notes]
            cases.append(replace(case, notes=()))  # told here, not in the cached slices
        except InputError as error:
            if strict:
                raise
            notes.append(f"left out: {error}")
    if not cases:
        found = f"{len(entries)} cases, none with images and a label map"
        advice = "Point to the folder that holds the case folders."
        raise InputError(data, "; ".join([found, *notes[:1]]), "four modalities and *_seg.nii.gz each", advice)
    if twice := _repeated([case.case_id for case in cases]):
        advice = "Start the files' names with the case's, or give each a case_id in a list."
        raise InputError(data, f"several cases named {twice}", "one name per case", advice)
    return cases, notes


def patient_of(case_id: str) -> str:
    """Whom a case shows: BraTS-GLI-00005-101 is a second scan of patient BraTS-GLI-00005."""
    match = re.fullmatch(r"(BraTS-[A-Z]+-\d+)-\d{3}", case_id)
    return match[1] if match else case_id


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(name for name, count in Counter(names).items() if count > 1)


def _case_folders(data: Path) -> list[Any]:
    return [path.name for path in sorted(data.iterdir()) if path.is_dir() and entries(path)]


def _read_list(path: Path) -> list[Any]:
    """The entries of a list. Raises InputError, and what its parsers raise."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".json") or not path.is_file():
        raise InputError(path, "is not a folder", "a folder of case folders, or a .csv or .json", "Check the path.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        if kind == ".csv":
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or []
            if wrong := ", ".join(c for c in columns if c and c not in KEYS) or _repeated(columns):
                raise InputError(path, f"unknown or repeated column {wrong}", f"of {', '.join(KEYS)}", "Rename it.")
            return list(rows)
        entries = json.load(file)
    json.dumps(entries, ensure_ascii=False).encode()  # raises for half a character, which could not be shown
    if not isinstance(entries, list):
        raise InputError(path, f"a {type(entries).__name__}", "a list of cases", "See lowmem-brats train --help.")
    return entries


def _case(entry: Any, folder: Path, where: str, allow_missing: Collection[str]) -> CaseFiles:
    """One entry's files. Raises InputError for one that cannot be trained on."""
    given = _values(entry, where)
    paths = {key: folder / given[key] for key in (*MODALITIES, "seg") if key in given}
    labels = (paths.pop("seg"),) if "seg" in paths else ()
    if bool(paths) == ("case" in given):
        found = "a case and files of its modalities" if paths else "no path"
        raise InputError(where, found, "either a case, or its files", "See lowmem-brats train --help.")
    try:
        for path in (*paths.values(), *labels):
            if problem := problem_of(path):
                raise InputError(where, f"{path}: {problem[0]}", "a file", problem[1])
        if paths:
            case = named_case(paths, allow_missing)
        else:
            case = find_case(folder / given["case"], allow_missing=allow_missing, say=as_columns)
    except OSError as error:
        raise InputError(where, f"cannot be read ({error})", "a case", "Check the path.") from error
    case = replace(case, case_id=given.get("case_id", case.case_id), labels=labels or case.labels)
    if len(case.labels) != 1:
        found = ", ".join(path.name for path in case.labels) or "; ".join(["no label map", *case.notes])
        place = where if paths else folder / given["case"]
        raise InputError(place, found, "one label map (*_seg.nii.gz)", "Add it, or move the wrong one away.")
    if problem := problem_of(case.labels[0]):
        raise InputError(case.labels[0], problem[0], "a label map", problem[1])
    return case


def _values(entry: Any, where: str) -> dict[str, str]:
    """Column → value of one entry, without the empty ones. Raises InputError for anything else."""
    if isinstance(entry, str) and entry:
        return {"case": entry}
    if not isinstance(entry, dict) or not all(isinstance(value, str | None) for value in entry.values()):
        raise InputError(where, repr(entry)[:80], "a path, or names and paths", "See lowmem-brats train --help.")
    if unknown := ", ".join(key for key in entry if key not in KEYS):
        raise InputError(where, f"unknown column {unknown}", f"of {', '.join(KEYS)}", "Rename it.")
    given = {key: value.strip() for key, value in entry.items() if value and value.strip()}
    if not re.fullmatch(r"\w[^/\\\0-\x1f]{0,99}", given.get("case_id", "default")):
        raise InputError(where, f"case_id {given['case_id']!r}", "a name that a file can have", "Change it.")
    return given

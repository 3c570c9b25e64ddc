"""Cases from a list as CSV or JSON, and the labelled cases of a training: such a list, or a folder of case folders."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case_files import CaseFiles, as_columns, find_case, kind_of, named_case, niftis
from lowmem_brats.data.patients import doubtful, patient_of
from lowmem_brats.data.readable import problem_of
from lowmem_brats.errors import InputError

KEYS = ("case", "case_id", "patient", *MODALITIES, "seg")
LONGEST_ID = 150  # bytes: a file system takes names of 255, and the run folder's files add to it
MOST_LISTED = 5


@dataclass(frozen=True)
class LabelledCase(CaseFiles):
    """A case with one label map, and whom it shows."""

    patient: str = ""
    """All cases of one patient are used for one purpose."""


@dataclass(frozen=True)
class ListedCase:
    """An entry of a list, as yet unread."""

    where: str
    """The list and the entry's number in it, for errors."""
    folder: Path
    """The list's; paths are relative to it."""
    entry: Any

    @property
    def path(self) -> Path:
        """The case's folder or 4-D file, or the first of its files; `where`, if the entry names none."""
        given = self.entry if isinstance(self.entry, dict) else {"case": self.entry}
        named = [given[key] for key in ("case", *MODALITIES) if isinstance(given.get(key), str) and given[key].strip()]
        return self.folder / named[0].strip() if named else Path(self.where)

    def values(self) -> dict[str, str]:
        """Column → value, without the empty ones. Raises InputError for an entry that is not understood."""
        return _values(self.entry, self.where)

    def files(self, allow_missing: Collection[str] = ()) -> CaseFiles:
        """The files that the entry names, with the label maps that there are.

        Raises InputError for an entry that is not understood or a file that is not there, and as `find_case`.
        """
        return _case(self.values(), self.folder, self.where, allow_missing)


def read_list(path: Path) -> list[ListedCase]:
    """The entries of a .csv or .json list, as `read_cases` describes it. Raises InputError where it cannot be read."""
    with _told(path):
        return _listed(path, path.parent, _entries(path))


def read_cases(
    data: Path, strict: bool = False, allow_missing: Collection[str] = ()
) -> tuple[list[LabelledCase], list[str]]:
    """The labelled cases of `data`, and notes: on each case left out, on files that are not used, and on cases that may
    be of one patient.

    `data`: a folder of case folders in any naming convention; or a .csv with a header row, or a .json list of objects,
    with `case` (a case folder or 4-D file) or with `t1`, `t1ce`, `t2`, `flair` (files), each with an optional `seg`,
    `case_id` and `patient`; items of a .json may also be the case folders themselves. Paths are relative to the list.
    Without a `patient` it is `patient_of` the case's name. Left out are cases that are ambiguous, lack a modality that
    is not in `allow_missing`, are without exactly one label map or of a name that no file can have; where `strict`,
    they raise. Raises InputError for a list that cannot be read, two cases of one name, or no case at all.
    """
    with _told(data):
        folder, entries, notes = _look_into(data) if data.is_dir() else (data.parent, _entries(data), [])
    cases, undeclared = list[LabelledCase](), list[str]()
    for listed in _listed(data, folder, entries):
        try:
            given = listed.values()
            case = _labelled(listed.files(allow_missing), given, listed.path if "case" in given else listed.where)
            notes += [_shown(f"{case.case_id}: {note}") for note in case.notes]
            cases.append(replace(case, notes=()))  # they are told here, and not once more of the prepared slices
            undeclared += [] if "patient" in given else [case.case_id]
        except InputError as error:
            if strict:
                raise
            notes.append(_shown(f"left out: {error}"))
    if not cases:
        found = f"{len(entries)} cases, none with images and a label map"
        advice = "Point to the folder that holds the case folders."
        raise InputError(data, "; ".join([found, *notes[:1]]), "four modalities and *_seg.nii.gz each", advice)
    if twice := _repeated([case.case_id for case in cases]):
        advice = "Start the files' names with the case's, or give each a case_id in a list."
        raise InputError(data, f"several cases named {twice}", "one name per case", advice)
    if groups := doubtful(undeclared):
        named = "; ".join(map(", ".join, groups[:MOST_LISTED])) + (" and others" if len(groups) > MOST_LISTED else "")
        notes.append(
            f"{named}: their names look like scans of one patient, who would then be trained on and scored too; say "
            "whom each case shows in the column `patient` of a CSV or JSON list"
        )
    return cases, notes


@contextmanager
def _told(data: Path) -> Iterator[None]:
    """Turn what can go wrong when a folder or list is read into an InputError."""
    try:
        yield
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(data, f"cannot be read ({error})", "a folder or list of cases", "Check it.") from error


def _listed(data: Path, folder: Path, entries: Sequence[Any]) -> list[ListedCase]:
    return [ListedCase(f"{data}, case {number}", folder, entry) for number, entry in enumerate(entries, 1)]


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(name for name, count in Counter(names).items() if count > 1)


def _look_into(data: Path) -> tuple[Path, list[Any], list[str]]:
    """A folder, the names of the case folders in it, and a note on each folder that holds case folders itself.

    Hidden folders, and those of label maps alone, such as results of `segment`, hold no case. Raises InputError where
    there is no case folder.
    """
    folders = [path for path in sorted(data.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    names = [path.name for path in folders if _may_be_case(path)]
    deeper = [found for path in folders if path.name not in names and (found := _case_below(path, 0 if names else 2))]
    if names:
        return data, names, [_shown(f"not looked into: {found.parent}, which holds case folders") for found in deeper]
    where, expected = data.resolve(), "a folder that holds a folder for each case"
    if any(kind_of(path) != "seg" for path in niftis(data)):
        raise InputError(where, "holds images itself", expected, "Pass the folder above it, or a CSV or JSON list.")
    if deeper:
        advice = f"Pass the folder right above the case folders, such as {deeper[0].parent}, or a CSV or JSON list."
        raise InputError(where, f"holds no case folder, but {deeper[0]} is one", expected, advice)
    advice = "Pass the folder that holds the case folders, or go there."
    raise InputError(where, "holds no case folder", f"{expected}: four modalities and *_seg.nii.gz", advice)


def _may_be_case(folder: Path) -> bool:
    """Whether a folder may be a case: it holds images, or one label map alone, or cannot be read."""
    try:
        found = niftis(folder)
    except InputError:
        return True
    return len(found) == 1 or any(kind_of(path) != "seg" for path in found)


def _case_below(folder: Path, levels: int) -> Path | None:
    """The first folder with images right below `folder`, or at most `levels` deeper."""
    try:
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        for path in folders:
            if any(kind_of(image) not in ("seg", None) for image in niftis(path)):
                return path
    except (OSError, InputError):
        return None
    below = (_case_below(path, levels - 1) for path in folders if levels)
    return next((found for found in below if found), None)


def _entries(path: Path) -> list[Any]:
    """The entries of a list. Raises InputError, and what its parsers raise."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".json") or not path.is_file():
        found = "is not a folder" if path.exists() else "does not exist"
        raise InputError(path, found, "a folder of case folders, or a .csv or .json", "Check the path.")
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


def _case(given: Mapping[str, str], folder: Path, where: str, allow_missing: Collection[str]) -> CaseFiles:
    """The files that an entry's `_values` name. Raises InputError for one that cannot be used."""
    paths = {key: folder / given[key] for key in (*MODALITIES, "seg") if key in given}
    label = paths.pop("seg", None)
    if bool(paths) == ("case" in given):
        found = "a case and files of its modalities" if paths else "no path"
        raise InputError(where, found, "either a case, or its files", "See lowmem-brats train --help.")
    try:
        for path in (*paths.values(), *((label,) if label else ())):
            if problem := problem_of(path):
                raise InputError(where, f"{path} {problem[0]}", "a file", problem[1])
        if paths:
            case = named_case(paths, allow_missing)
        else:
            case = find_case(folder / given["case"], allow_missing=allow_missing, say=as_columns)
    except OSError as error:
        raise InputError(where, f"cannot be read ({error})", "a case", "Check the path.") from error
    labels = (label,) if label else case.labels
    name, place = given.get("case_id", case.case_id), where if paths else folder / given["case"]
    if len(os.fsencode(name)) > LONGEST_ID or not is_plain(name):
        expected = f"a name in UTF-8 of at most {LONGEST_ID} bytes, without control characters"
        raise InputError(place, f"case_id {name!r}", expected, "Rename it, or give a case_id in a list.")
    return replace(case, case_id=name, labels=labels)


def _labelled(case: CaseFiles, given: Mapping[str, str], place: object) -> LabelledCase:
    """A case that can be trained on. Raises InputError where there is not exactly one label map."""
    labels = case.labels
    if len(labels) != 1:
        found = ", ".join(path.name for path in labels) or "; ".join(["no label map", *case.notes])
        raise InputError(place, found, "one label map (*_seg.nii.gz)", "Add it, or move the wrong one away.")
    if problem := problem_of(labels[0]):
        raise InputError(labels[0], problem[0], "a label map", problem[1])
    return LabelledCase(**vars(case) | {"patient": given.get("patient") or patient_of(case.case_id)})


def is_plain(name: str) -> bool:
    """Whether a name can be shown, drawn and stored anywhere: UTF-8 on one line."""
    return _shown(name) == name and not re.search(r"[\0-\x1f\x7f]", name)


def _shown(text: str) -> str:
    """Text that every screen and file can hold: bytes of a path that are no UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


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

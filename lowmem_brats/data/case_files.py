"""Find the files of a case by their names, and account for every NIfTI file in its folder.

Every file is used, is a label map, or is named in a note or an error, so an image whose name is not understood is never
silently replaced by zeros. A modality may be missing only if the caller allows it. `naming` reads the names.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.naming import EXAMPLES, ImageName, key_of, read_name
from lowmem_brats.data.naming import kind_of as kind_of
from lowmem_brats.data.naming import stem as stem
from lowmem_brats.data.readable import problem_of
from lowmem_brats.errors import InputError

FEWEST_MODALITIES = 2
Say = Callable[[Mapping[str, object]], str]
"""Puts into words, as the end of a sentence, how a user names files: modality → file."""


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies: three-dimensional files per modality, or one four-dimensional file."""

    case_id: str
    folder: Path
    images: Mapping[str, Path]
    """Modality → file; missing modalities are absent. Empty when `stacked` is given."""
    stacked: Path | None = None
    """A 4-D file in MSD order."""
    labels: tuple[Path, ...] = ()
    """Label maps in the folder."""
    numbered: bool = False
    """Whether a file's modality was told by a number (`_0001`), whose meaning differs between data sets."""
    notes: tuple[str, ...] = ()
    """The other NIfTI files in the folder with the reason why they are not used, and assumptions about names."""

    @property
    def missing(self) -> list[str]:
        """The modalities that are not there."""
        return [] if self.stacked else [m for m in MODALITIES if m not in self.images]


def niftis(folder: Path) -> list[Path]:
    """Everything in a folder that is named like a NIfTI file, by name: files, links to nowhere and folders too.

    Hidden ones do not count (macOS leaves `._NAME.nii.gz`). Raises InputError for a folder that cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if re.search(r"\.nii(\.gz)?$", path.name, re.IGNORECASE)]
    except OSError as error:
        raise InputError(folder, f"cannot be read ({error.strerror})", "a folder", "Check its permissions.") from error
    return sorted(path for path in found if not path.name.startswith("."))


def as_options(files: Mapping[str, object]) -> str:
    """`add --t1ce FILE`."""
    return "add " + " ".join(f"--{modality} {shlex.quote(str(file))}" for modality, file in files.items())


def as_columns(files: Mapping[str, object]) -> str:
    """`give the case by its files in a list, with FILE in column t1ce`, for commands that take cases from a list."""
    return "give the case by its files in a list, with " + ", ".join(f"{f} in column {m}" for m, f in files.items())


def what_is_lost(modality: str) -> str:
    """The loss if this modality is missing, as the end of a sentence."""
    return "no enhancing tumour is found" if modality == "t1ce" else "the result may suffer"


def find_case(
    path: Path,
    explicit: Mapping[str, Path] | None = None,
    allow_missing: Collection[str] = (),
    say: Say = as_options,
) -> CaseFiles:
    """Find the files of one case.

    `path`: a case folder, or one 4-D file. `explicit`: modality → file, whatever its name. `allow_missing`: modalities
    that need not be there. `say`: how errors advise to name a file. Raises InputError: nothing there, a modality that
    is missing or there twice, files of different cases, a file that cannot be opened.
    """
    explicit = dict(explicit or {})
    if not os.path.isdir(path):
        return _stacked_case(path, explicit)
    lying = niftis(path)
    named = {os.path.realpath(file) for file in explicit.values()}
    names = {file: read_name(file) for file in lying}
    images, twice = dict[str, Path](), dict[str, list[Path]]()
    for modality in MODALITIES:
        candidates = [file for file in lying if names[file].kind == modality]
        candidates = [file for file in candidates if not os.path.isdir(file)] or candidates
        candidates = [file for file in candidates if os.path.realpath(file) not in named] or candidates
        if modality in explicit:
            images[modality] = explicit[modality]
        elif candidates:
            images[modality] = max(candidates, key=lambda file: names[file].stripped)
            if not all(
                _is_twin(names[file], names[images[modality]]) for file in candidates if file != images[modality]
            ):
                twice[modality] = candidates
    if twice:
        raise _twice(path, twice, images, say)
    labels = tuple(file for file in lying if names[file].kind == "seg" and not os.path.isdir(file))
    used = {*named, *map(os.path.realpath, images.values())}
    unused = [file for file in lying if file not in labels and os.path.realpath(file) not in used]
    unknown = [file for file in unused if names[file].kind is None and not os.path.isdir(file)]
    if not images and len(unknown) == 1:
        _check_usable({"4-D": unknown[0]}, say)
        notes = _notes([file for file in unused if file not in unknown], names, images, explicit)
        return CaseFiles(stem(unknown[0]), path, {}, stacked=unknown[0], labels=labels, notes=notes)
    _check_present(path, images, allow_missing, lying, unknown, say)
    found = {modality: names[file] for modality, file in images.items() if modality not in explicit}
    notes = _check_one_case(path, images, found, say) + _notes(unused, names, images, explicit)
    _check_usable(images, say)
    case_id = _case_id(path, list(found.values()) or [read_name(file) for file in images.values()])
    numbered = any(name.numbered for name in found.values())
    return CaseFiles(case_id, path, images, labels=labels, numbered=numbered, notes=notes)


def named_case(images: Mapping[str, Path], allow_missing: Collection[str] = ()) -> CaseFiles:
    """A case whose files are all named, modality → file. Raises InputError as `find_case`, or for one file twice."""
    first = next(iter(images.values()))
    _check_present(first, images, allow_missing, [], [], as_columns)
    _check_usable(images, as_columns)
    case_id = _case_id(first.parent, [read_name(file) for file in images.values()])
    return CaseFiles(case_id, first.parent, images)


def _stacked_case(path: Path, explicit: Mapping[str, Path]) -> CaseFiles:
    if problem := problem_of(path):
        raise InputError(path, problem[0], "a case folder or a 4-D NIfTI file", problem[1])
    if explicit:
        raise InputError(path, "a file, with modalities named beside it", "a folder", "Pass the case's folder.")
    return CaseFiles(stem(path), path.parent, {}, stacked=path)


def _is_twin(name: ImageName, stripped: ImageName) -> bool:
    """Whether one image is what the other was before its skull was removed."""
    same = name.key == stripped.key and name.series == stripped.series
    return same and name.stripped < stripped.stripped and name.processed <= stripped.processed


def _twice(path: Path, twice: Mapping[str, list[Path]], images: Mapping[str, Path], say: Say) -> InputError:
    found = "; ".join(f"{m} twice ({', '.join(file.name for file in files)})" for m, files in twice.items())
    if len(twice) == 1:
        choices = "the right file: " + ", or ".join(say({m: file}) for m, files in twice.items() for file in files)
    else:
        choices = f"the right files: {say({m: images[m] for m in twice})}, or others of them"
    return InputError(path, found, "one file per modality", f"Keep one case per folder, or name {choices}.")


def _check_present(
    where: Path,
    images: Mapping[str, Path],
    allow_missing: Collection[str],
    lying: Collection[Path],
    unknown: list[Path],
    say: Say,
) -> None:
    """Raise InputError for one file under two modalities, too few modalities, or a missing one that is not allowed."""
    for first, second in combinations(images, 2):
        if os.path.realpath(images[first]) == os.path.realpath(images[second]):
            raise InputError(images[first], f"given as {first} and as {second}", "a file for each", "Name both files.")
    too_few = len(images) < FEWEST_MODALITIES
    missing = [m for m in MODALITIES if m not in images and (too_few or m not in allow_missing)]
    if not missing:
        return
    found = f"no {', '.join(missing)}"
    if where.is_dir():
        others = sorted(path for path in where.iterdir() if path not in lying and not path.name.startswith("."))
        found += f" among {_list(lying)}" if lying else " and no NIfTI file"
        found += f" (there is also {_list(others[:8])})" if others else ""
    if unknown:
        found += f"; the name{'s' if len(unknown) > 1 else ''} {_list(unknown)} cannot be understood"
    expected = "; ".join(f"{m}, named like {EXAMPLES[m]}" for m in missing) + " (.nii or .nii.gz)"
    if too_few:
        expected = f"at least {FEWEST_MODALITIES} of {', '.join(MODALITIES)}: {expected}"
    if len(missing) == len(unknown) == 1:
        advice = f"If {unknown[0].name} is the {missing[0]} image, {say({missing[0]: unknown[0]})}."
    else:
        advice = _sentence(say(dict.fromkeys(missing, "FILE")))
    if not too_few:
        allowed = " ".join(f"--allow-missing {m}" for m in missing)
        lost = ", and ".join(dict.fromkeys(map(what_is_lost, missing)))
        advice += f" To go on without, add {allowed}: then {lost}."
    raise InputError(where, found, expected, advice)


def _check_one_case(
    folder: Path, images: Mapping[str, Path], names: Mapping[str, ImageName], say: Say
) -> tuple[str, ...]:
    """Raise InputError if the names are of different cases; return a note if they differ in series numbers only."""
    keys = {modality: name.key for modality, name in names.items() if name.key}
    if len(set(keys.values())) < 2:
        return ()
    if numbers := _series_numbers(list(keys.values()), key_of(folder.resolve().name)):
        return (f"{', '.join(sorted(numbers))} in the file names are taken for series numbers of one scan",)
    usual = Counter(keys.values()).most_common(1)[0][0]
    odd = {modality: images[modality] for modality, key in keys.items() if key != usual}
    found = "files of different cases: " + ", ".join(
        f"{images[modality].name} of {names[modality].case or ' '.join(key)}" for modality, key in keys.items()
    )
    advice = f"Keep one case per folder; if they do belong together, {say(odd)}."
    raise InputError(folder, found, "files of one case", advice)


def _series_numbers(keys: list[tuple[str, ...]], folder: tuple[str, ...]) -> list[str]:
    """Return the numbers that differ from file to file if they number a scan's series; else an empty list.

    They do if each file has another one, of at most four digits, and the rest of each name is empty or the folder's
    name. A patient's number would be the same in several files, or be the folder's name.
    """
    for place in (0, -1):
        numbers = [key[place] for key in keys]
        rests = {key[1:] if place == 0 else key[:-1] for key in keys}
        alone = rests == {()} and not set(numbers) & set(folder)
        short = all(re.fullmatch(r"\d{1,4}[a-z]?", number) for number in numbers)
        if short and len(set(numbers)) == len(keys) and (alone or rests == {folder}):
            return numbers
    return []


def _check_usable(images: Mapping[str, Path], say: Say) -> None:
    """Raise InputError for files that cannot be opened; all that cannot for the same reason are named."""
    problems = {modality: problem for modality, file in images.items() if (problem := problem_of(file))}
    if not problems:
        return
    modality, (found, advice) = next(iter(problems.items()))
    others = [images[m] for m, problem in problems.items() if problem == (found, advice) and m != modality]
    found += f"; so {'is' if len(others) == 1 else 'are'} {_list(others)}" if others else ""
    if folders := {m: file for m, file in images.items() if os.path.isdir(file)}:
        inside = {m: niftis(folder) for m, folder in folders.items()}
        advice = _sentence(say({m: inside[m][0] if len(inside[m]) == 1 else folders[m] / "FILE" for m in folders}))
    raise InputError(images[modality], found, "a NIfTI file with its content", advice)


def _notes(
    unused: Iterable[Path], names: Mapping[Path, ImageName], images: Mapping[str, Path], explicit: Collection[str]
) -> tuple[str, ...]:
    """One note for each reason why files are not used, with the files."""
    reasons: dict[str, list[Path]] = {}
    for file in unused:
        kind = names[file].kind
        if os.path.isdir(file):
            reason = "a folder, not a file"
        elif kind is None:
            reason = "the name is not understood"
        elif kind not in images:
            reason = "a map of regions"
        elif kind in explicit:
            reason = f"--{kind} names another file"
        else:
            reason = f"{images[kind].name} is the skull-stripped one"
        reasons.setdefault(reason, []).append(file)
    return tuple(f"not used: {_list(files)} ({reason})" for reason, files in reasons.items())


def _case_id(folder: Path, names: Iterable[ImageName]) -> str:
    """The name that all modality files share, else the folder's."""
    shared = {name.case.lower(): name.case for name in names if name.case}
    return shared.popitem()[1] if len(shared) == 1 else folder.resolve().name


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _list(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files)

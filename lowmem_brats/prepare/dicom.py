"""Find and convert the series of a DICOM study: pydicom reads the headers, dcm2niix makes the images.

A series whose slices do not lie evenly is refused, because every converter makes a wrong image of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.readable import is_dicom
from lowmem_brats.errors import InputError
from lowmem_brats.prepare.extra import library
from lowmem_brats.prepare.sequences import Guess, Series, choose, guess
from lowmem_brats.prepare.source import Source, Study, check_anchor

UNEVEN = 0.1
"""Share of the usual distance by which two neighbouring slices may lie further apart or nearer."""
_TAGS = """
SeriesInstanceUID SeriesNumber SeriesDescription Modality RepetitionTime EchoTime InversionTime ImageType
ContrastBolusAgent DiffusionBValue ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness
NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_NO_AGENT = ("", "no", "none", "without", "n/a")


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder, at any depth, in order; hidden ones do not count."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if is_dicom(path))


def find_in_dicom(
    path: Path, files: Sequence[Path], explicit: Mapping[str, Path], allow_missing: Collection[str], work: Path
) -> Study:
    """Find the four images among the DICOM files of a study, and convert them.

    `explicit`: modality → number of a series, folder of one, or a NIfTI file. Raises InputError: a modality that is
    missing or there twice, a chosen series that cannot be used.
    """
    series = series_in(files)
    chosen, sources = dict[str, tuple[Series, str]](), dict[str, Source]()
    for modality, given in explicit.items():
        if given.is_dir():
            sources[modality] = convert_folder(modality, given, work)
        elif given.is_file():
            sources[modality] = Source(given, (given,), given.name, "named by the user")
        else:
            chosen[modality] = _numbered(modality, given, series), "named by the user"
    guesses = {each: guess(each) for each in series}
    own = {file.resolve() for source in sources.values() for file in source.files}
    named = [each for each, _ in chosen.values()] + [each for each, its in series.items() if its[0].resolve() in own]
    if twice := next((each for each in named if named.count(each) > 1), None):
        raise InputError(path, f"{twice.named} named for two modalities", "a series for each", "Check the options.")
    for modality in (each for each in MODALITIES if each not in explicit):
        taken = {*named, *(each for each, _ in chosen.values())}
        if found := _guessed(path, modality, guesses, taken, allow_missing):
            chosen[modality] = found
    for modality, (each, reason) in chosen.items():
        sources[modality] = _convert(modality, each, series[each], reason, work)
    check_anchor(path, sources)
    used = {*named, *(each for each, _ in chosen.values())}
    notes = tuple(f"not used: {each.named}: {_why_not(each, guesses[each])}" for each in series if each not in used)
    return Study({m: sources[m] for m in MODALITIES if m in sources}, "DICOM", notes)


def convert_folder(modality: str, folder: Path, work: Path) -> Source:
    """Convert the one series in a folder. Raises InputError for none, several, or one that cannot be used."""
    series = series_in(dicom_files(folder))
    if len(series) != 1:
        found = ", ".join(each.named for each in series) or "no DICOM file"
        raise InputError(folder, found, f"the files of one series, for {modality}", "Name its folder or number.")
    ((each, files),) = series.items()
    return _convert(modality, each, files, "named by the user", work)


def _guessed(
    path: Path, modality: str, guesses: Mapping[Series, Guess], taken: set[Series], allow_missing: Collection[str]
) -> tuple[Series, str] | None:
    """The series for a modality with the reason; None where it may be missing."""
    alike = [each for each, its in guesses.items() if its.kind == modality and each not in taken]
    if usable := [each for each in alike if not each.problem]:
        best = choose(usable)
        if best is None:
            found = f"{modality} may be " + " or ".join(each.named for each in usable)
            raise InputError(path, found, "one series that is clearly finer", f"Choose: {_options(modality, usable)}.")
        reason = guesses[best].reason + (", the finest of several" if len(usable) > 1 else "")
        return best, reason
    if modality in allow_missing:
        return None
    if alike:
        found = f"{modality}: " + "; ".join(f"{each.named} {each.problem}" for each in alike)
        raise InputError(path, found, "a complete series", f"Export it again, or name another with --{modality}.")
    seen = "; ".join(f"{each.named}: {its.kind or its.reason}" for each, its in guesses.items()) or "no MR series"
    raise InputError(path, f"no {modality} among {seen}", "T1, T1ce, T2 and FLAIR", f"Name it: --{modality} NUMBER.")


def _options(modality: str, series: Sequence[Series]) -> str:
    return ", or ".join(f"--{modality} {each.number}" for each in series)


def _why_not(series: Series, its: Guess) -> str:
    return series.problem or (its.reason if its.kind is None else f"another {its.kind} is taken")


def _numbered(modality: str, given: Path, series: Mapping[Series, Any]) -> Series:
    """The series of a number."""
    found = [each for each in series if str(each.number) == str(given)]
    if len(found) != 1:
        shown = ", ".join(each.named for each in series)
        expected = "a file, a folder or the number of a series"
        raise InputError(f"--{modality}", str(given), expected, f"There are {shown}.")
    return found[0]


def _convert(modality: str, series: Series, files: Sequence[Path], reason: str, work: Path) -> Source:
    """Make a NIfTI file of a series. Raises InputError where it is incomplete or cannot be converted."""
    if series.problem:
        raise InputError(series.named, series.problem, "a complete series", "Export it again, or name another.")
    folder, out = work / f"{modality}_dicom", work / modality
    folder.mkdir()
    out.mkdir()
    for number, path in enumerate(files):
        _link(path, folder / f"{number:06d}.dcm")
    command = [library("dcm2niix").bin, "-b", "y", "-ba", "y", "-z", "n", "-f", modality, "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    images = sorted(out.glob("*.nii"))
    if done.returncode or len(images) != 1 or not images[0].with_suffix(".json").is_file():
        found = f"dcm2niix ends with {done.returncode} and makes {len(images)} images"
        raise InputError(series.named, found, "one image of an even grid", "Export it again, or name another.")
    return Source(images[0], tuple(files), series.named, reason)


def _link(path: Path, place: Path) -> None:
    """Make a file appear at `place`: as a link, or as a copy where links are not allowed, as on Windows."""
    try:
        os.symlink(path.resolve(), place)
    except (OSError, NotImplementedError):
        shutil.copyfile(path, place)


def series_in(files: Sequence[Path]) -> dict[Series, list[Path]]:
    """The MR series among DICOM files, by number, with their files. Raises InputError for a damaged header."""
    pydicom = library("pydicom")
    headers: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    for path in files:
        with _damage_told(path):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS.split())
            for name in _TAGS.split():
                header.get(name)  # pydicom decodes a value when it is first asked for
        if str(header.get("Modality", "MR")) == "MR" and header.get("SeriesInstanceUID"):
            headers[str(header.SeriesInstanceUID)].append((path, header))
    series = dict[Series, list[Path]]()
    for each in headers.values():
        with _damage_told(each[0][0]):
            series[_series([header for _, header in each])] = [path for path, _ in each]
    return dict(sorted(series.items(), key=lambda item: item[0].number))


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises of a damaged header, which may be nearly anything, into an InputError."""
    try:
        yield
    except Exception as error:
        found = f"a DICOM header that cannot be read ({type(error).__name__})"
        advice = "Export the series again, or move the file away."
        raise InputError(path, found, "DICOM files as the scanner wrote them", advice) from error


def _series(headers: Sequence[Any]) -> Series:
    """What the headers of a series say."""
    first = headers[0]
    frames = int(first.get("NumberOfFrames", 1) or 1)
    spacing_mm, problem = _geometry(headers) if frames == 1 else (float(_deep(first, "SliceThickness") or 1), "")
    in_plane = _deep(first, "PixelSpacing") or (1.0, 1.0)
    kinds = [str(kind).upper() for kind in (first.get("ImageType") or [])]
    return Series(
        number=int(first.get("SeriesNumber", 0) or 0),
        description=" ".join(str(first.get("SeriesDescription", "")).split()),
        slices=frames if frames > 1 else len(headers),
        repetition_ms=_number(_deep(first, "RepetitionTime")),
        echo_ms=_number(_deep(first, "EchoTime") or _deep(first, "EffectiveEchoTime")),
        inversion_ms=_number(_deep(first, "InversionTime") or _deep(first, "InversionTimes")),
        agent=str(first.get("ContrastBolusAgent", "") or "").strip().lower() not in _NO_AGENT,
        derived="DERIVED" in kinds,
        diffusion=any(_number(each.get("DiffusionBValue")) for each in headers) or "DIFFUSION" in kinds,
        voxel_mm3=float(np.prod([float(size) for size in in_plane]) * spacing_mm),
        uid=str(first.SeriesInstanceUID),
        problem=problem,
    )


def _deep(header: Any, name: str) -> Any:
    """A value of a header, wherever it stands in an enhanced one."""
    if name in header:
        return header.get(name)
    groups = [
        *header.get("SharedFunctionalGroupsSequence", []),
        *header.get("PerFrameFunctionalGroupsSequence", [])[:1],
    ]
    return next((element.value for group in groups for element in group.iterall() if element.keyword == name), None)


def _number(value: Any) -> float | None:
    try:
        return float(value if isinstance(value, str | float | int) else value[0])
    except (TypeError, ValueError, IndexError):
        return None


def _geometry(headers: Sequence[Any]) -> tuple[float, str]:
    """Distance between neighbouring slices in mm, and what is wrong with how they lie."""
    try:
        directions = {tuple(round(float(v), 3) for v in each.ImageOrientationPatient) for each in headers}
        across, down = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(across, down)
        places = sorted(float(np.array(each.ImagePositionPatient, float) @ normal) for each in headers)
    except (AttributeError, TypeError, ValueError):
        return 1.0, "does not say where its slices lie"
    if len(directions) > 1:
        return 1.0, "has slices in several directions"
    steps = np.diff(places)
    if not steps.size:
        return 1.0, ""
    usual = float(np.median(steps))
    if usual <= 0 or steps.min() < 0.01:
        return 1.0, "has several images at one place"
    uneven = np.abs(steps - usual) > UNEVEN * usual
    if uneven.any():
        gap = int(np.argmax(uneven))
        between = (
            f"slices {gap + 1} and {gap + 2} of {len(places)} lie {steps[gap]:.1f} mm apart, the others {usual:.1f} mm"
        )
        return usual, f"has a missing slice ({between})"
    return usual, ""

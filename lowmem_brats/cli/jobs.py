"""Find the cases that a `segment` command means, the paths of their results, and what there is of them already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowmem_brats.cli import console
from lowmem_brats.cli.search import Search
from lowmem_brats.data.case_files import CaseFiles, kind_of, niftis
from lowmem_brats.data.case_list import ListedCase, read_list
from lowmem_brats.data.readable import is_dicom
from lowmem_brats.errors import InputError
from lowmem_brats.files import check_apart, check_output

if TYPE_CHECKING:
    from lowmem_brats.cohort.records import Records
    from lowmem_brats.segment.result_path import Outputs

ELSEWHERE = "Pass --overwrite, or -o elsewhere."
PREPARE = "lowmem-brats prepare {0} -o CASE; then segment CASE. Or both: lowmem-brats segment {0} --prepare CASE."
RECORDS = "records"
"""The folder of the records in that of the results (`cohort.records`)."""
DEEPEST, MOST_FOLDERS = 4, 1000
"""Levels below a folder without images, and folders on each, in which images are looked for to name the place."""


@dataclass(frozen=True)
class Source:
    """What a command names as a case."""

    path: Path
    """By which it is known in the report and in messages."""
    listed: ListedCase | None = None
    """The entry, for a case of a list."""


@dataclass(frozen=True)
class Job:
    """A case to segment."""

    path: Path
    files: CaseFiles
    outputs: Outputs


@dataclass(frozen=True)
class Beside:
    """What is written of each case beside its label map."""

    preview: bool
    page: bool
    dicom_seg: Path | None
    """A folder that holds the DICOM files of its T1ce; None: no DICOM segmentation is wanted."""


State = Literal["new", "done", "unrecorded", "interrupted"]
"""Of a case's result: to be made; made; made and corrected since, but without a record; made, but not all of it."""


@dataclass(frozen=True)
class Preparation:
    """The settings that all cases of a command share, and the making of each case's job."""

    search: Search
    output: str | None
    beside: Beside
    overwrite: bool
    origin: Callable[[CaseFiles], str]
    """`segment.case.origin` with the command's weights and settings."""
    skip: bool
    """Whether a case is skipped if its result exists."""
    records: Records | None
    """Of the folder of several cases' results."""

    def job(self, source: Source, taken: set[Path]) -> Job:
        """Find a case and where its results go; `taken`: outputs of the command so far, resolved; these are added.

        Raises InputError: no case there, or outputs that would replace other files.
        """
        from lowmem_brats.segment.native import dicom_seg_path, native_path, prepared_folder
        from lowmem_brats.segment.result_path import Outputs, output_path

        if source.listed:
            files = source.listed.files(self.search.allow_missing)
        else:
            if not self.search.explicit:
                _check_holds_images(source.path)
            files = self.search.case(source.path)
        target = output_path(files, self.output)
        outputs = Outputs.beside(target, files.case_id, self.beside.preview, self.beside.page)
        if prepared_folder(files.folder):
            outputs = replace(outputs, native=native_path(target))
            if self.beside.dicom_seg:
                outputs = replace(outputs, dicom_seg=dicom_seg_path(target))
            make_folder(native_path(target).parent)
        elif self.beside.dicom_seg:
            found = "was not prepared here, so it cannot go back to DICOM files"
            raise InputError(source.path, found, "a case that lowmem-brats prepare made", "Leave --dicom-seg out.")
        check_apart(outputs.paths, [*files.images.values(), *filter(None, [files.stacked])], taken)
        return Job(source.path, files, outputs)

    def check(self, job: Job) -> State:
        """Tell what there is of a case's result. Raises InputError: outputs that exist, or cannot be written."""
        from lowmem_brats.data.nifti import is_own_result
        from lowmem_brats.segment.result_path import check_not_reference

        target = job.outputs.label_map
        check_output(target, overwrite=True)
        if os.path.isfile(target) and not self.overwrite and (origin := self._made_from(target, job.files)):
            if self.records is None or self.records.is_done(job.path, origin):
                return "done"
            return "interrupted" if is_own_result(target) else "unrecorded"
        check_not_reference(job.files, target)
        if os.path.lexists(target) and not self.overwrite:
            raise InputError(target, "exists already", "a new file", ELSEWHERE)
        for each in job.outputs.paths:
            check_output(each, self.overwrite)
        return "new"

    def _made_from(self, target: Path, files: CaseFiles) -> str:
        """The origin of a result that was made from the same images with the same weights and settings, else nothing.

        The result may have been corrected since. Raises InputError if this program made it in another way. Always
        empty if nothing is to be skipped.
        """
        from lowmem_brats.data.nifti import origin_of

        made_from = None
        with suppress(InputError):
            made_from = origin_of(target)
        if not self.skip or made_from is None:
            return ""
        if made_from != self.origin(files):
            found = "exists already, made of other images, with other settings or by another version"
            raise InputError(target, found, "a new file", ELSEWHERE)
        return made_from


def sources_of(paths: Sequence[Path], output: Path | None) -> list[Source]:
    """The cases that the paths mean, each once: folders, 4-D files, and lists as CSV or JSON.

    Otherwise as `case_folders`. Raises InputError for a list that cannot be read or is empty.
    """
    found: dict[Path, Source] = {}
    for path in paths:
        if path.suffix.lower() not in (".csv", ".json") or path.is_dir():
            found |= {case: Source(case) for case in case_folders([path], output) if case not in found}
            continue
        listed = read_list(path)
        if not listed:
            raise InputError(path, "a list of no cases", "a case in each row", "Check the list.")
        for entry in listed:
            if entry.path in found:
                advice = "Name each case once."
                raise InputError(entry.where, f"{entry.path} again", "another case in each row", advice)
            found[entry.path] = Source(entry.path, entry)
    return list(found.values())


def case_folders(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """The cases that the paths mean, each once: a folder without images stands for the folders in it that hold some.

    The `output` folder is no case. Warns of folders that are left out because they hold no images.
    """
    return list(dict.fromkeys(case for path in paths for case in _cases_in(path, output) or [path]))


def _cases_in(path: Path, output: Path | None) -> list[Path]:
    """The folders in `path` that hold images; none where it is no folder or itself a case."""
    if not os.path.isdir(path) or _may_hold_images(path):
        return []
    own = [output.resolve(), (output / RECORDS).resolve()] if output else []
    folders = [folder for folder in _subfolders(path) if folder.resolve() not in own]
    cases = [folder for folder in folders if _may_hold_images(folder)]
    left_out = [folder.name for folder in folders if folder not in cases]
    if cases and left_out:
        console.warn(f"{path}: folders left out, because no images lie in them: {', '.join(left_out)}")
    return cases


def _may_hold_images(folder: Path) -> bool:
    """Whether a folder holds NIfTI files other than label maps.

    True also if the folder cannot be listed: then reading the case tells why.
    """
    try:
        return any(kind_of(path) != "seg" for path in niftis(folder))
    except (InputError, OSError):
        return True


def _subfolders(folder: Path) -> list[Path]:
    """The folders in `path`, by name, without hidden ones; links that lead nowhere are among them, to be reported."""
    found: list[Path] = []
    with suppress(OSError):
        found = sorted(p for p in folder.iterdir() if os.path.isdir(p) or not os.path.exists(p))
    return [path for path in found if not path.name.startswith(".")]


def _check_holds_images(path: Path) -> None:
    """Raise InputError for a folder without a NIfTI file, and say where the nearest lie."""
    if not os.path.isdir(path) or niftis(path):
        return
    found, advice = "no .nii or .nii.gz file in it", "Check the path."
    if dicom := _holds_dicom(path):
        found, advice = f"{found}, but DICOM files such as {dicom}", f"First make a case: {PREPARE.format(path)}"
    elif nearest := _nearest(path):
        found, advice = f"{found}; the nearest lie in {nearest}", "Pass the folders that hold the images."
    raise InputError(path, found, "a case folder, or a folder of case folders", advice)


def _holds_dicom(path: Path) -> Path | None:
    """The first DICOM file in a folder or below."""
    for folder in _below(path):
        with suppress(OSError):
            if found := next((file for file in sorted(folder.iterdir()) if is_dicom(file)), None):
                return found
    return None


def _nearest(path: Path) -> Path | None:
    """The first folder below that holds NIfTI files."""
    for folder in _below(path):
        with suppress(InputError, OSError):
            if niftis(folder):
                return folder
    return None


def _below(path: Path) -> Iterator[Path]:
    """A folder and those below it, level by level."""
    level = [path]
    for _ in range(DEEPEST + 1):
        yield from level
        level = [below for folder in level for below in _subfolders(folder) if os.path.isdir(below)][:MOST_FOLDERS]


def make_folder(folder: Path) -> None:
    """Make the folder for the results, before any work. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found, expected = f"cannot be made ({error.strerror})", "a folder, or a .nii or .nii.gz file"
        raise InputError(folder, found, expected, "Choose another -o.") from error

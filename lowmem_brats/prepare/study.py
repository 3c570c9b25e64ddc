"""Find the four images of a raw study: NIfTI files by their names, DICOM series by how they were acquired."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case_files import find_case, niftis, stem
from lowmem_brats.data.readable import problem_of
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import dicom
from lowmem_brats.prepare.source import Source, Study, check_anchor


def find_study(path: Path, explicit: Mapping[str, Path], allow_missing: Collection[str], work: Path) -> Study:
    """Find the images of a study.

    `path`: a folder with NIfTI files named as `segment` understands them, or with DICOM files at any depth. `explicit`:
    modality → NIfTI file, folder of one DICOM series, or number of a series. `work`: a folder for converted files.
    Raises InputError: nothing there, a modality that is missing or found twice, a series with a missing slice.
    """
    if not os.path.isdir(path):
        found = problem_of(path)
        what, advice = found or ("is a file", "Pass the folder that holds the study.")
        raise InputError(path, what, "a folder with DICOM or NIfTI files", advice)
    files = [] if niftis(path) else dicom.dicom_files(path)
    if files:
        return dicom.find_in_dicom(path, files, explicit, allow_missing, work)
    named = {modality: file for modality, file in explicit.items() if not os.path.isdir(file)}
    series = {modality: folder for modality, folder in explicit.items() if os.path.isdir(folder)}
    if not niftis(path) and len(explicit) + len(allow_missing) < len(MODALITIES):
        expected = "DICOM files, or NIfTI files named like *_t1ce.nii.gz"
        raise InputError(path, "neither DICOM nor NIfTI files in it", expected, "Check the path.")
    converted = {m: dicom.convert_folder(m, folder, work) for m, folder in series.items()}
    case = find_case(path, named | {m: source.image for m, source in converted.items()}, allow_missing)
    if case.stacked:
        found_4d = f"only one image of unclear meaning, {stem(case.stacked)}"
        raise InputError(path, found_4d, "a file for each modality", "Name them with --t1, --t1ce, --t2, --flair.")
    sources = {
        modality: converted.get(modality)
        or Source(file, (file,), file.name, "named by the user" if modality in explicit else "by its name")
        for modality, file in case.images.items()
    }
    check_anchor(path, sources)
    return Study(sources, "NIfTI", case.notes)

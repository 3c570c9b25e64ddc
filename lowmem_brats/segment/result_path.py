"""Choose the path of a case's label map, and refuse to replace a label map that a person has drawn."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.nifti import is_own_result, origin_of
from lowmem_brats.errors import InputError

OTHER_FORMATS = re.compile(
    r"\.(nii\..*|7z|avi|bmp|bz2|csv|dcm|dicom|gif|gipl|gz|h5|hdf5|hdr|html|img|jpe?g|json|log|mat|mgh|mgz|mha|mhd|mnc|"
    r"mp4|nhdr|npy|npz|nrrd|par|parquet|pdf|pkl|png|ppm|pth?|raw|rec|safetensors|stl|tar|tgz|tiff?|tsv|txt|vtk|vti|xlsx|"
    r"xml|xz|ya?ml|zip|zst)$",
    re.IGNORECASE,
)
"""Endings of names that nobody gives a folder."""


@dataclass(frozen=True)
class Outputs:
    """The paths of what is written for one case."""

    label_map: Path
    preview: Path | None = None
    """Of the picture; None: not wanted, as for the page."""
    page: Path | None = None
    native: Path | None = None
    """Of the label map on the raw T1ce's grid; None: the case was not prepared here."""
    dicom_seg: Path | None = None
    """Of the DICOM segmentation; None: not wanted."""

    @classmethod
    def beside(cls, label_map: Path, case_id: str, preview: bool, page: bool) -> Outputs:
        """The picture and the page, where wanted, beside the label map."""
        pictures = {
            "preview": label_map.with_name(f"{case_id}_preview.png") if preview else None,
            "page": label_map.with_name(f"{case_id}.html") if page else None,
        }
        return cls(label_map, **pictures)

    @property
    def paths(self) -> list[Path]:
        """All that are wanted."""
        return [path for path in (self.label_map, self.native, self.dicom_seg, self.preview, self.page) if path]


def output_path(files: CaseFiles, requested: str | Path | None) -> Path:
    """Return the path of a case's label map: `requested` if it names one, else `<case_id>_seg.nii.gz` in that folder.

    `requested`: what the user gave with -o; None stands for the case's own folder. Raises InputError as
    `names_label_map`.
    """
    if requested is not None and names_label_map(requested):
        return Path(requested)
    return Path(files.folder if requested is None else requested) / f"{files.case_id}_seg.nii.gz"


def names_label_map(requested: str | os.PathLike[str]) -> bool:
    """Whether a path names a label map (.nii or .nii.gz); False if it names a folder to put it in.

    A path names a folder if the folder exists, if it ends with a slash, or if it has none of OTHER_FORMATS' endings.
    Raises InputError for a file of another format.
    """
    path = Path(requested)
    if os.path.isdir(path) or str(requested).endswith(("/", os.sep)):
        return False
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return True
    if (ending := OTHER_FORMATS.search(path.name)) or os.path.lexists(path):
        found = f"ends in {ending[0]}" if ending else "is a file, but no .nii or .nii.gz"
        raise InputError(requested, found, "a .nii or .nii.gz file, or a folder", "Choose another -o.")
    return False


def check_not_reference(files: CaseFiles, output: Path) -> None:
    """Raise InputError if writing to `output` would replace a label map that a person has drawn or corrected."""
    if not output.exists():
        return
    beside = any(map(output.samefile, files.labels)) or (files.stacked and output.parent.samefile(files.folder))
    if not is_own_result(output) if beside else _is_corrected(output):
        found = "a label map drawn or corrected by a person"
        raise InputError(output, found, "another place for the result", "Choose one with -o.")


def reference_of(files: CaseFiles, label_map: Path) -> Path | None:
    """The label map, other than `label_map`, that a person has drawn for a case; None for none or several of them."""
    with suppress(InputError):
        others = [path for path in files.labels if path.resolve() != label_map.resolve()]
        drawn = [path for path in others if not is_own_result(path)]
        return drawn[0] if len(drawn) == 1 else None
    return None


def _is_corrected(output: Path) -> bool:
    """Whether a file is a result of this program whose voxels somebody has changed; False if it cannot be read."""
    try:
        return origin_of(output) is not None and not is_own_result(output)
    except InputError:
        return False

"""Find the files of a case by their names, in every BraTS convention.

| convention            | T1     | T1ce   | T2     | FLAIR    | label   |
|-----------------------|--------|--------|--------|----------|---------|
| BraTS ≤ 2021          | _t1    | _t1ce  | _t2    | _flair   | _seg    |
| BraTS ≥ 2023          | -t1n   | -t1c   | -t2w   | -t2f     | -seg    |
| nnU-Net (Dataset 137) | _0000  | _0001  | _0002  | _0003    |         |
| HD-GLIO, AURORA       |        | _CT1   |        | _fla     |         |
| MSD Task01            | one 4-D file: FLAIR, T1w, T1gd, T2w | | |         |

The last token of the name decides (`t1` is a prefix of `t1ce`, so only whole tokens count), in any case of letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import InputError

TOKENS = {
    "t1": ("t1", "t1n", "t1w", "0000"),
    "t1ce": ("t1ce", "t1c", "t1gd", "ct1", "0001"),
    "t2": ("t2", "t2w", "0002"),
    "flair": ("flair", "t2f", "fla", "0003"),
    "seg": ("seg", "segm"),  # "segm": the label of BraTS20_Training_355 as it was published
}
_KIND_OF = {token: kind for kind, tokens in TOKENS.items() for token in tokens}
FEWEST_MODALITIES = 2


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
    """Whether a modality was told by a number, whose meaning differs between data sets."""

    @property
    def missing(self) -> list[str]:
        """The modalities that are not there."""
        return [] if self.stacked else [m for m in MODALITIES if m not in self.images]


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def kind_of(path: Path) -> str | None:
    """Modality that a file name announces, `seg` for a label map, None for neither."""
    return _KIND_OF.get(_split_name(path)[1])


def _split_name(path: Path) -> tuple[str, str]:
    """`BraTS-GLI-00000-000-t1c.nii.gz` → (`BraTS-GLI-00000-000`, `t1c`)."""
    match = re.fullmatch(r"(?:(.*)[_\-.\s])?([^_\-.\s]*)", stem(path))
    return ((match[1] or ""), match[2].lower()) if match else (stem(path), "")


def niftis(folder: Path) -> list[Path]:
    """The NIfTI files directly in a folder, by name; hidden ones do not count (macOS leaves `._NAME.nii.gz`).

    Raises InputError for a folder that cannot be read.
    """
    try:
        found = [p for p in folder.iterdir() if re.search(r"\.nii(\.gz)?$", p.name, re.IGNORECASE)]
    except OSError as error:
        raise InputError(folder, f"cannot be read ({error.strerror})", "a folder", "Check its permissions.") from error
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def find_case(path: Path, explicit: Mapping[str, Path] | None = None) -> CaseFiles:
    """Find the files of one case.

    `path`: a case folder, or one 4-D file. `explicit`: modality → file, for names of no known convention.
    Raises InputError: nothing there, no images, fewer than two modalities, a modality twice.
    """
    explicit = dict(explicit or {})
    if path.is_file() and explicit:
        raise InputError(path, "a file, with modalities named beside it", "a folder", "Pass the case's folder.")
    if path.is_file():
        return CaseFiles(stem(path), path.parent, {}, stacked=path)
    if not path.is_dir():
        raise InputError(path, "does not exist", "a case folder or a 4-D NIfTI file", "Check the path.")
    by_kind: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in niftis(path):
        kind = kind_of(file)
        by_kind.setdefault(kind, []).append(file) if kind else unnamed.append(file)
    for kind, files in by_kind.items():
        if len(files) > 1 and kind not in explicit and kind != "seg":
            names = ", ".join(f.name for f in files)
            advice = f"Keep one case per folder, or name the right file with --{kind}."
            raise InputError(path, f"{kind} twice ({names})", "one file per modality", advice)
    images = {m: explicit.get(m) or by_kind[m][0] for m in MODALITIES if m in explicit or m in by_kind}
    labels = tuple(by_kind.get("seg", ()))
    if not images and len(unnamed) == 1:
        return CaseFiles(stem(unnamed[0]), path, {}, stacked=unnamed[0], labels=labels)
    _check_images(path, images)
    numbered = any(_split_name(file)[1].isdigit() for modality, file in images.items() if modality not in explicit)
    return CaseFiles(_case_id(path, images), path, images, labels=labels, numbered=numbered)


def named_case(images: Mapping[str, Path]) -> CaseFiles:
    """A case whose files are all named, modality → file. Raises InputError for fewer than two, or one file twice."""
    first = next(iter(images.values()))
    _check_images(first, images)
    return CaseFiles(_case_id(first.parent, images), first.parent, images)


def _check_images(path: Path, images: Mapping[str, Path]) -> None:
    for first, second in combinations(images, 2):
        if images[first] == images[second]:
            raise InputError(images[first], f"given as {first} and as {second}", "a file for each", "Name both files.")
    if len(images) >= FEWEST_MODALITIES:
        return
    missing = [m for m in MODALITIES if m not in images]
    looked_for = "; ".join(f"{m}: " + ", ".join(f"*_{t}.nii[.gz]" for t in TOKENS[m]) for m in missing)
    raise InputError(
        path,
        f"no {', '.join(missing)}",
        f"at least {FEWEST_MODALITIES} of {', '.join(MODALITIES)} (looked for {looked_for})",
        "Rename the files or pass --t1, --t1ce, --t2, --flair.",
    )


def _case_id(folder: Path, images: Mapping[str, Path]) -> str:
    """The name that all modality files share, else the folder's."""
    prefixes = {_split_name(p)[0] for p in images.values()}
    shared = prefixes.pop() if len(prefixes) == 1 else ""
    return shared or folder.resolve().name

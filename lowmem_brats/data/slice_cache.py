"""Prepared slices of labelled cases on disk, made once, found again by a checksum of the files they came from.

An entry is two .npy files and a .json that is written last, so an interrupted build leaves nothing that looks whole.
The arrays are memory-mapped anew at each access and kept by no one, so host memory does not grow with the cases.
Shape suffixes: Z slices of a case, C modalities, H W in-plane.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import PREPROCESSING
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.geometry import check_same_grid
from lowmem_brats.data.labels import LabelConvention, Region, nesting_depth, split_regions, warnings_of
from lowmem_brats.data.nifti import count_voxels, is_own_result, read_label
from lowmem_brats.data.slices import VIEWS, active_slices, cut_label, occupied, prepare, slice_sizes, usable, views_of
from lowmem_brats.errors import InputError
from lowmem_brats.files import add_to_checksum, replace_when_complete

FORMAT = 6  # of an entry; one of another format is not found
ARRAYS = ("slices", "depth")


@dataclass(frozen=True)
class CachedCase:
    """One case's prepared slices on disk, and what can be said of them without opening the files."""

    case_id: str
    path: Path
    """Path of the .json; the arrays lie beside it."""
    shape_ZCHW: tuple[int, int, int, int]
    brain_VN: tuple[tuple[bool, ...], ...]
    """Per usable view, which of its slices hold brain."""
    depth_VN: tuple[tuple[int, ...], ...]
    """Per usable view, the deepest region in each of its slices, 0 to 3."""
    box_RA2: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Per region that there is, WT first: along Z, H and W its first voxel and the one after its last."""
    warnings: tuple[str, ...] = ()

    @property
    def checksum(self) -> str:
        """Checksum of the files that it was prepared from, and of the way."""
        return self.path.stem.rpartition("-")[2]

    @property
    def flat(self) -> bool:
        """Whether it can be seen axially only, as `SliceStack.flat`."""
        return len(self.brain_VN) == 1

    def usable(self, views: int) -> int:
        """From how many of the first `views` views it can be seen."""
        return usable(views, self.flat)

    @property
    def slices_ZCHW(self) -> npt.NDArray[np.float16]:
        """Z-scored slices, memory-mapped. Raises InputError when the file is gone or cut short."""
        return self._open("slices", np.float16, self.shape_ZCHW)

    @property
    def depth_ZHW(self) -> npt.NDArray[np.uint8]:
        """How many of the nested regions hold a pixel, memory-mapped: region r is `depth >= r.depth`.

        Raises as above.
        """
        depth, _, height, width = self.shape_ZCHW
        return self._open("depth", np.uint8, (depth, height, width))

    def _open(self, kind: str, dtype: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = _array(self.path, kind)
        try:
            with path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # lives as long as the array
            # np.load would parse the header at every access, which tells nothing new and takes longer than the reading.
            header = 10 + int.from_bytes(pages[8:10], "little")
            return np.frombuffer(pages, dtype, math.prod(shape), header).reshape(shape)
        except (OSError, ValueError) as error:
            advice = "Start again; trainings that share a cache folder need the same cases."
            raise InputError(path, f"cannot be opened ({error})", "the slices cached before", advice) from error

    def sizes_HW(self, views: int) -> list[tuple[int, int]]:
        """Rows and columns of its slices in each of the first `views` of VIEWS."""
        depth, _, height, width = self.shape_ZCHW
        return slice_sizes((depth, height, width), views)

    def box_of(self, region: Region, view: int = 0) -> list[tuple[int, int]] | None:
        """Where a region begins and ends along the axes [N, H, W] of a view; None if the case has none of it."""
        if region.depth > len(self.box_RA2):
            return None
        box_A2 = list(self.box_RA2[region.depth - 1])
        axis = VIEWS[view].axis
        box_A2[0], box_A2[axis] = box_A2[axis], box_A2[0]  # as `seen_from` swaps them
        return box_A2

    def active_VN(self, region: Region, views: int) -> list[npt.NDArray[np.bool_]]:
        """`active_slices` of a region's network of so many views, with the region's parent as in the label map."""
        seen = self.usable(views)
        brain_VN = [np.array(brain_N, np.bool_) for brain_N in self.brain_VN[:seen]]
        return active_slices(brain_VN, [np.array(depth_N) >= region.depth - 1 for depth_N in self.depth_VN[:seen]])


def build_cache(
    cases: Sequence[CaseFiles],
    folder: Path,
    stride: int,
    convention: LabelConvention,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    strict: bool = False,
    shared: bool = False,
) -> tuple[list[CachedCase], list[str]]:
    """The cases prepared, in order, and notes on those left out or built anew because their entry was damaged.

    Entries in `folder` whose checksum fits are used as they are. A case that cannot be read, or whose label map does
    not fit its images or is an uncorrected result, is left out; where `strict`, its InputError is raised, as it always
    is when the disk is full, or will be by what the first case to be prepared needs. `shared`: other trainings may use
    the folder, so that entries of other files of the same name stay.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror})", "a folder", "Choose another.") from error
    cached, notes, room_checked = [], [], False
    for done, files in enumerate(cases, 1):
        try:
            path = folder / f"{files.case_id}-s{stride}-{_checksum(files, stride, convention)}.json"
            there, case = path.exists(), _find(path, files.case_id)
            arrays = None if case else _prepare(files, stride, convention)
        except InputError as error:
            if strict:
                raise
            notes.append(f"{files.case_id}: left out: {error}")
        else:
            if arrays:
                if there:
                    notes.append(f"{files.case_id}: its cache was damaged: built anew")
                if not room_checked:
                    _check_room(folder, cases[done - 1 :], stride, sum(array.nbytes for array in arrays[:2]))
                room_checked = True
                try:
                    case = store_case(path, files.case_id, *arrays)
                except InputError:
                    case = _find(path, files.case_id)  # of a training that builds the same cache at this time
                    if case is None:
                        raise
                if not shared:
                    _remove_older(path, f"{files.case_id}-s{stride}")
            cached += [case] if case else []
        on_progress(done, len(cases))
    return cached, notes


def store_case(
    path: Path,
    case_id: str,
    slices_ZCHW: npt.NDArray[np.float16],
    depth_ZHW: npt.NDArray[np.uint8],
    flat: bool,
    warnings: Sequence[str] = (),
) -> CachedCase:
    """Write an entry, its .json at `path` last. Raises InputError when the disk is full.

    `flat`: as `SliceStack.flat`, so that a training sees a case from the sides from which it is segmented.
    """
    for kind, array in zip(ARRAYS, (slices_ZCHW, depth_ZHW), strict=True):
        with replace_when_complete(_array(path, kind)) as partial, partial.open("wb") as file:
            np.save(file, np.ascontiguousarray(array))  # so that a slice is one piece of the file
    brain_ZHW = (slices_ZCHW != 0).any(axis=1)
    views = usable(len(VIEWS), flat)
    facts = {
        "arrays": [_fingerprint(_array(path, kind)) for kind in ARRAYS],
        "shape_ZCHW": slices_ZCHW.shape,
        "brain_VN": [has_brain.tolist() for has_brain in occupied(brain_ZHW, views)],
        "depth_VN": [seen.max(axis=(1, 2)).tolist() for seen in views_of(depth_ZHW, views)],
        "box_RA2": [_box(depth_ZHW >= depth) for depth in range(1, int(depth_ZHW.max()) + 1)],
        "warnings": list(warnings),
    }
    with replace_when_complete(path) as partial:
        partial.write_text(json.dumps(_sealed(facts)))
    return _case(path, case_id, facts)


def _box(mask_ZHW: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Along each axis, the first voxel of a mask and the one after its last."""
    found = [np.flatnonzero(used) for used in occupied(mask_ZHW, len(VIEWS))]
    return [[int(indices[0]), int(indices[-1]) + 1] for indices in found]


def _array(path: Path, kind: str) -> Path:
    return path.with_suffix(f".{kind}.npy")


def digest(content: bytes) -> str:
    """A short checksum."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _fingerprint(path: Path) -> str:
    """An array's size in bytes, and a checksum of its header, which holds shape and format, and of its first pixels."""
    with path.open("rb") as file:
        return f"{path.stat().st_size} {digest(file.read(4096))}"


def _sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with their own checksum, so that a damaged .json is not believed."""
    return {"checksum": digest(json.dumps(facts).encode()), "facts": facts}


def _case(path: Path, case_id: str, facts: dict[str, Any]) -> CachedCase:
    brain_VN, depth_VN = (tuple(map(tuple, facts[key])) for key in ("brain_VN", "depth_VN"))
    box_RA2 = tuple(tuple(map(tuple, box)) for box in facts["box_RA2"])
    return CachedCase(case_id, path, tuple(facts["shape_ZCHW"]), brain_VN, depth_VN, box_RA2, tuple(facts["warnings"]))


def _find(path: Path, case_id: str) -> CachedCase | None:
    """The entry at `path` if it is there and whole."""
    try:
        entry = json.loads(path.read_text())
        facts = entry["facts"]
        whole = facts["arrays"] == [_fingerprint(_array(path, kind)) for kind in ARRAYS]
        if whole and entry == _sealed(facts):
            return _case(path, case_id, facts)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return None


def _check_room(folder: Path, cases: Sequence[CaseFiles], stride: int, first_bytes: int) -> None:
    """Raise InputError where the disk is too small for the cases, the first of which needs so many bytes.

    The others are judged by their voxels. What the folder holds of them, it may hold still.
    """
    there = {re.sub(r"-[0-9a-f]{16}\.json$", "", path.name) for path in folder.glob("*.json")}
    missing = [case for case in cases[1:] if f"{case.case_id}-s{stride}" not in there]
    voxels = [count_voxels(case.stacked or next(iter(case.images.values()))) for case in (cases[0], *missing)]
    needed, free = first_bytes * sum(voxels) / max(voxels[0], 1), shutil.disk_usage(folder).free
    if needed > free:
        found = f"{free / 2**20:,.0f} MiB free"
        expected = f"about {needed / 2**20:,.0f} MiB for the slices of {len(voxels)} cases"
        raise InputError(folder, found, expected, "Free some, or name a folder on another disk with --cache.")


def _remove_older(path: Path, name: str) -> None:
    """Remove the case's other entries of this stride, which were made of other files or in another way.

    Those of another stride may be in use by the training of another network. Nothing else is touched.
    """
    own_name = re.compile(re.escape(name) + r"-[0-9a-f]{16}\.(json|slices\.npy|depth\.npy)")
    for other in path.parent.iterdir():
        if own_name.fullmatch(other.name) and not other.name.startswith(f"{path.stem}."):
            with suppress(OSError):  # open in another process, on Windows
                other.unlink()


def _checksum(files: CaseFiles, stride: int, convention: LabelConvention) -> str:
    """Checksum of all that decides the slices: the bytes of the files, and the way in which they are prepared."""
    digest = hashlib.blake2b(f"{FORMAT} {PREPROCESSING} {stride} {convention.name}".encode(), digest_size=8)
    named = dict(files.images) | ({"stacked": files.stacked} if files.stacked else {}) | {"label": files.labels[0]}
    for name, path in sorted(named.items()):
        digest.update(f" {name} ".encode())
        add_to_checksum(digest, path)
    return digest.hexdigest()


def _prepare(
    files: CaseFiles, stride: int, convention: LabelConvention
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8], bool, list[str]]:
    label_path = files.labels[0]
    if is_own_result(label_path):
        found = "a result of this program that nobody has corrected"
        raise InputError(label_path, found, "a label map by a person", "Correct it, or leave the case out.")
    case, label = read_case(files), read_label(label_path)
    check_same_grid(label, label_path, case.reference, files.stacked or next(iter(files.images.values())))
    stack = prepare(case.images_CXYZ, stride, case.spacing_mm)
    depth_XYZ = nesting_depth(split_regions(label.data, convention, label_path))
    warnings = [f"{label_path.name}: {text}" for text in [*label.warnings, *warnings_of(label.data, convention)]]
    return stack.slices_ZCHW, cut_label(depth_XYZ, stack), stack.flat, case.warnings + stack.notes + warnings

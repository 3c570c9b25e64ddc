"""Cases with label maps → a slice cache on disk → batches.

The cache holds one pair of memory-mapped .npy files per case, so host memory does not grow with the number of cases.
Shape suffixes: Z slices of a case, N slices in a batch, C modalities, H W in-plane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowmem_brats.case_files import CaseFiles
from lowmem_brats.errors import InputError
from lowmem_brats.labels import LabelConvention, Region, nesting_depth, split_regions
from lowmem_brats.nifti import check_same_grid, read_case, read_label
from lowmem_brats.slices import centre_in, cut_label, prepare


@dataclass(frozen=True)
class CachedCase:
    """One case's prepared slices, memory-mapped."""

    case_id: str
    slices_ZCHW: npt.NDArray[np.float16]
    depth_ZHW: npt.NDArray[np.uint8]
    """How many of the nested regions hold a pixel: region r is `depth >= r.depth`."""
    warnings: tuple[str, ...] = ()

    def seen_by(self, region: Region) -> npt.NDArray[np.bool_]:
        """Which slices [Z] a region's network has to segment: those with brain and with the region's parent."""
        brain_Z = (self.slices_ZCHW != 0).any(axis=(1, 2, 3))
        seen_Z: npt.NDArray[np.bool_] = brain_Z & (self.depth_ZHW.max(axis=(1, 2)) >= region.depth - 1)
        return seen_Z


def split_cases(cases: Sequence[CaseFiles], validation: float, seed: int) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Split by patient into training and validation, at least one case each, the same for the same seed and names.

    Raises InputError for fewer than two cases, or two of one name.
    """
    if len(cases) < 2:
        raise InputError("training data", f"{len(cases)} labelled case", "at least 2", "Add cases.")
    twice = [case_id for case_id, count in Counter(case.case_id for case in cases).items() if count > 1]
    if twice:
        found = f"several cases named {', '.join(twice)}"
        raise InputError("training data", found, "one name per patient", "Start the files' names with the patient's.")
    ordered = sorted(cases, key=lambda case: case.case_id)
    order = np.random.default_rng(seed).permutation(len(ordered))
    held_out = min(max(round(validation * len(ordered)), 1), len(ordered) - 1)
    chosen = set(order[:held_out].tolist())
    return (
        [case for i, case in enumerate(ordered) if i not in chosen],
        [case for i, case in enumerate(ordered) if i in chosen],
    )


def build_cache(
    cases: Sequence[CaseFiles],
    folder: Path,
    stride: int,
    convention: LabelConvention,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[CachedCase]:
    """Read and prepare cases, write their slices under `folder`, and return them memory-mapped, in order.

    Raises InputError for a case that cannot be read or whose label map does not fit its images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cached = []
    for number, files in enumerate(cases, 1):
        cached.append(_cache_case(files, folder, stride, convention))
        on_progress(number, len(cases))
    return cached


def _cache_case(files: CaseFiles, folder: Path, stride: int, convention: LabelConvention) -> CachedCase:
    label_path = files.labels[0]
    case, label = read_case(files), read_label(label_path)
    first = files.stacked or next(iter(files.images.values()))
    check_same_grid(label, label_path, case.reference, first)
    stack = prepare(case.images_CXYZ, stride)
    depth_XYZ = nesting_depth(split_regions(label.data, convention, label_path))
    paths = folder / f"{files.case_id}_slices.npy", folder / f"{files.case_id}_depth.npy"
    np.save(paths[0], stack.slices_ZCHW)
    np.save(paths[1], cut_label(depth_XYZ, stack))
    slices_ZCHW, depth_ZHW = (np.load(path, mmap_mode="r") for path in paths)
    return CachedCase(files.case_id, slices_ZCHW, depth_ZHW, tuple(case.warnings))


def frame_of(cases: Sequence[CachedCase]) -> tuple[int, int]:
    """The smallest (H, W) that holds every case's slices."""
    sizes = np.array([case.slices_ZCHW.shape[-2:] for case in cases])
    height, width = sizes.max(axis=0).tolist()
    return height, width


def training_rows(cases: Sequence[CachedCase], region: Region) -> list[tuple[int, int]]:
    """(case index, slice index) of every slice that a region's network learns from. Raises InputError for none."""
    rows = [(i, z) for i, case in enumerate(cases) for z in np.flatnonzero(case.seen_by(region)).tolist()]
    if not rows:
        found = f"no slice for {region.name} in {len(cases)} case{'s' if len(cases) > 1 else ''}"
        raise InputError("training data", found, "tumours in the training cases", "Add cases that have one.")
    return rows


def gather(
    cases: Sequence[CachedCase], rows: Sequence[tuple[int, int]], region: Region, frame_HW: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """One batch: `slices_NCHW` fp32 and `target_N1HW` fp32 0/1, each slice centred in the frame."""
    slices = [centre_in(frame_HW, cases[i].slices_ZCHW[z]) for i, z in rows]
    depths = [centre_in(frame_HW, cases[i].depth_ZHW[z][None]) for i, z in rows]
    slices_NCHW = torch.from_numpy(np.stack(slices)).float()
    return slices_NCHW, torch.from_numpy(np.stack(depths) >= region.depth).float()

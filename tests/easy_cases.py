"""Cases that a tiny network learns within seconds: nested discs, each given away by one modality."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from lowmem_brats.config import MODALITIES, NetworkConfig, TrainConfig
from lowmem_brats.data.slice_cache import CachedCase, store_case
from lowmem_brats.data.slices import is_flat

TINY = NetworkConfig(width=8, depth=1)
EASY = TrainConfig(
    network=TINY,
    epochs=10,
    batch=2,
    learning_rate=1e-2,
    warmup=5,
    average=0.5,
    validation=0.2,
    test=0.2,
    augment=False,
    precision="fp32",
    device="cpu",
)
SIDE, DEPTH = 20, 6
SHOWS = {"t1": 9, "t1ce": 3, "t2": 2, "flair": 1}  # t1 shows nothing


def easy_depth(depth: int = DEPTH) -> np.ndarray:
    """Nested discs in every slice: 1 whole tumour, 2 core, 3 enhancing."""
    axis = np.arange(SIDE) - 9.5
    radius_YX = np.hypot(axis[:, None], axis)
    depth_YX = (radius_YX < 7).astype(np.uint8) + (radius_YX < 5) + (radius_YX < 3)
    return np.broadcast_to(depth_YX, (depth, SIDE, SIDE))


def write_easy_case(folder: Path, seed: int = 0, depth: int = DEPTH) -> Path:
    """Write a case as NIfTI files; returns its folder."""
    folder.mkdir(parents=True)
    depth_ZYX, rng = easy_depth(depth), np.random.default_rng(seed)
    margin = ((10, 10), (10, 10), (0, 0))  # without it, a warning that the images are not skull-stripped
    label_XYZ = np.pad(np.array([0, 2, 1, 4], np.uint8)[depth_ZYX.T], margin)
    nibabel.save(nibabel.Nifti1Image(label_XYZ, np.diag([-1, -1, 1, 1])), folder / f"{folder.name}_seg.nii.gz")
    for modality in MODALITIES:
        image_XYZ = 100 + rng.normal(0, 2, depth_ZYX.T.shape) + 60 * (SHOWS[modality] <= depth_ZYX.T)
        image = nibabel.Nifti1Image(np.pad(image_XYZ, margin).astype(np.float32), np.diag([-1, -1, 1, 1]))
        nibabel.save(image, folder / f"{folder.name}_{modality}.nii.gz")
    return folder


def write_easy_data(data: Path, count: int = 5) -> Path:
    """Write a folder of cases easy_0, easy_1, …"""
    for number in range(count):
        write_easy_case(data / f"easy_{number}", number)
    return data


def easy_cached(folder: Path, case_id: str = "case", seed: int = 0) -> CachedCase:
    """A case in the cache, without NIfTI files."""
    depth_ZHW = easy_depth()
    slices_ZCHW = np.random.default_rng(seed).normal(0, 0.1, (DEPTH, 4, SIDE, SIDE))
    slices_ZCHW += np.stack([depth_ZHW >= SHOWS[modality] for modality in MODALITIES], axis=1) - 0.5
    return store_slices(folder / f"{case_id}.json", case_id, slices_ZCHW.astype(np.float16), np.array(depth_ZHW))


def store_slices(path: Path, case_id: str, slices_ZCHW: np.ndarray, depth_ZHW: np.ndarray) -> CachedCase:
    """Put slices into the cache as they are, judged flat or not by where they are not 0."""
    return store_case(path, case_id, slices_ZCHW, depth_ZHW, is_flat((slices_ZCHW != 0).any(axis=1)))

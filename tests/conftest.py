"""What many tests share: tiny synthetic cases written in any convention, and the way to the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from lowmem_brats.config import MODALITIES

# The same examples on every run, whatever the load of the machine: a test fails because the code changed.
hypothesis.settings.register_profile("lowmem", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lowmem")

# One thread for each process: as many tests run at a time as there are cores. torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPE_XYZ = (12, 14, 10)
LPS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
"""The affine of every case of BraTS ≤ 2021."""
NAMES = {
    "brats2021": {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "seg": "_seg"},
    "brats2023": {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"},
    "nnunet": {"t1": "_0000", "t1ce": "_0001", "t2": "_0002", "flair": "_0003", "seg": "_seg"},
    "hdglio": {"t1": "_T1", "t1ce": "_CT1", "t2": "_T2", "flair": "_FLAIR", "seg": "_seg"},
    "aurora": {"t1": "_t1", "t1ce": "_t1c", "t2": "_t2", "flair": "_fla", "seg": "_seg"},
    "msd": {"t1": "_T1w", "t1ce": "_T1gd", "t2": "_T2w", "flair": "_FLAIR", "seg": "_seg"},
}
"""Convention → what each modality's file name ends with."""

SaveNifti = Callable[..., Path]
WriteCase = Callable[..., Path]


def _tiny_case(shape_XYZ: tuple[int, int, int]) -> dict[str, npt.NDArray[np.int16]]:
    """Four different images and a label map in LPS order: a box of brain inside a margin of zeros, a tumour inside."""
    rng = np.random.default_rng(0)
    brain = tuple(slice(n // 5, n - n // 5) for n in shape_XYZ)
    tumour = tuple(slice(n // 3, n // 2 + 1) for n in shape_XYZ)
    volumes = {name: np.zeros(shape_XYZ, np.int16) for name in (*MODALITIES, "seg")}
    for modality in MODALITIES:
        volumes[modality][brain] = rng.integers(100, 900, volumes[modality][brain].shape)
    volumes["seg"][tumour] = rng.choice([1, 2, 4], volumes["seg"][tumour].shape)
    return volumes


def _save_nifti(
    path: Path,
    data: npt.NDArray[Any],
    affine: npt.NDArray[np.float64] = LPS_AFFINE,
    sform: int = 1,
    qform: int = 1,
) -> Path:
    """Write an array as it is, with the affine in the forms whose code is not 0."""
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    nibabel.save(image, path)
    return path


def _write_case(
    folder: Path,
    names: str | Mapping[str, str] = "brats2021",
    *,
    modalities: tuple[str, ...] = (*MODALITIES, "seg"),
    suffix: str = ".nii.gz",
    shape: tuple[int, int, int] = SHAPE_XYZ,
    dtype: type = np.int16,
    affine: npt.NDArray[np.float64] = LPS_AFFINE,
) -> Path:
    """Write a tiny case into `folder`, file names `<folder><ending><suffix>`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    endings = NAMES[names] if isinstance(names, str) else names
    volumes = _tiny_case(shape)
    for name in modalities:
        kind = np.uint8 if name == "seg" else dtype
        _save_nifti(folder / f"{folder.name}{endings[name]}{suffix}", volumes[name].astype(kind), affine)
    return folder


@pytest.fixture(autouse=True)
def _without_card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's card from tests that are not marked `gpu`, so that `auto` is the CPU for them everywhere."""
    if "gpu" not in request.keywords:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def tiny_case() -> Callable[[tuple[int, int, int]], dict[str, npt.NDArray[np.int16]]]:
    """`tiny_case(shape_XYZ)`: the arrays that `write_case` writes, by modality, and `seg`."""
    return _tiny_case


@pytest.fixture(scope="session")
def save_nifti() -> SaveNifti:
    """`save_nifti(path, data, affine, sform=1, qform=1)`."""
    return _save_nifti


@pytest.fixture(scope="session")
def write_case() -> WriteCase:
    """`write_case(folder, names="brats2021", *, modalities, suffix, shape, dtype, affine)`."""
    return _write_case


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set of three tiny networks."""
    from tiny_weights import write_tiny_set

    return write_tiny_set(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small phantom with its label map; not to be written to."""
    from tiny_weights import SMALL_SHAPE

    from lowmem_brats.cli.phantom import write_phantom

    return write_phantom(tmp_path_factory.mktemp("case"), 0, SMALL_SHAPE, overwrite=False)


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """The folder of original BraTS cases; skips where it is not there. Use with `@pytest.mark.real`."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "cases"
    if not folder.is_dir():
        pytest.skip(f"no real cases in {folder}")
    return folder

"""Synthetic heads, and the extra without which some tests are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from raw_heads import Head, make_head, write_mask, write_study

from lowmem_brats.prepare import register
from lowmem_brats.prepare.extra import IN_DICOM, PACKAGES


@pytest.fixture(scope="session")
def extra() -> None:
    """Skips where the extras `prepare` and `dicom` are not installed."""
    if missing := [module for module in (*PACKAGES, *IN_DICOM) if find_spec(module) is None]:
        pytest.skip(f"no {', '.join(missing)}: pip install '.[prepare,dicom]'")


@pytest.fixture(scope="session", autouse=True)
def coarse_levels() -> Iterator[None]:
    """Levels for voxels of 4 mm, and fewer of them: a registration takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "LEVELS", ((8.0, 4.0, 0.3), (4.0, 2.0, 0.1)))
        yield


@pytest.fixture(scope="session")
def head() -> Head:
    return make_head()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """A raw study of NIfTI files; not to be written to."""
    return write_study(tmp_path_factory.mktemp("raw") / "Doe_Jane", head)


@pytest.fixture(scope="session")
def mask(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """The brain of the study's T1ce."""
    return write_mask(tmp_path_factory.mktemp("mask") / "brain.nii.gz", head)

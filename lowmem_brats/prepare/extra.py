"""The libraries that only `prepare` and DICOM segmentations need: imported when used, named where they are missing."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowmem_brats.errors import InputError

PACKAGES = {"SimpleITK": "simpleitk", "dcm2niix": "dcm2niix", "deepbet": "deepbet", "pydicom": "pydicom"}
"""Module → package, of the extra `prepare`."""
INSTALL = "Install what it needs: pip install 'lowmem-brats[{}]'."
IN_DICOM = ("highdicom",)
"""Modules of the extra `dicom`."""


def library(module: str) -> Any:
    """Import one of the extra's modules. Raises InputError where it is not installed, or is and cannot be loaded."""
    _check(module)
    try:
        return import_module(module)
    except ImportError as error:  # as for a library of the system that is missing
        found, expected = f"{module} cannot be loaded ({error})", "a library that works"
        raise InputError("prepare", found, expected, "Install it again: pip install --force-reinstall.") from error


def data_file(module: str, name: str) -> Path:
    """The path of a data file that a package of the extra installs; the package itself is not imported.

    Raises InputError where package or file is not there.
    """
    _check(module)
    path = Path(str(distribution(PACKAGES[module]).locate_file(name)))
    if not path.is_file():
        raise InputError(
            "prepare", f"{module} has no file {name}", "the release that this program knows", INSTALL.format("prepare")
        )
    return path


def check_installed() -> None:
    """Raise InputError, before any work, where a part of the extra is missing; all that are missing are named."""
    _check(*PACKAGES)


def versions() -> dict[str, str]:
    """Package of the extra → installed version."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _check(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extra = "dicom" if set(missing) & set(IN_DICOM) else "prepare"
        found = f"no {', '.join(missing)} on this machine"
        raise InputError("prepare", found, f"the extra [{extra}]", INSTALL.format(extra))

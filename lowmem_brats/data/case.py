"""Read one patient: the images of a case on one grid, brain told from background.

Axes: C modalities; X Y Z voxels in LPS order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.alignment import measure_alignment
from lowmem_brats.data.brain import isolate_brain
from lowmem_brats.data.case_files import FEWEST_MODALITIES, CaseFiles, what_is_lost
from lowmem_brats.data.exchanged import find_exchanged
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.labels import Mask
from lowmem_brats.data.nifti import NiftiImage, read_stack, read_volume, volume_of
from lowmem_brats.errors import InputError, did_you_mean

FEW = 1e-3
"""Share of an image's voxels; where cleaning changes more, the image is seen cleaned by every network."""
MSD_ORDER = ("flair", "t1", "t1ce", "t2")
NUMBERED = (
    "_0000 to _0003 are taken for T1, T1ce, T2, FLAIR, as in nnU-Net's Dataset 137; where they are in another order, "
    "name the files with --t1, --t1ce, --t2, --flair"
)

STACKED = (
    "the volumes of a 4-D file are taken for FLAIR, T1, T1ce, T2, as in the Medical Segmentation Decathlon; where they "
    "are in another order, make a file of each and name them with --t1, --t1ce, --t2, --flair"
)


@dataclass
class Case:
    """One patient in memory."""

    case_id: str
    images_CXYZ: npt.NDArray[np.float32]
    """Modalities in the order of `config.MODALITIES`, 0 outside the brain (`isolate_brain`); a missing one is 0."""
    reference: Volume
    """The first modality; label maps are written into its grid."""
    missing: list[str]
    warnings: list[str] = field(default_factory=list)
    cleaned: dict[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]] = field(default_factory=dict)
    """Per modality that was clean but for a few voxels: which `isolate_brain` changed, flat, and what they were."""

    @property
    def stored_CXYZ(self) -> npt.NDArray[np.float32]:
        """The images with those few voxels as they were, which is how others' networks see them. A new array."""
        images_CXYZ = self.images_CXYZ.copy()
        for modality, (changed, values) in self.cleaned.items():
            images_CXYZ[MODALITIES.index(modality)].flat[changed] = values
        return images_CXYZ

    @property
    def brain_XYZ(self) -> Mask:
        """Where any modality has signal: the brain, as everything else is 0. A new array."""
        return np.asarray(self.images_CXYZ.any(axis=0))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return self.reference.spacing_mm


def read_case(files: CaseFiles) -> Case:
    """Read and check the modalities of a case.

    Missing modalities become zeros with a warning. Raises InputError: unreadable file, constant image, shapes or
    affines that differ between the modalities (more than AFFINE_TOLERANCE_MM at a corner).
    """
    volumes = _read_stacked(files.stacked) if files.stacked else {m: read_volume(p) for m, p in files.images.items()}
    paths = {m: files.stacked or files.images[m] for m in volumes}
    assumed = [NUMBERED] * files.numbered + [STACKED] * (files.stacked is not None)
    return _on_one_grid(files.case_id, volumes, paths, [*files.notes, *assumed])


def case_of(images: Mapping[str, NiftiImage], allow_missing: Collection[str] = (), case_id: str = "case") -> Case:
    """Check the modalities of a case that is in memory: modality → nibabel image; the arrays are not changed.

    `allow_missing`: modalities that need not be there. Otherwise as `read_case`, and raises InputError too for an
    unknown modality and for one that is missing and must not.
    """
    for modality in images:
        if modality not in MODALITIES:
            advice = did_you_mean(str(modality).lower(), MODALITIES, "Leave it out.")
            raise InputError("images", f"modality {modality!r}", f"only {', '.join(MODALITIES)}", advice)
    missing = [m for m in MODALITIES if m not in images]
    if len(images) < FEWEST_MODALITIES or not set(missing) <= set(allow_missing):
        expected = f"{', '.join(MODALITIES)}, of which allow_missing may name {len(MODALITIES) - FEWEST_MODALITIES}"
        lost = ", and ".join(dict.fromkeys(map(what_is_lost, missing)))
        raise InputError("images", f"no {', '.join(missing)}", expected, f"Without {', '.join(missing)} {lost}.")
    volumes = {m: volume_of(images[m], m) for m in MODALITIES if m in images}
    return _on_one_grid(case_id, volumes, {m: Path(m) for m in volumes}, [])


def _on_one_grid(case_id: str, volumes: Mapping[str, Volume], paths: Mapping[str, Path], notes: list[str]) -> Case:
    """Put modalities together and tell brain from background; `paths`: what to call them in errors."""
    missing = [m for m in MODALITIES if m not in volumes]
    first = next(iter(volumes))
    reference = volumes[first]
    for modality, volume in volumes.items():
        check_same_grid(volume, paths[modality], reference, paths[first])
        if volume.data.min() == volume.data.max():
            found = f"every voxel is {volume.data.flat[0]}"
            raise InputError(paths[modality], found, f"a {modality} image", "Leave the file out if it has no content.")
    images_CXYZ = np.zeros((len(MODALITIES), *reference.data.shape), np.float32)
    for channel, modality in enumerate(MODALITIES):
        if modality in volumes:
            images_CXYZ[channel] = volumes[modality].data
    case = Case(case_id, images_CXYZ, reference, missing)
    done_to_images = isolate_brain(images_CXYZ, missing, float(np.prod(case.spacing_mm)))
    case.cleaned = dict(_cleaned(images_CXYZ, volumes))
    case.warnings = notes + _warnings(case) + _warnings_of_headers(volumes) + _alike(volumes)
    case.warnings += done_to_images + _apart(case) + _exchanged(case)
    return case


def _cleaned(
    images_CXYZ: npt.NDArray[np.float32], volumes: Mapping[str, Volume]
) -> Iterator[tuple[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]]:
    for modality, volume in volumes.items():
        image_XYZ = images_CXYZ[MODALITIES.index(modality)]
        changed = np.flatnonzero(image_XYZ != volume.data)
        if changed.size <= FEW * image_XYZ.size:
            yield modality, (changed, np.asarray(volume.data, np.float32).flat[changed])


def _read_stacked(path: Path) -> dict[str, Volume]:
    volume = read_stack(path)
    if volume.data.shape[3] != len(MSD_ORDER):
        expected = "4 volumes in the order FLAIR, T1w, T1gd, T2w"
        raise InputError(path, f"{volume.data.shape[3]} volumes", expected, "Pass --t1, --t1ce, --t2, --flair.")
    return {modality: replace(volume, data=volume.data[..., i]) for i, modality in enumerate(MSD_ORDER)}


def _warnings(case: Case) -> list[str]:
    warnings = [f"{m} is missing: zeros are used in its place and {what_is_lost(m)}" for m in case.missing]
    if any(abs(s - 1) > 0.1 for s in case.spacing_mm):
        spacing = " × ".join(f"{s:.2f}" for s in case.spacing_mm)
        warnings.append(f"spacing is {spacing} mm; the networks were trained on 1 mm, and the result may suffer")
    header = case.reference.header
    if not header["sform_code"] and not header["qform_code"]:
        warnings.append("the header holds no orientation (sform and qform codes are 0): left/right cannot be trusted")
    return warnings


def _apart(case: Case) -> list[str]:
    """A warning for each modality that does not lie on the others."""
    found = measure_alignment(case.images_CXYZ, case.missing, case.spacing_mm)
    anchor = "t1ce" if "t1ce" not in case.missing else "the first image"
    mirrored = [
        f"{modality} is mirrored, left for right, against {anchor}: they share {fit.over_mirror:.1f} times the "
        "information that they share with one of them mirrored: the result may be wrong; check how the files were "
        "converted"
        for modality, fit in found.items()
        if fit.mirrored
    ]
    return mirrored + [
        f"{modality} does not lie on {anchor}: they share {fit.over_mean:.1f} times the information that they share "
        "shifted by 8 mm, and registered images 1.3 to 8 times: the result may be wrong; register them first "
        "(lowmem-brats prepare)"
        for modality, fit in found.items()
        if fit.apart and not fit.mirrored
    ]


def _exchanged(case: Case) -> list[str]:
    """A warning for each two modalities that look as if they were given for each other."""
    why = {"t1": "the contrast agent shows in t1", "t2": "fluid is dark in t2 and bright in flair"}
    return [
        f"{first} and {second} look as if each were the other, since {why[first]}: the result may be wrong; check "
        f"which file is which, and name them with --{first} and --{second}"
        for first, second in find_exchanged(case.images_CXYZ, case.missing, case.spacing_mm)
    ]


def _alike(volumes: Mapping[str, Volume]) -> list[str]:
    """A warning for each two modalities that are one image."""
    return [
        f"{first} and {second} are the same image, voxel by voxel: one of them is not what its name says, and the "
        "result may be wrong"
        for first, second in combinations(volumes, 2)
        if np.array_equal(volumes[first].data, volumes[second].data)
    ]


def _warnings_of_headers(volumes: Mapping[str, Volume]) -> list[str]:
    """Each warning once, with the modalities whose headers it is about."""
    about: dict[str, list[str]] = {}
    for modality, volume in volumes.items():
        for warning in volume.warnings:
            about.setdefault(warning, []).append(modality)
    return [f"{', '.join(modalities)}: {warning}" for warning, modalities in about.items()]

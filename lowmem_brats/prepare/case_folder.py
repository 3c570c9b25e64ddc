"""Write a prepared case: images for `segment`, T1ce as it came, transforms, the record of how it was made.

Nothing of the user's file names, paths or DICOM headers is written but what tells sequences apart: no output can name
a patient, unless the user names the case so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_brats import __version__
from lowmem_brats.config import MODALITIES
from lowmem_brats.data.nifti import write_volume
from lowmem_brats.errors import InputError
from lowmem_brats.files import write_text
from lowmem_brats.memory.device import process_peak_bytes
from lowmem_brats.prepare.extra import library, versions
from lowmem_brats.prepare.run import Prepared
from lowmem_brats.segment.native import NATIVE, RECORD

TRANSFORMS = "transforms"
ELSEWHERE = "Choose another folder."


def check_case_folder(out: Path, overwrite: bool) -> None:
    """Make sure, before any work, that a case can be written to `out`.

    Raises InputError for a folder that holds something, unless it is a prepared case and may be overwritten.
    """
    if not out.name:
        raise InputError(out, "no name for a case", "a folder named as the case", ELSEWHERE)
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(out, "is a file", "a folder for the case", ELSEWHERE)
    if out.is_dir() and any(out.iterdir()):
        if not (out / RECORD).is_file():
            raise InputError(out, "holds files already", "a new or empty folder", ELSEWHERE)
        if not overwrite:
            advice = "Segment it, pass --overwrite to prepare it anew, or choose another folder."
            raise InputError(out, "holds a prepared case", "a new folder", advice)
    parent = out.parent
    if not parent.is_dir():
        raise InputError(out, f"{parent} is not a folder", "an existing folder", "Create it or choose another.")
    if not os.access(parent, os.W_OK):
        raise InputError(out, f"{parent} is not writable", "a folder you may write to", ELSEWHERE)


def write_case(prepared: Prepared, out: Path, picture: Any) -> list[Path]:
    """Write the case to `out`, whose name is the case's: all of it, or nothing. Returns what was written, in order.

    `picture`: a Pillow image, the one to look at. Raises InputError where it cannot be written.
    """
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
        try:
            written = _write(prepared, partial, out.name, picture)
            _move(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # the latter is SimpleITK's, of a transform
        found = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        raise InputError(out, found, "a complete write", "Free disk space or choose another place.") from error
    return [out / path for path in written]


def record_of(prepared: Prepared) -> dict[str, Any]:
    """How a case was made, as plain values."""
    t1ce, grid, brain = prepared.t1ce, prepared.grid, prepared.brain
    return {
        "program": f"lowmem-brats {__version__}",
        "inputs": {
            modality: {"checksum": source.checksum(), "files": len(source.files), "taken_because": source.reason}
            for modality, source in prepared.study.sources.items()
        },
        "kind": prepared.study.kind,
        "forced": bool(prepared.problems),
        "problems": prepared.problems,
        "warnings": prepared.warnings,
        "registration": {
            modality: {
                "start": found.start,
                "rotation_degrees": round(found.rotation_degrees, 3),
                "shift_mm": round(found.shift_mm, 3),
                "transform_lps_mm": _matrix(found.transform),
                "over_probes": round(prepared.measures[modality].over_probes, 3),
                "covered": round(prepared.measures[modality].covered, 4),
            }
            for modality, found in prepared.registrations.items()
        },
        "brain": {
            "made_by": brain.made_by,
            "millilitres": round(brain.millilitres(t1ce), 1),
            "pieces": brain.pieces,
            "overlap_t1": None if prepared.overlap_t1 is None else round(prepared.overlap_t1, 4),
        },
        "grid": {"shape": list(grid.shape), "affine_ras_mm": grid.affine.tolist()},
        "native": {"shape": list(t1ce.data.shape), "spacing_mm": list(t1ce.spacing_mm)},
        "seconds": {stage: round(seconds, 2) for stage, seconds in prepared.seconds.items()},
        "process_peak_bytes": process_peak_bytes(),
        "versions": versions(),
    }


def _write(prepared: Prepared, folder: Path, case_id: str, picture: Any) -> list[Path]:
    """Write all files into an empty folder; returns their paths in it."""
    about = f"lowmem-brats {__version__}, prepared{', FORCED' if prepared.problems else ''}"
    written = []
    for modality in prepared.study.sources:
        written.append(_image(case_id, modality))
        image_XYZ = prepared.images_CXYZ[MODALITIES.index(modality)]
        write_volume(image_XYZ, prepared.grid.affine, folder / written[-1], about=about)
    (folder / NATIVE).mkdir()
    natives: Mapping[str, Any] = {"t1ce": prepared.t1ce.data, "brain_mask": prepared.brain.mask_XYZ.astype(np.uint8)}
    for name, data_XYZ in natives.items():
        written.append(Path(NATIVE, f"{case_id}_{name}.nii.gz"))
        write_volume(data_XYZ, prepared.t1ce, folder / written[-1], about=about)
    (folder / TRANSFORMS).mkdir()
    for modality, found in prepared.registrations.items():
        written.append(_transform(modality))
        library("SimpleITK").WriteTransform(found.transform, str(folder / written[-1]))
    written.append(Path(f"{case_id}_check.png"))
    picture.save(folder / written[-1], format="PNG")
    written.append(Path(RECORD))
    record = record_of(prepared) | {"native_image": f"{NATIVE}/{case_id}_t1ce.nii.gz"}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    return written


def _image(case_id: str, modality: str) -> Path:
    return Path(f"{case_id}_{modality}.nii.gz")


def _transform(modality: str) -> Path:
    return Path(TRANSFORMS, f"t1ce_to_{modality}.tfm")


def _move(partial: Path, out: Path) -> None:
    """Give a complete folder its name; in a case of before, file by file, the record last.

    What that case had of modalities that are missing now is removed: it would be segmented with the new images.
    """
    if not out.is_dir():
        partial.chmod(0o777 & ~_umask())
        partial.rename(out)
        return
    files = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
    for modality in MODALITIES:
        for path in (_image(out.name, modality), _transform(modality)):
            if path not in files:
                (out / path).unlink(missing_ok=True)
    for path in sorted(files, key=lambda path: (path.name == RECORD, path)):
        (out / path).parent.mkdir(exist_ok=True)
        os.replace(partial / path, out / path)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _matrix(transform: Any) -> list[list[float]]:
    """4 × 4: point of T1ce → point of the other image, LPS+ mm."""
    moved = [np.array(transform.TransformPoint(point)) for point in ((0.0, 0.0, 0.0), *np.eye(3).tolist())]
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = np.stack([point - moved[0] for point in moved[1:]], axis=1)
    return [[round(float(value), 6) for value in row] for row in matrix]

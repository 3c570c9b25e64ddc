"""What a Python program or a notebook calls: segment a case, plan, score, measure. `lowmem_brats` offers these names.

The commands call the same functions of the rooms, so both give the same results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import BRAIN_SHAPE, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.data.case import case_of
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.geometry import Volume
from lowmem_brats.data.labels import as_labels, convention_of
from lowmem_brats.data.nifti import NiftiImage, read_label
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import InputError, LowmemError
from lowmem_brats.evaluate.pairs import LabelledVolume, PatientScores, case_id_of, score_patient
from lowmem_brats.measure.label_map import Measurements, measure_file
from lowmem_brats.memory.budget import parse_budget
from lowmem_brats.memory.planner import InferencePlan, TrainPlan, plan_inference, plan_train
from lowmem_brats.networks import usual_size
from lowmem_brats.segment.case import segment_files, segment_images
from lowmem_brats.segment.result import Segmentation
from lowmem_brats.weights.store import open_set

AnyPath = str | os.PathLike[str]
DEVICES = ("cpu", "cuda")


def segment_tumour(
    case: AnyPath | Mapping[str, NiftiImage],
    config: SegmentConfig | None = None,
    *,
    allow_missing: Collection[str] = (),
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Segmentation:
    """Segment the tumour of one case. Nothing is written until the result's `save` is called.

    `case`: a case folder, a 4-D file, or images in memory, a nibabel image for each of `t1`, `t1ce`, `t2`, `flair`; of
    an array make one with `nibabel.Nifti1Image(array_XYZ, affine)`. The images are co-registered, skull-stripped and
    near 1 mm, of any axis order and intensity scale; they are not changed. `config`: settings, None for the defaults.
    `allow_missing`: modalities that need not be there. `on_progress(regions, slices done, slices in all)` is called
    after each batch of slices.
    Raises LowmemError: images, settings or weights that cannot be used, or a budget that is too small.
    """
    config = config or SegmentConfig()
    if isinstance(case, Mapping):
        return segment_images(case_of(case, allow_missing), config, on_progress)
    files = find_case(Path(case), allow_missing=allow_missing, say=_as_images)
    return segment_files(files, config, on_progress)


def plan_segmenting(
    vram: str,
    network: NetworkConfig | None = None,
    *,
    size_HW: tuple[int, int] | None = None,
    device: str = "cuda",
    precision: str = "fp16",
) -> InferencePlan:
    """Find the fastest way to segment slices inside a budget; needs no card, and no data.

    `vram`: a size such as `512M` or `2G`; `network`: None for that of the shipped weights; `size_HW`: pixels of a
    slice, None for BraTS's 240 × 240, or for its whole volume if the network sees patches; `device`: `cpu` or `cuda`;
    `precision`: `fp32`, `fp16` or `bf16`.
    Raises LowmemError: nothing fits, and the message says what would; or arguments that cannot be used.
    """
    network = network or open_set(()).network
    _check_choices(device, precision)
    size = size_HW or usual_size(network)
    return plan_inference(network, size, parse_budget(vram, device), device, precision, brain_ZHW=BRAIN_SHAPE[::-1])


def plan_training(
    vram: str,
    network: NetworkConfig | None = None,
    *,
    batch: int = TrainConfig.batch,
    size_HW: tuple[int, int] | None = None,
    device: str = "cuda",
    precision: str = "fp16",
) -> TrainPlan:
    """Find the fastest way to take training steps of `batch` slices inside a budget; needs no card, and no data.

    `batch`: of a network that sees patches, crops of volumes; `network`: None for the U-Net that `train` builds by
    default. Otherwise as `plan_segmenting`.
    """
    network = network or TrainConfig.network
    _check_choices(device, precision)
    return plan_train(network, size_HW or usual_size(network), batch, parse_budget(vram, device), device, precision)


def score_label_map(
    predicted: AnyPath | npt.NDArray[Any] | Segmentation,
    reference: AnyPath | npt.NDArray[Any],
    *,
    labels: str = SegmentConfig.labels,
    reference_labels: str | None = None,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> PatientScores:
    """Score the label map of one patient: Dice, HD95, sensitivity and specificity of WT, TC and ET.

    `predicted`: a file, an array or a Segmentation; `reference`: a file, or an array where `predicted` is one too, of
    its shape [X, Y, Z] and axis order. `labels`: label convention of `predicted`, a key of
    `lowmem_brats.data.labels.CONVENTIONS`, which a Segmentation knows by itself; `reference_labels`: of `reference`,
    None for the same. `spacing_mm`: voxel size along X, Y, Z of arrays; files and Segmentations know theirs.
    Empty regions are scored as in BraTS (`evaluate.metrics.score_region`).
    Raises LowmemError: a file that cannot be read, different grids, or a label that the convention does not know.
    """
    if isinstance(predicted, np.ndarray) != isinstance(reference, np.ndarray):
        advice = "Pass result.label in place of a Segmentation, or the file in place of the array."
        raise InputError("score_label_map", "one array", "two arrays, or none", advice)
    labels = predicted.report.labels if isinstance(predicted, Segmentation) else labels
    first, second = (
        LabelledVolume(_volume_of(each, name, spacing_mm), convention_of(convention), _path_of(each, name))
        for each, name, convention in (
            (predicted, "predicted", labels),
            (reference, "reference", reference_labels or labels),
        )
    )
    return score_patient("case", first, second)


def measure_label_map(label_map: AnyPath | Segmentation, *, labels: str = SegmentConfig.labels) -> Measurements:
    """Measure a label map: its volumes, and the two diameters, place and side of each enhancing lesion.

    `label_map`: a file or a Segmentation. `labels`: label convention of a file, a key of
    `lowmem_brats.data.labels.CONVENTIONS`, which a Segmentation knows by itself, as it knows the brain's middle; a
    file does not, so the side of its lesions is `unknown`.
    Raises LowmemError: a file that cannot be read, or a label that the convention does not know.
    """
    if isinstance(label_map, Segmentation):
        return label_map.measurements
    return measure_file(case_id_of(Path(label_map)), Path(label_map), convention_of(labels))


def _volume_of(
    label_map: AnyPath | npt.NDArray[Any] | Segmentation, name: str, spacing_mm: tuple[float, float, float]
) -> Volume:
    if isinstance(label_map, Segmentation):
        grid = label_map.case.reference
        return Volume(label_map.label_XYZ, grid.affine, grid.header, grid.to_disk)
    if not isinstance(label_map, np.ndarray):
        return read_label(Path(label_map))
    if label_map.ndim != 3 or label_map.dtype.kind not in "iuf":
        found = f"a {label_map.ndim}-D array of {label_map.dtype}"
        raise InputError(name, found, "a 3-D array of whole numbers", "Pass a label map, not a mask.")
    return Volume(as_labels(label_map, name), np.diag([*spacing_mm, 1.0]), None, np.eye(3))


def _path_of(label_map: AnyPath | npt.NDArray[Any] | Segmentation, name: str) -> Path:
    return Path(label_map) if isinstance(label_map, str | os.PathLike) else Path(name)


def _check_choices(device: str, precision: str) -> None:
    for name, found, known in (("device", device, DEVICES), ("precision", precision, DTYPES)):
        if found not in known:
            raise InputError(name, repr(found), f"one of {', '.join(known)}", "Choose one of them.")


def _as_images(files: Mapping[str, object]) -> str:
    """How errors advise to name a file whose name is not understood."""
    loaded = ", ".join(f"{modality!r}: nibabel.load({str(file)!r})" for modality, file in files.items())
    return f"pass images in place of the folder, with {loaded} among them"


__all__ = [
    "LowmemError",
    "NetworkConfig",
    "SegmentConfig",
    "Segmentation",
    "measure_label_map",
    "plan_segmenting",
    "plan_training",
    "score_label_map",
    "segment_tumour",
]

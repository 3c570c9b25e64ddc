"""Prepare one study: lay the images on T1ce, find the brain, resample each image once, judge, write.

Axes: C modalities; X Y Z voxels of the case's grid, or of T1ce's own where it is said.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import MODALITIES, PrepareConfig
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.nifti import read_volume
from lowmem_brats.errors import InputError
from lowmem_brats.prepare import gate, itk
from lowmem_brats.prepare.brain_mask import Brain, find_brain, grown, overlap
from lowmem_brats.prepare.extra import check_installed
from lowmem_brats.prepare.lay import Anchor, dark_share, kept, lay_on
from lowmem_brats.prepare.register import Registration
from lowmem_brats.prepare.source import ANCHOR, Study
from lowmem_brats.prepare.study import find_study

OnStage = Callable[[str], None]
ADVICE = (
    "Look at the images and at what was taken for each (--t1, --t1ce, --t2, --flair). `lowmem-brats prepare` takes "
    "--brain-mask FILE where the mask is wrong, and --force to go on all the same and mark every output."
)


@dataclass
class Prepared:
    """A prepared case in memory."""

    study: Study
    t1ce: Volume
    """As it came from the scanner."""
    grid: itk.Grid
    brain: Brain
    """In T1ce's own voxels, as it was found."""
    mask_XYZ: npt.NDArray[np.bool_]
    """What is kept, in the case's grid."""
    head_XYZ: npt.NDArray[np.float32]
    """T1ce in the case's grid with its skull on, for the picture."""
    images_CXYZ: npt.NDArray[np.float32]
    """In the order of `config.MODALITIES`, 0 outside the mask; a missing one is 0."""
    registrations: dict[str, Registration]
    """Modality → how it was laid on T1ce; T1ce itself is not among them."""
    measures: dict[str, gate.Measures]
    overlap_t1: float | None = None
    """Dice of the brains found in T1ce and in T1."""
    problems: list[str] = field(default_factory=list)
    """Why the case was refused, or would have been without --force."""
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The modalities that are not there."""
        return [modality for modality in MODALITIES if modality not in self.study.sources]


def prepare_study(
    path: Path,
    explicit: Mapping[str, Path],
    allow_missing: Collection[str],
    config: PrepareConfig,
    on_study: Callable[[Study], None] = lambda study: None,
    on_stage: OnStage = lambda stage: None,
) -> Prepared:
    """Prepare a study, in memory; `on_study` is told what was found before the work begins, `on_stage` what is done.

    Raises InputError: the extra is not installed, images that cannot be used, and, without `config.force`, a case that
    fails a check.
    """
    check_installed()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work, itk.threads():
        with _timed(seconds, "find", on_stage):
            study = find_study(path, explicit, allow_missing, Path(work))
        on_study(study)
        with _timed(seconds, "read", on_stage):
            volumes = {modality: read_volume(source.image) for modality, source in study.sources.items()}
        prepared = _prepare(study, volumes, config, seconds, on_stage)
    if prepared.problems and not config.force:
        raise InputError(path, "; ".join(prepared.problems), "a case that passes every check", ADVICE)
    return prepared


def _prepare(
    study: Study, volumes: dict[str, Volume], config: PrepareConfig, seconds: dict[str, float], on_stage: OnStage
) -> Prepared:
    t1ce = volumes[ANCHOR]
    grid = itk.grid_around(t1ce)
    with _timed(seconds, "brain", on_stage):
        brain = find_brain(t1ce) if config.brain_mask is None else _given(Path(config.brain_mask), t1ce, study)
        kept_XYZ = grown(brain.mask_XYZ, t1ce) if brain.made_by == "deepbet" else brain.mask_XYZ
        mask_XYZ = itk.resample(itk.to_itk(kept_XYZ, t1ce.affine), grid) >= 0.5
    images_CXYZ = np.zeros((len(MODALITIES), *grid.shape), np.float32)
    fixed = itk.to_itk(t1ce.data, t1ce.affine)
    head_XYZ = itk.resample(fixed, grid, fine=True)
    anchor = Anchor(fixed, grid, mask_XYZ, kept(head_XYZ, mask_XYZ))
    images_CXYZ[MODALITIES.index(ANCHOR)] = anchor.image_XYZ
    prepared = Prepared(study, t1ce, grid, brain, mask_XYZ, head_XYZ, images_CXYZ, {}, {}, seconds=seconds)
    for modality, volume in volumes.items():
        if modality != ANCHOR:
            with _timed(seconds, modality, on_stage):
                laid = lay_on(modality, itk.to_itk(volume.data, volume.affine), anchor)
                images_CXYZ[MODALITIES.index(modality)] = laid.image_XYZ
                prepared.registrations[modality], prepared.measures[modality] = laid.registration, laid.measures
    if "t1" in volumes and brain.made_by != "given":
        with _timed(seconds, "check", on_stage):
            prepared.overlap_t1 = overlap_with_t1(prepared, volumes["t1"])
    _judge(prepared)
    return prepared


def overlap_with_t1(prepared: Prepared, t1: Volume) -> float:
    """Dice, in T1ce's own voxels, of the brain found in it and of the brain found in T1, laid on it."""
    t1ce = prepared.t1ce
    own = itk.Grid(t1ce.data.shape, t1ce.affine)
    try:
        brain_XYZ = find_brain(t1).mask_XYZ
    except InputError:
        return 0.0
    transform = prepared.registrations["t1"].transform
    laid_XYZ = itk.resample(itk.to_itk(brain_XYZ, t1.affine), own, transform) >= 0.5
    return overlap(laid_XYZ, prepared.brain.mask_XYZ)


def _given(path: Path, t1ce: Volume, study: Study) -> Brain:
    """The user's own mask. Raises InputError for one on another grid, or an empty one."""
    mask = read_volume(path)
    check_same_grid(mask, path, t1ce, study.sources[ANCHOR].image)
    if not mask.data.any():
        raise InputError(path, "a mask without a voxel of brain", "not 0 where brain is", "Check the file.")
    return Brain(mask.data != 0, "given")


def _judge(prepared: Prepared) -> None:
    """Fill in what is wrong and what the user should know."""
    brain = prepared.brain
    for modality, measures in prepared.measures.items():
        prepared.problems += gate.judge_modality(modality, measures)
        prepared.warnings += gate.remarks(modality, measures)
    for modality in prepared.study.sources:
        share = dark_share(prepared.images_CXYZ[MODALITIES.index(modality)])
        prepared.problems += gate.judge_signal(modality, share)
    prepared.problems += gate.judge_brain(brain.millilitres(prepared.t1ce), brain.pieces, prepared.overlap_t1)
    if brain.made_by == "skull-stripped before":
        prepared.warnings.append("T1ce is skull-stripped already: what is left of it is taken for the brain")
    if max(prepared.t1ce.spacing_mm) >= itk.THICK_MM:
        prepared.warnings.append(
            f"T1ce has slices {max(prepared.t1ce.spacing_mm):.1f} mm apart: they are kept as they are, and small "
            "enhancing parts may be missed; a T1ce of 1 mm is better"
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str, on_stage: OnStage) -> Iterator[None]:
    on_stage(stage)
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began

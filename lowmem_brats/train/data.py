"""The cases of a training: prepared on disk, split by patient, and checked, all before the first step.

An error that is found only at the end, such as a label map of another convention among the test cases, would cost a
whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.case_list import LabelledCase
from lowmem_brats.data.labels import CONVENTIONS, Region, groups_of, names_of
from lowmem_brats.data.slice_cache import CachedCase, build_cache, digest
from lowmem_brats.engine import parallel
from lowmem_brats.errors import InputError
from lowmem_brats.networks import stride_of
from lowmem_brats.train.dataset import Split, split_cases, training_rows
from lowmem_brats.train.report import TrainReport

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class TrainingData:
    """Cases by what they are used for, without those that cannot be read."""

    training: list[CachedCase]
    validation: list[CachedCase]
    test: list[LabelledCase]
    """To be segmented from their files."""
    patients: dict[str, str]
    """Case → patient, of all three."""
    checksums: dict[str, str]
    """Case → checksum of its files, of all three."""


def split_as(stored: TrainReport | None, cases: Sequence[LabelledCase], config: TrainConfig) -> Split:
    """The split of a training that is gone on with, or else a new one.

    Raises InputError where a case of the stored split is gone, or for too few patients.
    """
    if stored is None:
        return split_cases(cases, config.validation, config.test, config.fold, config.seed)
    by_id = {case.case_id: case for case in cases}
    parts = stored.training_cases, stored.validation_cases, stored.test_cases
    if gone := sorted({case_id for part in parts for case_id in part} - by_id.keys()):
        raise InputError("--resume", f"no {', '.join(gone)}", "the cases it began with", "Put them back.")
    return Split(*(tuple(by_id[case_id] for case_id in part) for part in parts))


def prepare_data(
    cases: Sequence[LabelledCase],
    stored: TrainReport | None,
    config: TrainConfig,
    cache: Path,
    shared: bool,
    on_progress: Callable[[int, int], None],
    note: Callable[[str], None],
) -> TrainingData:
    """Prepare all cases of the split, those held out for the test too, and check what the networks will find in them.

    `stored`: the report of the training to go on with; `cache`, `shared`: as `build_cache`. Cases that show the same
    images are taken for one patient. The first process writes what the others then find. Raises InputError where a part
    of the split is left without cases, or a network without slices to learn from.
    """
    split = split_as(stored, cases, config)
    files = [case for part in split.parts for case in part]
    if parallel.rank():
        parallel.wait()
    stride, convention = stride_of(config.network), CONVENTIONS[config.labels]
    cached, notes = build_cache(files, cache, stride, convention, on_progress, config.strict or bool(stored), shared)
    if not parallel.rank():
        parallel.wait()
    for text in [*notes, *(f"{case.case_id}: {warning}" for case in cached for warning in case.warnings)]:
        note(text)
    patients = {case.case_id: case.patient for case in files}
    for alike in copies(cached):
        if len({patients[case_id] for case_id in alike}) > 1:
            note(f"{', '.join(alike)} show the same images" + ("" if stored else ": they are taken for one patient"))
            patients |= dict.fromkeys(_of_one_patient(alike, patients), patients[alike[0]])
    if stored is None:
        split = split_as(None, [replace(case, patient=patients[case.case_id]) for case in files], config)
    else:
        _note_divided(split, patients, note)
    data = _data(split, cached, patients)
    check_regions(data.training, data.validation, config, note)
    return data


def copies(cached: Sequence[CachedCase]) -> list[list[str]]:
    """Groups of cases that share an image, voxel by voxel, as a case does that was copied to another name.

    Only cases whose brains fill the same slices are read and compared.
    """
    shapes: dict[object, list[CachedCase]] = {}
    for case in cached:
        shapes.setdefault((case.shape_ZCHW, case.brain_VN), []).append(case)
    owners: dict[tuple[int, str], list[str]] = {}
    for case in (case for group in shapes.values() if len(group) > 1 for case in group):
        slices_ZCHW = case.slices_ZCHW
        for channel in range(slices_ZCHW.shape[1]):
            image_ZHW = slices_ZCHW[:, channel]
            if image_ZHW.any():
                owners.setdefault((channel, digest(image_ZHW.tobytes())), []).append(case.case_id)
    return [list(group) for group in sorted({tuple(sorted(group)) for group in owners.values() if len(group) > 1})]


def _of_one_patient(alike: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    """All cases of the patients whom some cases show."""
    same = {patients[case_id] for case_id in alike}
    return [case_id for case_id, patient in patients.items() if patient in same]


def _note_divided(split: Split, patients: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Note patients that are in two parts of a split which is kept because its training goes on."""
    by_part = [{patients[case.case_id] for case in part} for part in split.parts]
    for (first, some), (second, others) in combinations(zip(PARTS, by_part, strict=True), 2):
        if both := ", ".join(sorted(some & others)):
            found = f"{both}: in the {first} and the {second} part since the training began"
            note(f"{found}, so the scores are too good; true ones need a training begun anew")


def _data(split: Split, cached: Sequence[CachedCase], patients: Mapping[str, str]) -> TrainingData:
    """The parts of the split without cases that could not be read."""
    by_id = {case.case_id: case for case in cached}
    parts = [[case for case in part if case.case_id in by_id] for part in split.parts]
    for name, part, left in zip(PARTS, split.parts, parts, strict=True):
        if part and not left:
            found = f"none of {len(part)} cases for the {name} part could be used"
            raise InputError("training data", found, "sound cases", "Repair what the warnings name, or move it away.")
    training, validation, test = parts
    used = [case.case_id for part in parts for case in part]
    return TrainingData(
        [by_id[case.case_id] for case in training],
        [by_id[case.case_id] for case in validation],
        test,
        {case_id: patients[case_id] for case_id in used},
        {case_id: by_id[case_id].checksum for case_id in used},
    )


def check_regions(
    training: Sequence[CachedCase], validation: Sequence[CachedCase], config: TrainConfig, note: Callable[[str], None]
) -> None:
    """Note which networks have nothing to find, or nobody to be validated on. Raises InputError for no slice at all."""
    for regions in groups_of(config.regions, config.network.outputs):
        training_rows(training, regions[0], config.network.views)
        seen = [case for case in validation if holds_slices(case, regions[0], config.network.views)]
        if validation and not seen:
            name = names_of(regions).upper()
            note(f"no validation patient has a slice for {name}: it is trained to the end, and its last epoch is kept")
        for region in regions:
            if not any(_has(case, region) for case in training):
                note(f"no training patient has any {region.name}: its network can only learn to find none")
            if seen and not any(_has(case, region) for case in seen):
                note(f"no validation patient has any {region.name}: its Dice only tells whether none is found")


def holds_slices(case: CachedCase, region: Region, views: int) -> bool:
    """Whether a region's network has any slice to look at in a case."""
    return any(active_N.any() for active_N in case.active_VN(region, views))


def _has(case: CachedCase, region: Region) -> bool:
    return any(depth >= region.depth for depth in case.depth_VN[0])

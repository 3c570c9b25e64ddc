"""Score a region lesion by lesion, as the official BraTS evaluation does for gliomas; the only door to panoptica.

A lesion is a connected piece of a region (26-connected). Lesions of the prediction and of the reference are matched one
to one, so that the sum of their Dice is largest; lesions without any overlap are never matched. panoptica is optional:
`pip install 'lowmem-brats[evaluate]'`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowmem_brats.data.labels import Mask, Region
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate.metrics import HD95_ONE_EMPTY_MM

COLUMNS = {
    "matched": "lesions_matched",
    "missed": "lesions_missed",
    "added": "lesions_added",
    "f1": "lesion_f1",
    "dice": "lesion_dice",
    "hd95_mm": "lesion_hd95_mm",
    "nsd": "lesion_nsd",
}
"""Field of LesionScore → column of a CSV file."""
LEAST_DICE = 1e-6
"""Two lesions are matched from this Dice on, as in the official settings."""


@dataclass(frozen=True)
class LesionScore:
    """The lesions of one region, for one patient or averaged over patients.

    Dice, HD95 and surface distance are means over the matched lesions. Where there are lesions but none is matched,
    Dice and surface distance are 0 and HD95 is HD95_ONE_EMPTY_MM; where there are none at all they are None.
    """

    matched: float
    """Lesions of the reference that were found."""
    missed: float
    """Lesions of the reference that were not found."""
    added: float
    """Lesions of the prediction that are none of the reference."""
    f1: float | None
    """2 · matched / (2 · matched + missed + added)."""
    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    """Normalised surface distance: the share of the two surfaces that lies within the smallest voxel edge of the other,
    each surface counting the same."""


def check_installed() -> None:
    """Raise InputError where panoptica is not installed."""
    try:
        import panoptica  # noqa: F401
    except ImportError as error:
        advice = "Install it: pip install 'lowmem-brats[evaluate]'."
        raise InputError("--lesion-wise", f"no panoptica ({error})", "the package panoptica", advice) from error


def score_lesions(
    predicted: Mapping[Region, Mask], reference: Mapping[Region, Mask], spacing_mm: tuple[float, float, float]
) -> dict[Region, LesionScore]:
    """Score the lesions of each region of one patient.

    `predicted`, `reference`: nested masks [X, Y, Z] of one shape; `spacing_mm`: voxel edge along X, Y, Z. Raises
    InputError where panoptica is not installed.
    Source: the settings for gliomas of the official package of the BraTS challenges, `brats-evaluation` 0.0.10.
    """
    check_installed()
    evaluator = _evaluator()
    found = {}
    for region in Region:
        pair = (masks[region].view(np.uint8) for masks in (predicted, reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of 0.5 mm, its default, which a voxel may well have
            (result,) = evaluator.evaluate(*pair, voxelspacing=spacing_mm).values()
        found[region] = _score(result.to_dict())
    return found


def mean_score(scores: list[LesionScore]) -> LesionScore:
    """The mean of each measure over the patients who have it."""

    def mean(name: str) -> float | None:
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        return math.fsum(values) / len(values) if values else None

    return LesionScore(**{name: mean(name) for name in COLUMNS})  # type: ignore[arg-type]


def _evaluator() -> Any:
    """panoptica's evaluator with the official settings."""
    import panoptica as p
    from panoptica.utils.edge_case_handling import EdgeCaseHandler, EdgeCaseResult, MetricZeroTPEdgeCaseHandling

    p.disable_citation_reminder()
    metrics = [p.Metric.DSC, p.Metric.NSD, p.Metric.HD95]
    worst = {p.Metric.HD95: EdgeCaseResult.INF}
    none_matched = {
        metric: MetricZeroTPEdgeCaseHandling(
            default_result=worst.get(metric, EdgeCaseResult.ZERO), no_instances_result=EdgeCaseResult.NAN
        )
        for metric in metrics
    }
    return p.Panoptica_Evaluator(
        expected_input=p.InputType.SEMANTIC,
        instance_approximator=p.ConnectedComponentsInstanceApproximator(),
        instance_matcher=p.MaxBipartiteMatching(matching_metric=p.Metric.DSC, matching_threshold=LEAST_DICE),
        edge_case_handler=EdgeCaseHandler(none_matched),
        instance_metrics=metrics,
        global_metrics=[],
    )


def _score(found: Mapping[str, float]) -> LesionScore:
    """panoptica's numbers of one region."""

    def number(name: str) -> float | None:
        value = float(found.get(name, math.nan))
        return None if math.isnan(value) else HD95_ONE_EMPTY_MM if math.isinf(value) else value

    matched, missed, added = found["tp"], found["fn"], found["fp"]
    lesions = 2 * matched + missed + added
    return LesionScore(
        matched=float(matched),
        missed=float(missed),
        added=float(added),
        f1=2 * matched / lesions if lesions else None,
        dice=number("sq_dsc"),
        hd95_mm=number("sq_hd95"),
        nsd=number("sq_nsd"),
    )

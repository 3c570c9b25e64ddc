"""How much a tumour changed between two label maps of one patient."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from lowmem_brats.measure.label_map import Measurements

SMALLER_PERCENT, LARGER_PERCENT = -50.0, 25.0
"""RANO's thresholds for the sum of products: of a partial response, and of progression."""
SUM_OF_PRODUCTS = "sum of products"


@dataclass(frozen=True)
class Change:
    """One quantity, before and after."""

    before: float
    after: float
    percent: float | None
    """Of the value before; None where that is 0."""


def changes(before: Measurements, after: Measurements) -> dict[str, Change]:
    """Compare two label maps of one patient.

    Returns the change of each of the volumes in mL, under its name, and of the sum of products in mm², under
    SUM_OF_PRODUCTS.
    """
    earlier, later = ({**each.volumes_ml, SUM_OF_PRODUCTS: each.sum_of_products_mm2} for each in (before, after))
    return {name: _change(value, later[name]) for name, value in earlier.items()}


def threshold_reached(change: Change) -> str:
    """Say in words which of RANO's thresholds a change of the sum of products reaches; arithmetic, no diagnosis."""
    if change.percent is None:
        return "nothing measurable before, so there is no percentage" if change.after else "nothing measurable"
    if change.percent <= SMALLER_PERCENT:
        return f"at or below {SMALLER_PERCENT:+.0f} %, RANO's threshold of a partial response"
    if change.percent >= LARGER_PERCENT:
        return f"at or above {LARGER_PERCENT:+.0f} %, RANO's threshold of progression"
    return f"between RANO's thresholds, {SMALLER_PERCENT:+.0f} % and {LARGER_PERCENT:+.0f} %"


def to_json(before: Measurements, after: Measurements) -> str:
    """The comparison as JSON: `{"before", "after", "changes", "threshold"}`; the first two as `label_map.to_json`."""
    found = changes(before, after)
    content = {
        "before": asdict(before),
        "after": asdict(after),
        "changes": {name: asdict(change) for name, change in found.items()},
        "threshold": threshold_reached(found[SUM_OF_PRODUCTS]),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _change(before: float, after: float) -> Change:
    return Change(before, after, 100 * (after - before) / before if before else None)

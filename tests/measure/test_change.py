"""The change of two label maps in percent, and RANO's thresholds at their exact values."""

from __future__ import annotations

import json

import pytest

from lowmem_brats.measure.change import SUM_OF_PRODUCTS, Change, changes, threshold_reached, to_json
from lowmem_brats.measure.label_map import Measurements


def measured(product_mm2: float, whole_ml: float = 10.0) -> Measurements:
    return Measurements("A", "A.nii", {"wt": whole_ml, "oedema": 0.0}, product_mm2, [])


def test_changes_by_hand() -> None:
    found = changes(measured(400, 10), measured(100, 12))
    assert found == {
        "wt": Change(10, 12, pytest.approx(20)),
        "oedema": Change(0, 0, None),
        SUM_OF_PRODUCTS: Change(400, 100, pytest.approx(-75)),
    }


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (400, 200, "at or below -50 %, RANO's threshold of a partial response"),
        (400, 201, "between RANO's thresholds, -50 % and +25 %"),
        (400, 499, "between RANO's thresholds, -50 % and +25 %"),
        (400, 500, "at or above +25 %, RANO's threshold of progression"),
        (400, 0, "at or below -50 %, RANO's threshold of a partial response"),
        (0, 400, "nothing measurable before, so there is no percentage"),
        (0, 0, "nothing measurable"),
    ],
)
def test_thresholds(before: float, after: float, text: str) -> None:
    assert threshold_reached(changes(measured(before), measured(after))[SUM_OF_PRODUCTS]) == text


def test_json_holds_both_and_the_changes() -> None:
    content = json.loads(to_json(measured(400), measured(100)))
    assert content["before"]["sum_of_products_mm2"] == 400
    assert content["changes"][SUM_OF_PRODUCTS] == {"before": 400, "after": 100, "percent": -75}
    assert content["threshold"].startswith("at or below -50 %")

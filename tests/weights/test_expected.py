"""What a set states of its own mistakes is read, checked and worked out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_weights import write_tiny_set

from lowmem_brats.data.labels import Region
from lowmem_brats.errors import WeightsError
from lowmem_brats.weights.expected import EXPECTED_DICE, DiceModel, log_odds, read_models
from lowmem_brats.weights.index import INDEX
from lowmem_brats.weights.store import open_set

FLAT = {"agreement": 0.0, "volume": 0.0, "share": 0.0}
WIDE = {key: [-9.0, 9.0] for key in FLAT}


def stored(**changes: Any) -> dict[str, Any]:
    row = {"intercept": 0.0, "slopes": FLAT | {"agreement": 1.0}, "interval": [-1.0, 2.0], "seen": WIDE}
    return {"tc": row | changes}


def test_the_estimate_is_a_line_of_log_odds() -> None:
    model = DiceModel(0.5, {"agreement": 2.0, "volume": -1.0}, (-1.0, 0.5), {"agreement": (0, 1), "volume": (0, 5)})
    estimate = model.expect({"agreement": 1.5, "volume": 1.0})
    odds = 0.5 + 2 * 1.5 - 1
    assert estimate.dice == pytest.approx(1 / (1 + math.exp(-odds)))
    assert estimate.low == pytest.approx(1 / (1 + math.exp(-(odds - 1))))
    assert estimate.high == pytest.approx(1 / (1 + math.exp(-(odds + 0.5))))
    assert estimate.strange == ("agreement",)


@pytest.mark.parametrize(("dice", "odds"), [(0.5, 0), (0.75, math.log(3)), (1.0, math.log(199)), (0.0, -math.log(199))])
def test_log_odds_of_none_and_all_are_finite(dice: float, odds: float) -> None:
    assert log_odds(dice) == pytest.approx(odds)


def put(folder: Path, models: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["sets"]["tiny"][EXPECTED_DICE] = models
    (folder / INDEX).write_text(json.dumps(index))


def test_a_set_carries_its_models(tmp_path: Path) -> None:
    folder = write_tiny_set(tmp_path / "set")
    assert open_set(str(folder)).expected == {}
    put(folder, stored())
    assert open_set(str(folder)).expected == read_models(stored())
    assert list(read_models(stored())) == [Region.TC]


@pytest.mark.parametrize(
    "models",
    [
        [],
        {"xx": stored()["tc"]},
        stored(intercept="1"),
        stored(intercept=float("nan")),
        stored(slopes={"agreement": 1.0}),
        stored(interval=[1.0]),
        stored(interval=[2.0, 1.0]),
        stored(seen=FLAT),
    ],
)
def test_models_that_make_no_sense_damage_the_index(tmp_path: Path, models: Any) -> None:
    folder = write_tiny_set(tmp_path / "set")
    put(folder, models)
    with pytest.raises(WeightsError, match="missing or damaged"):
        open_set(str(folder))

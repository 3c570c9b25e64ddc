"""Fit what a set of weights knows of its own mistakes: the expected Dice of each region, with an interval.

    python benchmarks/fit_expected.py DATA FOLDS WORK OUT.json [--into SET] [--picture OUT.png]

DATA: a list of labelled cases with a column `fold`; FOLDS: a folder with a set for each fold, `1`, `2` and so on, that
was not trained on its patients. Each patient is segmented by the set of its fold. The model is fitted on all folds but
one and judged on that one, in turn; what is stored is fitted on all. WORK keeps the features, so that a second run only
fits; --into: a folder of weights into whose index the models are written; --picture: a point for each patient, expected
against true Dice.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import SegmentConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.data.labels import CONVENTIONS, Region, split_regions
from lowmem_brats.data.nifti import read_label
from lowmem_brats.evaluate.metrics import mask_dice
from lowmem_brats.files import replace_when_complete
from lowmem_brats.segment import case as segment
from lowmem_brats.segment.expected import LOW, features_of
from lowmem_brats.weights.expected import EXPECTED_DICE, FEATURES, DiceModel, log_odds, read_models
from lowmem_brats.weights.index import INDEX, read_index

RIDGE = 1.0
"""Patients' worth of pull of the slopes towards 0."""
Row = dict[str, Any]


def fit(rows: Sequence[Row]) -> dict[str, Any]:
    """The model of one region, as an index holds it. A row: features and `dice` of a patient where it was found."""
    x_NF = np.array([[row[name] for name in FEATURES] for row in rows])
    y_N = np.array([log_odds(row["dice"]) for row in rows])
    centre_F, scale_F = x_NF.mean(axis=0), x_NF.std(axis=0) + 1e-9
    z_NF = (x_NF - centre_F) / scale_F

    def solve(z: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(np.linalg.solve(z.T @ z + RIDGE * np.eye(len(FEATURES)), z.T @ (y - y.mean())))

    slopes_F = solve(z_NF, y_N)
    # The residual of each patient by a model that has not seen it.
    residuals = []
    for n in range(len(rows)):
        others = np.arange(len(rows)) != n
        residuals.append(y_N[n] - y_N[others].mean() - z_NF[n] @ solve(z_NF[others], y_N[others]))
    low, high = np.quantile(residuals, [0.1, 0.9])
    return {
        "intercept": float(y_N.mean() - (slopes_F / scale_F) @ centre_F),
        "slopes": dict(zip(FEATURES, (slopes_F / scale_F).tolist(), strict=True)),
        "interval": [float(low), float(high)],
        "seen": {name: [float(x_NF[:, i].min()), float(x_NF[:, i].max())] for i, name in enumerate(FEATURES)},
    }


def judge(rows: Sequence[Row]) -> dict[str, Any]:
    """How well folds that a model has not seen are told: beside always saying the mean of the other folds."""
    told, plain, truth, inside = [], [], [], []
    for fold in sorted({row["fold"] for row in rows}):
        others = [row for row in rows if row["fold"] != fold]
        model: DiceModel = read_models({"wt": fit(others)})[Region.WT]
        mean = float(np.mean([row["dice"] for row in others]))
        for row in (row for row in rows if row["fold"] == fold):
            estimate = model.expect(row)
            told.append(estimate.dice)
            plain.append(mean)
            truth.append(row["dice"])
            inside.append(estimate.low <= row["dice"] <= estimate.high)
    y, t = np.array(truth), np.array(told)
    bad = y < LOW
    pairs = (t[bad][:, None] < t[~bad]) + 0.5 * (t[bad][:, None] == t[~bad])
    rank = [np.argsort(np.argsort(each)) for each in (y, t)]
    return {
        "patients": len(rows),
        "spearman": round(float(np.corrcoef(*rank)[0, 1]), 3),
        "mean_error": round(float(np.abs(y - t).mean()), 4),
        "mean_error_of_the_mean": round(float(np.abs(y - np.array(plain)).mean()), 4),
        "coverage": round(float(np.mean(inside)), 3),
        "auc_below_0.7": round(float(pairs.mean()), 3) if pairs.size else None,
        "told_and_true": [[round(float(a), 4), round(float(b), 4)] for a, b in zip(t, y, strict=True)],
    }


def measure(folder: Path, weights: Path, fold: str) -> list[Row]:
    """Segment a case, and tell the features and the true Dice of each region that was found."""
    files, kept = find_case(folder), dict[str, Any]()
    real = segment.drop_doubtful

    def keep(logit_ZHW: Any, least: float) -> Any:
        masks, gone = real(logit_ZHW, least)
        kept.update(logits=logit_ZHW, masks=masks)
        return masks, gone

    segment.drop_doubtful = keep
    try:
        result = segment.segment_files(files, SegmentConfig(weights=str(weights), device="cpu"))
    finally:
        segment.drop_doubtful = real
    views, case = segment.open_set(str(weights)).network.views, result.case
    convention = CONVENTIONS["brats2020"]
    truths = split_regions(read_label(files.labels[0]).data, convention, files.labels[0])
    found = split_regions(result.label_XYZ, convention, files.folder)
    mask_ZHW, parent, rows = kept["masks"][Region.WT], int(case.brain_XYZ.sum()), list[Row]()
    for region in Region:
        mask_ZHW = mask_ZHW & kept["masks"][region]
        if mask_ZHW.any():
            logit_ZHW = kept["logits"][region] / np.float32(views)
            features = features_of(logit_ZHW, mask_ZHW, parent, float(np.prod(case.spacing_mm)))
            dice = mask_dice(found[region], truths[region])
            rows.append({"case": files.case_id, "fold": fold, "region": region.value, "dice": dice, **features})
        parent = int(mask_ZHW.sum())
    return rows


def draw(judged: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw a square for each region: expected Dice to the right, true Dice upwards, the diagonal where both agree."""
    side, gap = 260, 50
    image = Image.new("RGB", (gap + len(judged) * (side + gap), side + 2 * gap), "white")
    pen = ImageDraw.Draw(image)
    for number, (name, row) in enumerate(judged.items()):
        left, top = gap + number * (side + gap), gap
        pen.rectangle((left, top, left + side, top + side), outline="black")
        pen.line((left, top + side, left + side, top), fill="#95a5a6")
        for tenth in range(0, 11, 2):
            at = side * tenth // 10
            pen.text((left + at - 8, top + side + 6), f"{tenth / 10:.1f}", "black")
            pen.text((left - 24, top + side - at - 6), f"{tenth / 10:.1f}", "black")
        pen.text((left, top - 34), f"{name.upper()}: {row['patients']} patients", "black")
        pen.text((left, top - 18), "to the right: expected Dice; upwards: true Dice", "black")
        for told, true in row["told_and_true"]:
            x, y = left + side * told, top + side * (1 - true)
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline="#1f4e79", fill="#5b9bd5")
    image.save(path)


def main() -> None:
    """Measure, judge, fit, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "folds", "work", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.into:
        read_index(options.into / INDEX)  # now, and not when all is measured
    rows = list[Row]()
    for entry in csv.DictReader(options.data.open()):
        stored = options.work / f"{Path(entry['case']).name}.json"
        if not stored.exists():
            found = measure(options.data.parent / entry["case"], options.folds / entry["fold"], entry["fold"])
            stored.write_text(json.dumps(found))
        rows += json.loads(stored.read_text())
    of_region = {region.value: [row for row in rows if row["region"] == region.value] for region in Region}
    judged = {name: judge(each) for name, each in of_region.items()}
    models = {name: fit(each) for name, each in of_region.items()}
    for name, row in judged.items():
        print(name, {key: value for key, value in row.items() if key != "told_and_true"})
    if options.picture:
        draw(judged, options.picture)
    options.out.write_text(json.dumps(conditions("cpu") | {"judged": judged, "models": models}, indent=2) + "\n")
    if options.into:
        index = json.loads((options.into / INDEX).read_text())
        for name in [index["default"]] if isinstance(index["default"], str) else index["default"]:
            index["sets"][name][EXPECTED_DICE] = models
        with replace_when_complete(options.into / INDEX) as partial:
            partial.write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Lesion-wise scores of pairs that were scored by hand, and against the official package where that is installed."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from lowmem_brats.cli import main
from lowmem_brats.data.labels import CONVENTIONS, Region, split_regions
from lowmem_brats.data.nifti import write_volume
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate import lesion_wise
from lowmem_brats.evaluate.lesion_wise import LesionScore, mean_score, score_lesions
from lowmem_brats.evaluate.pairs import PatientScores, evaluate_pairs, summarise, to_csv, to_json

BRATS2023 = CONVENTIONS["brats2023"]
NOBODY = LesionScore(0, 0, 0, None, None, None, None)
UNIT_MM = (1.0, 1.0, 1.0)

Label = npt.NDArray[np.uint8]


@pytest.fixture
def panoptica() -> None:
    pytest.importorskip("panoptica", reason="needs panoptica: pip install '.[evaluate]'")


def cubes(*places: tuple[int, int], label: int = 3) -> Label:
    """A label map of brats2023 with cubes on its diagonal, each from the first to before the second voxel."""
    found = np.zeros((40, 40, 40), np.uint8)
    for first, last in places:
        found[first:last, first:last, first:last] = label
    return found


def scored(predicted: Label, reference: Label, spacing_mm: tuple[float, float, float] = UNIT_MM) -> LesionScore:
    masks = (split_regions(label, BRATS2023, "label map") for label in (predicted, reference))
    return score_lesions(*masks, spacing_mm)[Region.ET]


@pytest.mark.usefixtures("panoptica")
@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        ((), (), NOBODY),
        (((3, 9),), (), LesionScore(0, 0, 1, 0, 0, 373.13, 0)),
        ((), ((3, 9),), LesionScore(0, 1, 0, 0, 0, 373.13, 0)),
        (((3, 9),), ((20, 30),), LesionScore(0, 1, 1, 0, 0, 373.13, 0)),
        (((3, 9),), ((3, 9),), LesionScore(1, 0, 0, 1, 1, 0, 1)),
        (((3, 9),), ((3, 9), (20, 30)), LesionScore(1, 1, 0, 2 / 3, 1, 0, 1)),
        (((3, 9), (20, 30)), ((3, 9),), LesionScore(1, 0, 1, 2 / 3, 1, 0, 1)),
    ],
)
def test_lesions_that_are_found_or_not(
    predicted: tuple[tuple[int, int], ...], reference: tuple[tuple[int, int], ...], expected: LesionScore
) -> None:
    assert scored(cubes(*predicted), cubes(*reference)) == expected


@pytest.mark.usefixtures("panoptica")
def test_scores_of_matched_lesions_by_hand() -> None:
    """A cube of 4³ found as one of 4 × 4 × 6, and one of 4³ found exactly: means of two lesions.

    The longer one has the surface of the cube, 56 voxels less the 4 inner ones of one face, and 12 + 16 more. Its last
    layer is 2 mm away from the cube, the one before 1 mm, and the cube's last layer's 4 inner voxels are 1 mm away.
    """
    reference, predicted = cubes((4, 8), (20, 24)), cubes((4, 8), (20, 24))
    predicted[4:8, 4:8, 8:10] = 3
    found = scored(predicted, reference)
    assert (found.matched, found.missed, found.added, found.f1) == (2, 0, 0, 1)
    assert found.dice == pytest.approx((2 * 64 / (64 + 96) + 1) / 2)
    assert found.hd95_mm == pytest.approx((2 + 0) / 2)
    surface = 96 - 2 * 2 * 4
    assert found.nsd == pytest.approx(((1 + (surface - 16) / surface) / 2 + 1) / 2)


@pytest.mark.usefixtures("panoptica")
def test_one_lesion_is_matched_by_one() -> None:
    """A reference that was found in two parts: the larger part is matched, the other one is added."""
    reference, predicted = cubes((5, 15)), cubes((5, 15))
    predicted[8] = 0  # 3 and 6 layers of 10 × 10
    found = scored(predicted, reference)
    assert (found.matched, found.missed, found.added) == (1, 0, 1)
    assert found.dice == pytest.approx(2 * 600 / 1600)


@pytest.mark.usefixtures("panoptica")
def test_voxels_have_a_size() -> None:
    reference, predicted = cubes((4, 8)), cubes((4, 8))
    predicted[4:8, 4:8, 8] = 3
    assert scored(predicted, reference, (1.0, 1.0, 3.0)).hd95_mm == pytest.approx(3)
    assert scored(predicted, reference, (0.5, 0.5, 0.5)).hd95_mm == pytest.approx(0.5)


def test_means_are_over_the_patients_who_have_lesions() -> None:
    other = LesionScore(2, 1, 0, 0.8, 0.5, 4.0, 0.25)
    assert mean_score([NOBODY, other]) == LesionScore(1, 0.5, 0, 0.8, 0.5, 4.0, 0.25)
    assert mean_score([NOBODY]) == NOBODY


def test_scores_of_lesions_are_written_out(tmp_path: Path) -> None:
    write_volume(cubes((3, 9)), np.eye(4), tmp_path / "A.nii.gz")
    (plain,) = evaluate_pairs([("A", tmp_path / "A.nii.gz", tmp_path / "A.nii.gz")], BRATS2023, BRATS2023)
    lesions = {Region.WT: LesionScore(1, 2, 0, 0.5, 0.75, 3.0, 0.9), Region.TC: NOBODY, Region.ET: NOBODY}
    scores = [PatientScores("A", plain.regions, (), lesions)]
    rows = list(csv.DictReader(io.StringIO(to_csv(scores, summarise(scores)))))
    assert [row["lesion_dice"] for row in rows] == ["0.75", "", "", "0.75", "", "", "", "", ""]
    assert (rows[0]["lesions_missed"], rows[0]["lesion_nsd"], rows[0]["dice"]) == ("2", "0.9", "1.0")
    content = json.loads(to_json(scores, summarise(scores)))
    assert content["patients"][0]["lesions"]["wt"]["hd95_mm"] == content["summary"]["lesions"]["wt"]["hd95_mm"] == 3
    assert "lesion" not in to_csv([plain], summarise([plain]))
    assert "lesions" not in to_json([plain], summarise([plain]))


@pytest.mark.usefixtures("panoptica")
def test_the_command_scores_lesions(tmp_path: Path) -> None:
    write_volume(cubes((3, 9)), np.eye(4), tmp_path / "p.nii.gz")
    write_volume(cubes((3, 9), (20, 30)), np.eye(4), tmp_path / "r.nii.gz")
    words = ["evaluate", str(tmp_path / "p.nii.gz"), str(tmp_path / "r.nii.gz"), "--labels", "brats2023"]
    result = CliRunner().invoke(main, [*words, "--lesion-wise"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "r ET 1 1 0 0.667 1.000 0.0 1.000" in [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "panoptica" not in result.stdout
    assert "matched" not in CliRunner().invoke(main, words).stdout


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "panoptica", None)
    with pytest.raises(InputError, match=r"--lesion-wise: no panoptica .*pip install 'lowmem-brats\[evaluate\]'"):
        lesion_wise.check_installed()


def random_pair(seed: int) -> tuple[Label, Label]:
    """A reference of blobs and a prediction that moved some of them, lost one and added one."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((48, 48, 32)), 2.5)
    noise = ndimage.gaussian_filter(rng.standard_normal(smooth.shape), 2.0)
    levels = np.quantile(smooth, (0.90, 0.94, 0.97))

    def labels(field: npt.NDArray[np.float64]) -> Label:
        return np.array([0, 2, 1, 3], np.uint8)[np.digitize(field, levels)]

    return labels(smooth + noise * smooth.std() / noise.std() * 0.4), labels(smooth)


@pytest.mark.usefixtures("panoptica")
@pytest.mark.filterwarnings("ignore:The threshold is set to 0.5")
@pytest.mark.parametrize("seed", range(10))
def test_the_official_package_gives_the_same(tmp_path: Path, seed: int) -> None:
    """Ten pairs, scored by `brats-evaluation` with its settings for gliomas, from files to its own numbers."""
    official = pytest.importorskip("brats_evaluation.evaluation", reason="needs brats-evaluation")
    from panoptica import Panoptica_Evaluator

    predicted, reference = random_pair(seed)
    for name, label in (("p", predicted), ("r", reference)):
        write_volume(label, np.diag([-1.0, -1, 1, 1]), tmp_path / f"{name}.nii.gz")
    settings = Path(official.__file__).parent / "configs" / "config_gli.yaml"
    evaluator = Panoptica_Evaluator.load_from_config(str(settings))
    theirs = official.evaluate_single_exam(str(tmp_path / "p.nii.gz"), str(tmp_path / "r.nii.gz"), "A", evaluator)
    pairs = [("A", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")]
    (ours,) = evaluate_pairs(pairs, BRATS2023, BRATS2023, lesion_wise=True)
    for region, score in ours.lesions.items():
        found = theirs[region.value]
        assert (score.matched, score.missed, score.added) == (found["tp"], found["fn"], found["fp"])
        assert score.matched > 1
        expected = [found[name] for name in ("rq", "sq_dsc", "sq_hd95", "sq_nsd")]
        assert [score.f1, score.dice, score.hd95_mm, score.nsd] == pytest.approx(expected)
        assert ours.regions[region].dice == pytest.approx(found["global_bin_dsc"])
        assert ours.regions[region].hd95_mm == pytest.approx(found["global_bin_hd95"])

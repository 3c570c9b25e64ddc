"""The commands as a user meets them: results, flags, exit codes, nothing left behind."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_weights import SMALL_SHAPE

from lowmem_brats import __version__
from lowmem_brats.bench import Row
from lowmem_brats.cli import main
from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.weights.store import open_set

COMMANDS = sorted(main.commands)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def fails(*arguments: object, code: int = 2) -> str:
    """Run, expect a clear error with this exit code and no traceback, and return its text."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def case(tmp_path: Path, pristine: Path) -> Path:
    """A case folder without a label map, to be spoilt at will."""
    shutil.copytree(pristine, tmp_path / "case", ignore=shutil.ignore_patterns("*_seg*"))
    return tmp_path / "case"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert len(main.commands[name].help or "") > 40
    assert not [p.name for p in main.commands[name].params if isinstance(p, click.Option) and not p.help]


def test_the_exit_codes_of_segment_are_documented() -> None:
    output = run("segment", "--help").output
    assert re.findall(r"^    (\d+)  ", output, re.MULTILINE) == ["0", "1", "2", "3", "143"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_that_nobody_foresaw_is_told_without_a_traceback(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ctx: click.Context) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(main.commands[command], "invoke", fail)
    needed = [p for p in main.commands[command].params if p.required]
    arguments = [word for p in needed for word in ([p.opts[0], "x"] if isinstance(p, click.Option) else ["x"])]
    output = fails(command, *(["memory"] if command == "bench" else arguments), code=1)
    assert output.startswith(f"Error: lowmem-brats {command}: unexpected error, ZeroDivisionError: division by zero")
    assert f"(at {Path(__file__).name}:" in output


def test_version() -> None:
    assert __version__ in run("--version").output


def test_segment_shows_and_writes_everything(case: Path, tiny: Path, tmp_path: Path) -> None:
    result = run("segment", case, "--weights", tiny, "--report", tmp_path / "run.json")
    assert result.exit_code == 0, result.output
    for text in ("oedema", "mL", "peak memory", "MiB", "seconds", "WT ", "skipped", "phantom_000_seg.nii.gz"):
        assert text in result.output
    assert nibabel.load(case / "phantom_000_seg.nii.gz").shape == SMALL_SHAPE
    assert (case / "phantom_000_preview.png").read_bytes().startswith(b"\x89PNG")
    (report,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert {"plan", "versions", "seconds", "slices", "warnings", "peak_bytes"} <= report.keys()
    assert not [p for p in case.iterdir() if p.name.startswith(".")]


def test_a_folder_for_the_results_is_made(case: Path, tiny: Path, tmp_path: Path) -> None:
    assert run("segment", case, "--weights", tiny, "-o", tmp_path / "a" / "b[1]").exit_code == 0
    assert (tmp_path / "a" / "b[1]" / "phantom_000_seg.nii.gz").exists()


def test_an_input_or_another_output_is_never_replaced(case: Path, tiny: Path, tmp_path: Path) -> None:
    t1 = case / "phantom_000_t1.nii.gz"
    before = t1.read_bytes()
    arguments = ("segment", case, "--weights", tiny, "--overwrite")
    assert "is an input of the same command" in fails(*arguments, "-o", t1)
    assert "is the name of an image" in fails(*arguments, "-o", tmp_path / "x.nii", "--report", t1)
    preview = case / "phantom_000_preview.png"
    assert "is another output of the same command" in fails(*arguments, "--report", preview)
    image = shutil.copy(t1, tmp_path / "t1.image")
    assert "is an input of the same command" in fails(*arguments, "--t1", image, "--report", image)
    assert t1.read_bytes() == before
    twin = shutil.copytree(case, tmp_path / "twin")
    output = fails("segment", case, twin, "--weights", tiny, "-o", tmp_path / "out", "--overwrite", code=3)
    assert "is another output of the same command" in output
    same = tmp_path / "s.csv"
    seg = tmp_path / "out" / "phantom_000_seg.nii.gz"
    assert "is another output" in fails("evaluate", seg, seg, "--csv", same, "--json", same)
    assert "is an input" in fails("evaluate", seg, seg, "--csv", seg, "--overwrite")


def test_brackets_in_a_path_are_shown_as_they_are(case: Path, tiny: Path) -> None:
    bracketed = case.rename(case.with_name("case[bold]"))
    assert "case[bold]/phantom_000_seg.nii.gz" in run("segment", bracketed, "--weights", tiny).output


def test_segment_quiet_says_nothing(case: Path, tiny: Path) -> None:
    assert run("segment", case, "--weights", tiny, "--quiet", "--no-preview", "--device", "cpu").output == ""
    assert not (case / "phantom_000_preview.png").exists()


def test_segment_several_cases_goes_on_after_a_bad_one(case: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    output = fails("segment", tmp_path / "empty", case, "-o", tmp_path / "out", "--weights", tiny, code=3)
    assert f"1 done, 0 skipped, 1 failed: {tmp_path / 'empty'}" in output
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").exists()


def test_explicit_paths(case: Path, tiny: Path, tmp_path: Path) -> None:
    odd = {name: tmp_path / f"{name}_odd_name.nii.gz" for name in ("t1", "t1ce", "t2", "flair")}
    for name, path in odd.items():
        shutil.move(next(case.glob(f"*_{name}.nii.gz")), path)
    flags = [part for name, path in odd.items() for part in (f"--{name}", path)]
    result = run("segment", case, "--weights", tiny, "-o", tmp_path / "x.nii.gz", *flags)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x.nii.gz").exists()


def test_a_missing_modality_must_be_allowed(case: Path, tiny: Path, tmp_path: Path) -> None:
    next(case.glob("*_t1ce.*")).rename(case / "T1-C.nii.gz")
    output = fails("segment", case, "--weights", tiny)
    assert output.rstrip().endswith("To go on without, add --allow-missing t1ce: then no enhancing tumour is found.")
    assert not list(case.glob("*_seg*"))
    result = run("segment", case, "--weights", tiny, "--allow-missing", "t1ce", "--report", tmp_path / "run.json")
    assert result.exit_code == 0, result.output
    assert "not used: T1-C.nii.gz (the name is not understood)" in result.output
    assert "t1ce is missing: zeros are used in its place and no enhancing tumour is found" in result.output
    (report,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert [text for text in report["warnings"] if "T1-C.nii.gz" in text]
    zeros = np.asanyarray(nibabel.load(case / "phantom_000_seg.nii.gz").dataobj)
    named = ("--t1ce", case / "T1-C.nii.gz", "--allow-missing", "t1ce", "-o", tmp_path / "x.nii.gz")
    result = run("segment", case, "--weights", tiny, *named)
    assert result.exit_code == 0, result.output
    assert "T1-C" not in result.output, "what is allowed to be missing and is there is used"
    assert (np.asanyarray(nibabel.load(tmp_path / "x.nii.gz").dataobj) != zeros).any()
    assert "'pd' is not one of" in fails("segment", case, "--allow-missing", "pd")


def test_names_of_data_sets_give_what_brats_names_give(case: Path, tiny: Path, tmp_path: Path) -> None:
    assert run("segment", case, "--weights", tiny, "-o", tmp_path / "a.nii.gz").exit_code == 0
    names = {"t1": "T1w", "t1ce": "ce-gadolinium_T1w", "t2": "T2w", "flair": "FLAIR"}
    for modality, name in names.items():
        next(case.glob(f"*_{modality}.nii.gz")).rename(case / f"sub-01_ses-1_space-T1w_{name}.nii.gz")
    result = run("segment", case, "--weights", tiny)
    assert result.exit_code == 0, result.output
    seg = case / "sub-01_ses-1_seg.nii.gz"
    assert np.array_equal(*(np.asanyarray(nibabel.load(path).dataobj) for path in (seg, tmp_path / "a.nii.gz")))


def _truncate(case: Path) -> None:
    path = next(case.glob("*_t2.nii.gz"))
    path.write_bytes(path.read_bytes()[:-2000])


def _unfetch(case: Path) -> None:
    path = next(case.glob("*_t1ce.nii.gz"))
    path.unlink()
    path.symlink_to("../.git/annex/objects/a/b")


def _pack(case: Path) -> None:
    path = next(case.glob("*_t1ce.nii.gz"))
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(content)


def _not_nifti(case: Path) -> None:
    next(case.glob("*_t2.nii.gz")).write_text("hello")


def _edit(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Callable[[Path], None]:
    def spoil(case: Path) -> None:
        path = next(case.glob("*_t2.nii.gz"))
        image = nibabel.load(path)
        data = change(np.asanyarray(image.dataobj).astype(np.float32))
        nibabel.save(nibabel.Nifti1Image(data, image.affine if affine is None else affine), path)

    return spoil


def _nan(data: np.ndarray) -> np.ndarray:
    data[0, 0, 0] = np.nan
    return data


BAD_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda case: [p.unlink() for p in case.iterdir()], "no .nii or .nii.gz file in it"),
    "a modality missing": (
        lambda case: next(case.glob("*_t1ce.*")).unlink(),
        "no t1ce among phantom_000_flair.nii.gz, phantom_000_t1.nii.gz, phantom_000_t2.nii.gz; ",
    ),
    "a name that cannot be understood": (
        lambda case: next(case.glob("*_t1ce.*")).rename(case / "T1-C.nii.gz"),
        "If T1-C.nii.gz is the t1ce image, add --t1ce",
    ),
    "content that was not fetched": (_unfetch, "phantom_000_t1ce.nii.gz: is a link whose content was not fetched"),
    "a folder of an image's name": (_pack, "phantom_000_t1ce.nii.gz/phantom_000_t1ce.nii.gz."),
    "an image of another case": (
        lambda case: next(case.glob("*_t1ce.*")).rename(case / "phantom_001_t1ce.nii.gz"),
        "files of different cases",
    ),
    "a modality twice": (lambda case: shutil.copy(next(case.glob("*_t2.*")), case / "again_T2.nii.gz"), "t2 twice"),
    "truncated": (_truncate, "truncated or damaged"),
    "not a NIfTI": (_not_nifti, "not a NIfTI file"),
    "not a NIfTI inside gzip": (
        lambda case: next(case.glob("*_t2.*")).write_bytes(gzip.compress(b"hello" * 100)),
        "not a NIfTI file",
    ),
    "another shape": (_edit(lambda data: data[:-1]), "shape (47, 56, 40); expected the grid of phantom_000_t1.nii.gz"),
    "another affine": (_edit(lambda data: data, np.diag([-1.0, -1.0, 1.0, 1.0])), "places a corner 55 mm away"),
    "4-D": (_edit(lambda data: np.stack([data, data], axis=-1)), "4-D array"),
    "NaN": (_edit(_nan), "1 voxels are NaN or infinite"),
    "infinite": (_edit(lambda data: np.where(data > 600, np.inf, data)), "NaN or infinite"),
    "all zeros": (_edit(np.zeros_like), "every voxel is 0.0"),
}


@pytest.mark.parametrize("name", BAD_CASES)
def test_bad_cases_are_refused_and_nothing_is_written(name: str, case: Path, tiny: Path) -> None:
    spoil, message = BAD_CASES[name]
    spoil(case)
    before = sorted(case.iterdir())
    assert message in fails("segment", case, "--weights", tiny)
    assert sorted(case.iterdir()) == before


def test_existing_output_needs_overwrite(case: Path, tiny: Path) -> None:
    assert run("segment", case, "--weights", tiny).exit_code == 0
    before = (case / "phantom_000_seg.nii.gz").read_bytes()
    assert "exists already" in fails("segment", case, "--weights", tiny, "--labels", "msd")
    assert (case / "phantom_000_seg.nii.gz").read_bytes() == before
    assert run("segment", case, "--weights", tiny, "--labels", "msd", "--overwrite").exit_code == 0
    assert (case / "phantom_000_seg.nii.gz").read_bytes() != before


def test_output_folder_must_be_writable(
    case: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not a folder" in fails("segment", case, "--weights", tiny, "-o", tmp_path / "no" / "x.nii.gz")
    (tmp_path / "file").touch()
    assert "is a file, but no .nii" in fails("segment", case, "--weights", tiny, "-o", tmp_path / "file")
    assert "Not a directory" in fails("segment", case, "--weights", tiny, "-o", tmp_path / "file" / "folder")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    assert "is not writable" in fails("segment", case, "--weights", tiny)


@pytest.mark.parametrize("spoil", [b"", b"garbage", None])
def test_damaged_weights_are_refused(case: Path, tiny: Path, tmp_path: Path, spoil: bytes | None) -> None:
    copy = shutil.copytree(tiny, tmp_path / "set")
    (copy / "tc.safetensors").write_bytes((copy / "wt.safetensors").read_bytes() if spoil is None else spoil)
    assert "tc.safetensors: checksum differs" in fails("segment", case, "--weights", copy)
    assert not list(case.glob("*_seg*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(
    case: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def save(image: object, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(nibabel, "save", save)
    before = sorted(case.iterdir())
    result = run("segment", case, "--weights", tiny)
    assert result.exit_code == (2 if isinstance(error, OSError) else 1)
    assert ("No space left" if isinstance(error, OSError) else "Aborted") in result.output
    assert sorted(case.iterdir()) == before


def test_evaluate_writes_csv_and_json(pristine: Path, tmp_path: Path) -> None:
    reference = pristine / "phantom_000_seg.nii.gz"
    result = run("evaluate", reference, reference, "--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    assert "1.000" in result.output
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [float(row["dice"]) for row in rows if row["case"] == "phantom_000"] == [1.0, 1.0, 1.0]
    assert json.loads((tmp_path / "s.json").read_text())["summary"]["patients"] == 1
    assert "exists already" in fails("evaluate", reference, reference, "--csv", tmp_path / "s.csv")
    assert "nobody has corrected" not in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_scores_of_cases_whose_names_are_no_utf_8(pristine: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        shutil.copy(pristine / "phantom_000_seg.nii.gz", folder / "caf\udce9.nii.gz")
    arguments = ("--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    result = run("evaluate", tmp_path / "a", tmp_path / "b", *arguments)
    assert result.exit_code == 0, result.output
    assert "caf\\udce9" in result.output
    assert "caf\\udce9,wt" in (tmp_path / "s.csv").read_text(encoding="utf-8").lower()
    assert "caf\udce9" in json.dumps(json.loads((tmp_path / "s.json").read_text()), ensure_ascii=False)


def test_evaluate_tells_its_own_results_from_references(case: Path, tiny: Path, tmp_path: Path) -> None:
    assert run("segment", case, "--weights", tiny, "-o", tmp_path / "x.nii.gz", "--no-preview").exit_code == 0
    result = run("evaluate", tmp_path / "x.nii.gz", tmp_path / "x.nii.gz")
    assert result.exit_code == 0, result.output
    assert "warning: references that this program wrote and nobody has corrected: x" in result.output


def test_evaluate_refuses_unknown_labels_and_names_the_convention(pristine: Path, tmp_path: Path) -> None:
    image = nibabel.load(pristine / "phantom_000_seg.nii.gz")
    data = np.asanyarray(image.dataobj).copy()
    data[data == 4] = 3
    nibabel.save(nibabel.Nifti1Image(data, image.affine), tmp_path / "x_seg.nii.gz")
    output = fails("evaluate", pristine / "phantom_000_seg.nii.gz", tmp_path / "x_seg.nii.gz")
    assert "unknown label 3" in output
    assert "--labels brats2023 or msd" in output
    arguments = ("--labels", "brats2020", "--reference-labels", "brats2023")
    assert run("evaluate", pristine / "phantom_000_seg.nii.gz", tmp_path / "x_seg.nii.gz", *arguments).exit_code == 0


def test_evaluate_tells_what_may_be_wrong_with_a_label_map(pristine: Path, tmp_path: Path) -> None:
    image = nibabel.load(pristine / "phantom_000_seg.nii.gz")
    mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    result = run("evaluate", tmp_path / "mask.nii.gz", pristine / "phantom_000_seg.nii.gz", "-q")
    assert result.exit_code == 0, result.output
    assert "warning: " + str(tmp_path / "mask.nii.gz") + ": its only label is 1" in result.stderr
    nibabel.save(nibabel.Nifti1Image(mask * 255, image.affine), tmp_path / "mask.nii.gz")
    output = fails("evaluate", tmp_path / "mask.nii.gz", pristine / "phantom_000_seg.nii.gz")
    assert "unknown label 255" in output
    assert "A mask of one region" in output


def test_phantom_writes_cases_that_segment_reads(tmp_path: Path) -> None:
    shape = [str(n) for n in SMALL_SHAPE]
    assert run("phantom", tmp_path / "out", "-n", 2, "--seed", 5, "--shape", *shape).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["phantom_005", "phantom_006"]
    assert len(list((tmp_path / "out" / "phantom_005").iterdir())) == 5
    assert "exists already" in fails("phantom", tmp_path / "out", "--seed", 5, "--shape", *shape)


def test_train_gives_a_set_that_segment_takes(case: Path, tmp_path: Path) -> None:
    shape = 32, 32, 32
    assert run("phantom", tmp_path / "data", "-n", 2, "--shape", *shape).exit_code == 0
    arguments = ("--width", 8, "--epochs", 1, "--batch", 8, "--validation", 0.5, "--vram", "2G", "--device", "cpu")
    arguments += ("--precision", "fp32")
    result = run("train", tmp_path / "data", "-o", tmp_path / "set", *arguments)
    assert result.exit_code == 0, result.output
    assert "validation Dice" in result.output
    assert "plan: cpu" in result.output
    assert "100.0% of the" in result.output
    assert run("segment", case, "--weights", tmp_path / "set").exit_code == 0
    again = "train", tmp_path / "data", "-o", tmp_path / "set"
    assert "holds a training already" in fails(*again, *arguments)
    assert run(*again, *arguments, "--overwrite").exit_code == 0
    assert "as it began: batch 8" in fails(*again, "--resume", "--batch", 4)
    result = run(*again, "--resume", "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "WT goes on at step" in result.output
    assert "ET epoch   2" in result.output


def test_train_touches_nothing_but_its_set(tmp_path: Path) -> None:
    shape = 32, 32, 32
    out = tmp_path / "out"
    assert run("phantom", out / "cache", "-n", 2, "--shape", *shape).exit_code == 0
    arguments = ("train", out / "cache", "-o", out, "--width", 8, "--epochs", 1, "--validation", 0.5, "--device", "cpu")
    arguments += ("--precision", "fp32")
    fails(*arguments, "--batch", 1, "--vram", "0.1M")
    mine = [out / "cache" / "phantom_001-notes.json", out / "checkpoints" / "mine.safetensors"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert len(list(out.rglob("*.nii.gz"))) == 10
    for again in ((), ("--overwrite",)):
        result = run(*arguments, *again)
        assert result.exit_code == 0, result.output
    assert len(list(out.rglob("*.nii.gz"))) == 10
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_train_says_which_cases_it_leaves_out_or_doubts(tmp_path: Path) -> None:
    shape = 32, 32, 32
    assert run("phantom", tmp_path / "data", "-n", 3, "--shape", *shape).exit_code == 0
    next((tmp_path / "data" / "phantom_000").glob("*_seg*")).unlink()
    next((tmp_path / "data" / "phantom_001").glob("*_t2*")).unlink()
    arguments = ("--width", 8, "--epochs", 1, "--validation", 0.5, "--device", "cpu", "-q")
    output = fails("train", tmp_path / "data", "-o", tmp_path / "set", *arguments)
    assert re.search(r"left out: .*phantom_001: no t2 among .* FILE in column t2\. .* --allow-missing t2: then", output)
    arguments += ("--allow-missing", "t2")
    output = run("train", tmp_path / "data", "-o", tmp_path / "set", *arguments).output
    assert re.search(r"left out: .*phantom_000: no label map", output)
    assert "phantom_001: t2 is missing" in output


@pytest.mark.parametrize("command", ["train", "phantom"])
def test_a_file_where_a_folder_is_due_is_no_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    run("phantom", tmp_path / "data", "-n", 2, "--shape", *map(str, SMALL_SHAPE))
    arguments = ("train", tmp_path / "data", "-o") if command == "train" else ("phantom",)
    assert "f.txt" in fails(*arguments, tmp_path / "f.txt")


def test_train_needs_labelled_cases(tmp_path: Path) -> None:
    assert "holds no case folder" in fails("train", tmp_path, "-o", tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_train_where_the_cases_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the README, without a path: train, go on, segment."""
    assert run("phantom", tmp_path / "cases", "-n", 2, "--shape", 32, 32, 32).exit_code == 0
    monkeypatch.chdir(tmp_path / "cases" / "phantom_000")
    assert "holds images itself" in fails("train", "--vram", "2G")
    monkeypatch.chdir(tmp_path)
    assert "but cases/phantom_000 is one" in fails("train", "--vram", "2G")
    assert "no training to go on with" in fails("train", "--resume")
    monkeypatch.chdir(tmp_path / "cases")
    quick = ("--vram", "2G", "--width", 8, "--epochs", 1, "--batch", 32, "--mode", "one-network")
    first, second = (f"runs/{date.today()}-{number}" for number in (1, 2))
    result = run("train", *quick)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"run folder   {first}\n")
    assert "cases        2 of 2 patients: 1 to train on, 1 to validate, 0 for the test" in result.output
    assert f"wrote        {first}: metrics.csv, curves.png; segment with --weights {first}" in result.output
    assert f"run folder   {second}" in run("train", *quick, "-q").output, "no other line says where it is"
    assert "holds a training already" in fails("train", "-o", first, *quick)
    result = run("train", "--resume", "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"going on in  {second}\n")
    assert "WT TC ET epoch   2" in result.output
    assert run("segment", "phantom_000", "--weights", second, "-o", tmp_path, "--no-preview").exit_code == 0


def test_a_training_goes_on_with_the_cases_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("phantom", tmp_path / "cases", "-n", 2, "--shape", *SMALL_SHAPE).exit_code == 0
    monkeypatch.chdir(tmp_path)
    options = ("--width", 8, "--epochs", 1, "--batch", 32, "--mode", "one-network", "--cache", "slices")
    assert run("train", "cases", *options).exit_code == 0
    result = run("train", "--resume")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "cache").exists()
    assert json.loads((folder / "run.json").read_text())["data"] == "cases"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--max-time", "soon"), "--max-time"),
        (("--max-time", ""), "--max-time"),
        (("--max-time", "0h"), "--max-time"),
        (("--fold", "3"), "--fold"),
        (("--fold", "3/2"), "--fold"),
        (("--loss", "dice+hinge"), "--loss"),
        (("--mode", "two-networks"), "--mode"),
        (("--region", "ed"), "--region"),
        (("--validation", 0.6, "--test", 0.4), "split"),
        (("--finetune", "unet2d", "--width", 16), "--finetune"),
        (("--finetune", "unet2d", "--preset", "emcad"), "--finetune"),
        (("--average", 1), "--average"),
        (("--seed", -1), "--seed"),
    ],
)
def test_bad_options_of_train(tmp_path: Path, arguments: tuple[object, ...], named: str) -> None:
    assert run("phantom", tmp_path / "data", "-n", 2, "--shape", *SMALL_SHAPE).exit_code == 0
    assert named in fails("train", tmp_path / "data", "-o", tmp_path / "set", *arguments)
    assert not (tmp_path / "set").exists()


def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: object) -> TrainConfig:
    """The recipe that a command line means."""
    recipes: list[TrainConfig] = []
    monkeypatch.setattr("lowmem_brats.train.run.train_set", lambda data, output, config, *_: recipes.append(config))
    result = run("train", tmp_path, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    return recipes[0]


def test_presets_are_defaults_that_options_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = configured(monkeypatch, tmp_path, "--preset", "emcad", "--batch", 25)
    expected = {"loss": "dice+ce", "learning_rate": 1e-4, "weight_decay": 1e-4, "batch": 25}
    assert found == TrainConfig(network=NetworkConfig(name="emcad-b0"), **expected)
    found = configured(monkeypatch, tmp_path, "--width", 8, "--preset", "shipped")
    network = NetworkConfig(width=8, norm="none", outputs=3, views=3)
    assert found == TrainConfig(network=network, loss="dice+ce", window=112, batch=16, weight_decay=1e-4)
    assert configured(monkeypatch, tmp_path) == TrainConfig()
    assert "--preset" in fails("train", tmp_path, "-o", tmp_path, "--resume", "--preset", "emcad")


@pytest.mark.parametrize("command", [("plan",), ("bench", "memory"), ("train", "data", "-o", "out")])
def test_a_network_of_fixed_size_takes_no_width(command: tuple[str, ...]) -> None:
    assert "--width" in fails(*command, "--network", "emcad-b0", "--width", 16)


@pytest.mark.parametrize("command", [("plan",), ("bench", "memory"), ("train", "data", "-o", "data/out")])
def test_an_unknown_network_lists_the_known(command: tuple[str, ...], tmp_path: Path) -> None:
    run("phantom", tmp_path / "data", "-n", 2, "--shape", *SMALL_SHAPE)
    command = tuple(part.replace("data", str(tmp_path / "data")) for part in command)
    assert "one of unet2d, emcad-b0, emcad-b2, resunet2d, " in fails(*command, "--network", "emcad-b9")


@pytest.mark.slow
def test_plan_and_bench_of_emcad_pad_to_its_stride() -> None:
    output = run("plan", "--network", "emcad-b0", "--train", "--vram", "2G", "--batch", 25).output
    assert "emcad-b0, slices of 256 × 256" in output
    assert re.search(r"^2G +25 ", output, re.MULTILINE)
    assert "width" not in output
    arguments = ("--size", 64, 64, "--device", "cpu", "--vram", "1G", "--batch", 2)
    output = run("bench", "memory", "--network", "emcad-b0", *arguments).output
    assert len(re.findall(r"emcad-b0 .* 1\.000 +yes", output)) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--vram", "2X"),
        ("--min-confidence", 2),
        ("--device", "tpu"),
        ("--precision", "fp8"),
        ("--labels", "brats1999"),
    ],
)
def test_bad_options(case: Path, tiny: Path, arguments: tuple[str, object]) -> None:
    assert str(arguments[0]) in fails("segment", case, "--weights", tiny, *arguments)


@pytest.mark.slow
def test_plan_shows_the_ladder_without_weights_or_data() -> None:
    result = run("plan", "--train", "--width", 16)
    assert result.exit_code == 0, result.output
    for text in ("512M", "8G", "1.00×", "width: the largest that fits"):
        assert text in result.output


@pytest.mark.parametrize("arguments", [(), ("--train", "--batch", "2")])
def test_plan_fails_where_nothing_fits(arguments: tuple[str, ...]) -> None:
    command = ("plan", "--width", 8, "--size", 32, 32, "--device", "cpu", *arguments)
    result = run(*command, "--vram", "0.1M")
    assert result.exit_code == 2
    found = re.search(r"too little for unet2d of width 8; expected at least (\d+)M\.", result.output)
    assert found
    assert f"needs {found[1]}M" in result.output
    assert run(*command, "--vram", f"{found[1]}M").exit_code == 0


@pytest.mark.parametrize(("sizes", "code"), [((2**20, 2**26), 0), ((2**19, 2**20), 2)])
def test_plan_of_the_ladder_fails_only_if_no_row_fits(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], code: int
) -> None:
    monkeypatch.setattr("lowmem_brats.memory.planner.LADDER", sizes)
    result = run("plan", "--width", 8, "--size", 32, 32, "--device", "cpu")
    assert result.exit_code == code, result.output
    assert result.output.count("needs") == (2 if code else 1)


def test_no_arguments_show_the_help() -> None:
    output = run().output
    assert output.startswith("Usage: ")
    assert all(name in output for name in COMMANDS)


@pytest.mark.slow
def test_plan_of_too_small_a_budget_names_one_that_works() -> None:
    arguments = ("plan", "--train", "--device", "cpu", "--width", 16, "--size", 64, 64, "--batch", 2)
    found = re.search(r"needs (\d+)M", run(*arguments, "--vram", "5M").output)
    assert found
    assert "needs" not in run(*arguments, "--vram", f"{found[1]}M").output
    assert "needs" in run(*arguments, "--vram", f"{int(found[1]) - 1}M").output


@pytest.mark.parametrize("command", [("plan",), ("plan", "--train"), ("bench", "memory"), ("bench", "speed")])
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [(("--size", 100, 100), "--size 96 96"), (("--size", 0, -16), "--size 16 16"), (("--batch", 0), "at least 1")],
)
def test_slices_that_no_network_takes(command: tuple[str, ...], arguments: tuple[object, ...], advice: str) -> None:
    where = "--device", "cpu", "--width", 8, "--precision", "fp32"
    assert advice in fails(*command, *arguments, *where)


def test_every_budget_asked_of_plan_gets_a_row() -> None:
    arguments = ("plan", "--width", 8, "--size", 32, 32)
    for vram in ("1M", "256M", "448M"):
        assert re.search(rf"^{vram} .*needs \d+M", run(*arguments, "--vram", vram).output, re.MULTILINE)
    assert re.search(r"^256M .*needs \d+M", run(*arguments).output, re.MULTILINE)
    assert re.search(r"^no limit .*1", run(*arguments, "--vram", "max", "--device", "cpu").output, re.MULTILINE)
    unlimited = run(*arguments, "--vram", "max", "--device", "cpu", "--train")
    assert unlimited.exit_code == 0, unlimited.output
    assert re.search(r"^no limit .*any", unlimited.output, re.MULTILINE)
    assert "unknown" in fails(*arguments, "--vram", "max")
    assert "such as 2G" in fails(*arguments, "--vram", "9" * 400 + "G")


def test_doctor_speaks_of_everything() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for text in ("torch", "processor", "CUDA", open_set().name, "checksums right", "segment ", "slices at once"):
        assert text in result.output


def test_bench_alone_measures_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def measure(networks: object, budgets: object, *arguments: object) -> list[object]:
        *arguments, on_row = arguments
        asked.append((networks, budgets, *arguments[:2]))
        on_row(Row("unet2d of width 16", "segment", "256M", None))
        return []

    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr("lowmem_brats.bench.bench_memory", measure)
    monkeypatch.setattr("lowmem_brats.cli.console.progress", lambda: nullcontext(lambda *step: shown.append(step)))
    result = run("bench")
    assert result.exit_code == 0, result.output
    assert asked == [([NetworkConfig(width=16)], ("256M", "512M", "1G"), (240, 240), 10)]
    assert shown == [("plans run", 0, 6), ("plans run", 1, 6)]
    assert "does not fit" in result.output
    assert "`memory`, the default" in run("bench", "--help").output


def test_bench_measures_what_was_planned(tmp_path: Path) -> None:
    arguments = ("--width", 8, "--size", 32, 32, "--batch", 2, "--device", "cpu", "--precision", "fp32")
    result = run("bench", "memory", "--vram", "16M", "--vram", "1M", *arguments, "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "b.json").read_text())
    assert {"date", "device", "processor", "memory", "versions", "command", "rows"} <= content.keys()
    planned = [row for row in content["rows"] if row["plan"]]
    assert {row["job"] for row in planned} == {"segment", "train"}
    assert all(row["within"] and row["measured_bytes"] == row["plan"]["predicted_bytes"] for row in planned)
    assert "does not fit" in result.output
    speed = run("bench", "speed", *arguments)
    assert speed.exit_code == 0, speed.output
    assert "planned 1.33×" in speed.output


def test_a_result_tells_its_command_without_the_places_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/opt/bin/lowmem-brats", "bench", "speed", "--json", "/home/me/my b.json", "-w", "a/b"]
    monkeypatch.setattr("sys.argv", words)
    assert conditions("cpu")["command"] == "lowmem-brats bench speed --json 'my b.json' -w a/b"


def test_lines_are_whole_in_a_pipe(case: Path, tiny: Path) -> None:
    result = run("segment", case, "--weights", tiny)
    (planned,) = [line for line in result.stderr.splitlines() if line.startswith("plan: ")]
    assert planned.endswith("MiB")
    assert "activations" in planned

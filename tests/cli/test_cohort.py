"""`lowmem-brats segment` on many cases: each stands alone, the report says what became of it, a re-run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_weights import SMALL_SHAPE

import lowmem_brats.segment.case as segment_module
from lowmem_brats.cli import main
from lowmem_brats.cli.jobs import case_folders
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.nifti import is_own_result, origin_of
from lowmem_brats.errors import InputError

MakeCase = Callable[[str], Path]


@pytest.fixture
def make_case(tmp_path: Path, pristine: Path) -> MakeCase:
    """`make_case(name)`: the folder cases/NAME with four images and no label map."""

    def make(name: str) -> Path:
        folder = tmp_path / "cases" / name
        folder.mkdir(parents=True)
        for path in pristine.glob("*_[tf]*.nii.gz"):
            shutil.copy(path, folder / path.name.replace(pristine.name, Path(name).name))
        return folder

    return make


@pytest.fixture
def three(make_case: MakeCase) -> list[Path]:
    return [make_case(name) for name in "abc"]


@pytest.fixture
def segment(tiny: Path, tmp_path: Path) -> Callable[..., Result]:
    """`segment(...)` runs the command with tiny weights, into `out` where no other -o is given."""

    def run(*arguments: object) -> Result:
        command = ["segment", "--weights", tiny, "--device", "cpu", "-o", tmp_path / "out", *arguments]
        return CliRunner().invoke(main, [str(a) for a in command], env={"COLUMNS": "200"})

    return run


Run = Callable[..., Result]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Let reading the case of this name raise an error."""
    read = segment_module.read_case

    def read_or_fail(files: CaseFiles) -> Any:
        if files.case_id == name:
            raise error
        return read(files)

    monkeypatch.setattr(segment_module, "read_case", read_or_fail)


def results(tmp_path: Path) -> list[str]:
    """What lies in `out`, hidden files too."""
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def both(*names: str) -> list[str]:
    return sorted(f"{name}{kind}" for name in names for kind in ("_seg.nii.gz", "_preview.png", ".html"))


def entries(report: Path) -> dict[str, dict[str, Any]]:
    """A report's entries by the last part of the case's path."""
    return {Path(entry["case"]).name: entry for entry in json.loads(report.read_text())["cases"]}


# --- one case that fails ---

FORESEEN = {
    "OSError": (OSError(5, "Input/output error", "disk"), "disk: Input/output error; expected a file"),
    "MemoryError": (MemoryError(), "the memory of this machine ran out"),
    "torch's memory error": (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TiB"), "memory of this"),
    "InputError": (InputError("x", "odd", "even", "Do it."), "x: odd; expected even. Do it."),
}
UNFORESEEN = {
    "RuntimeError": RuntimeError("first line\nsecond line"),
    "UnicodeEncodeError": UnicodeEncodeError("ascii", "中文", 0, 1, "ordinal not in range"),
    "AssertionError": AssertionError(),
    "surrogates": ValueError("caf\udce9"),
}


@pytest.mark.parametrize("name", [*FORESEEN, *UNFORESEEN])
def test_a_case_that_fails_is_the_only_one(
    name: str, three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = FORESEEN[name][0] if name in FORESEEN else UNFORESEEN[name]
    failing(monkeypatch, "b", error)
    result = segment(*three, "--report", tmp_path / "r.json")
    assert result.exit_code == 3, result.output
    assert results(tmp_path) == both("a", "c")
    assert f"\n2 done, 0 skipped, 1 failed: {three[1]}\n" in result.stderr
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert str(three[1]) in line
    report = entries(tmp_path / "r.json")
    assert {name: entry["status"] for name, entry in report.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert report["b"]["error"].keys() == {"where", "found", "expected", "advice"}
    assert all(report["b"]["error"].values())
    assert ("traceback" in report["b"]) == (name in UNFORESEEN)
    if name in FORESEEN:
        assert FORESEEN[name][1] in line
    else:
        assert (
            f"unexpected error, {type(error).__name__}: {str(error).partition(chr(10))[0] or 'no message'}"[:60]
            in (report["b"]["error"]["found"])
        )
        assert "please report it" in line
        assert f"(at {Path(__file__).name}:" in line
        assert "read_or_fail" in report["b"]["traceback"]


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("odd"), 1), (MemoryError(), 2), (OSError(5, "odd"), 2)])
def test_a_single_case_fails_with_a_message(
    error: Exception, code: int, three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "a", error)
    result = segment(three[0], "--report", tmp_path / "r.json")
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert str(three[0]) in result.stderr
    (entry,) = entries(tmp_path / "r.json").values()
    assert entry["status"] == "failed"
    assert results(tmp_path) == []


def test_where_all_fail_the_command_has_failed(
    three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "read_case", lambda files: 1 / 0)
    result = segment(*three)
    assert result.exit_code == 2
    assert "0 done, 0 skipped, 3 failed" in result.stderr


@pytest.mark.parametrize(("interrupt", "code"), [(KeyboardInterrupt(), 1), (SystemExit(143), 143)])
def test_an_interrupt_stops_all_and_the_report_has_what_was_done(
    interrupt: BaseException,
    code: int,
    three: list[Path],
    segment: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, "b", interrupt)
    result = segment(*three, "--report", tmp_path / "r.json")
    assert result.exit_code == code
    assert "stopped: 1 done, 0 skipped, 0 failed; the same command goes on with the rest" in result.stderr
    assert results(tmp_path) == both("a")
    assert list(entries(tmp_path / "r.json")) == ["a"]
    monkeypatch.undo()
    result = segment(*three, "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "2 done, 1 skipped, 0 failed" in result.stderr
    assert results(tmp_path) == both("a", "b", "c")


def test_what_is_wrong_for_every_case_is_told_once(three: list[Path], segment: Run, tmp_path: Path) -> None:
    for arguments in (("--vram", "2X"), ("--weights", "no-such"), ("--device", "tpu"), ("--labels", "x")):
        result = segment(*three, *arguments)
        assert result.exit_code == 2
        assert result.stderr.count("Error: ") == 1
        assert not (tmp_path / "out").exists()


# --- a second run ---


def test_a_second_run_goes_on(three: list[Path], make_case: MakeCase, segment: Run, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    assert segment(*three[:2], "--report", report).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    measured = entries(report)
    (tmp_path / "out" / "a_preview.png").unlink()
    result = segment(*three, "--report", report)
    assert result.exit_code == 0, result.output
    target = tmp_path / "out" / "a_seg.nii.gz"
    assert f"{three[0]}: skipped: {target} exists (--overwrite segments it anew)\n" in result.stderr
    assert "1 done, 2 skipped, 0 failed" in result.stderr
    assert "case 3 of 3" in result.stderr
    assert "case 1 of 3" not in result.stderr
    after = {path: path.read_bytes() for path in before if path.exists()}
    assert after.items() < before.items()
    assert results(tmp_path) == sorted({*both("a", "b", "c")} - {"a_preview.png"})
    assert entries(report)["a"] == measured["a"] | {"status": "skipped"}
    assert list(entries(report)) == ["a", "b", "c"]
    quiet = segment(*three, "--report", report, "-q")
    assert quiet.exit_code == 0
    assert quiet.output == ""
    result = segment(*three, "--overwrite", "--report", report)
    assert "3 done, 0 skipped, 0 failed" in result.stderr


def test_a_corrected_result_is_kept_and_skipped(three: list[Path], segment: Run, tmp_path: Path) -> None:
    assert segment(*three).exit_code == 0
    path = tmp_path / "out" / "a_seg.nii.gz"
    image = nibabel.load(path)
    corrected_XYZ = np.asarray(image.dataobj).copy()
    corrected_XYZ[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(corrected_XYZ, None, image.header), path)
    before = path.read_bytes()
    assert not is_own_result(path)
    assert "0 done, 3 skipped, 0 failed" in segment(*three).stderr
    assert "drawn or corrected by a person" in segment(*three, "--overwrite").stderr, (
        "also in another folder than its case"
    )
    assert path.read_bytes() == before


def test_a_result_of_other_images_or_settings_is_not_taken_for_this_one(
    three: list[Path], segment: Run, tmp_path: Path
) -> None:
    assert segment(*three).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shutil.copy(three[0] / "a_t1.nii.gz", three[0] / "a_t2.nii.gz")
    result = segment(*three)
    assert result.exit_code == 3
    assert "a_seg.nii.gz: exists already, made of other images" in result.stderr
    assert "0 done, 2 skipped, 1 failed" in result.stderr
    result = segment(*three, "--labels", "msd")
    assert result.exit_code == 2
    assert "with other settings" in result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    # Where and in how much memory it computes does not matter.
    assert "0 done, 2 skipped" in segment(*three[1:], "--vram", "1G").stderr


def test_a_file_of_another_program_is_no_result(three: list[Path], segment: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(three[0] / "a_t1.nii.gz", tmp_path / "out" / "a_seg.nii.gz")
    (tmp_path / "out" / "b_seg.nii.gz").write_text("no NIfTI")
    result = segment(*three)
    assert result.exit_code == 3
    for name in "ab":
        assert f"{name}_seg.nii.gz: exists already; expected a new file. Pass --overwrite, or -o elsewhere." in (
            result.stderr
        )
    assert origin_of(tmp_path / "out" / "a_seg.nii.gz") is None


def test_a_single_case_says_how_to_go_on(three: list[Path], segment: Run, tmp_path: Path) -> None:
    assert segment(three[0]).exit_code == 0
    result = segment(three[0])
    assert result.exit_code == 2
    target = tmp_path / "out" / "a_seg.nii.gz"
    assert (
        result.output == f"Error: {target}: exists already; expected a new file. Pass --overwrite, or -o elsewhere.\n"
    )


def test_a_file_that_appears_during_the_work_is_not_replaced(
    three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = segment_module.read_case

    def load_slowly(files: CaseFiles) -> Any:
        (tmp_path / "out" / f"{files.case_id}_{'seg.nii.gz' if files.case_id == 'a' else 'preview.png'}").write_text(
            "x"
        )
        return load(files)

    monkeypatch.setattr(segment_module, "read_case", load_slowly)
    result = segment(*three[:2])
    assert result.exit_code == 2
    assert result.stderr.count("exists already") == 2
    assert results(tmp_path) == ["a_seg.nii.gz", "b_preview.png", "b_seg.nii.gz"]
    assert (tmp_path / "out" / "a_seg.nii.gz").read_text() == "x"
    assert (tmp_path / "out" / "b_preview.png").read_text() == "x"


# --- the report ---


def test_a_report_that_is_another_file_is_refused_before_any_work(
    three: list[Path], segment: Run, tmp_path: Path
) -> None:
    for text in ("{}", "[]", "hello", '{"cases": [1]}', '{"cases": [{"case": []}]}'):
        (tmp_path / "r.json").write_text(text)
        result = segment(*three, "--report", tmp_path / "r.json")
        assert result.exit_code == 2
        assert "r.json: exists already" in result.stderr
        assert (tmp_path / "r.json").read_text() == text
    assert "is not a folder" in segment(*three, "--report", tmp_path / "no" / "r.json").stderr
    assert "is a folder" in segment(*three, "--report", tmp_path / "out").stderr
    assert "is the name of an image" in segment(*three, "--report", three[1] / "b_t1.nii.gz", "--overwrite").stderr
    assert results(tmp_path) == []


def test_a_report_may_lie_in_the_folder_of_the_results(three: list[Path], segment: Run, tmp_path: Path) -> None:
    assert segment(*three[:1], "--report", tmp_path / "out" / "r.json").exit_code == 0
    assert results(tmp_path) == [*both("a"), "r.json"]


def test_a_report_that_another_command_changes_is_told_and_kept(
    three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, load = tmp_path / "r.json", segment_module.read_case

    def load_and_disturb(files: CaseFiles) -> Any:
        if files.case_id == "b":
            report.write_text("theirs")
        return load(files)

    monkeypatch.setattr(segment_module, "read_case", load_and_disturb)
    result = segment(*three, "--report", report)
    assert result.exit_code == 2
    assert result.stderr.count("was changed by another program") == 2  # after b and at the end
    assert "3 done, 0 skipped, 0 failed" in result.stderr
    assert report.read_text() == "theirs"


# --- which cases are meant ---


def test_a_folder_of_case_folders(three: list[Path], make_case: MakeCase, segment: Run, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    (cases / "notes").mkdir()
    (cases / ".hidden").mkdir()
    (cases / "list.csv").touch()
    (cases / "gone").symlink_to("nowhere")
    make_case("deep/d")
    out = cases / "out"
    for counts in ("3 done, 0 skipped, 1 failed", "0 done, 3 skipped, 1 failed"):
        result = segment(cases, "-o", out)
        assert result.exit_code == 3, result.output
        assert f"{counts}: {cases / 'gone'}\n" in result.stderr
        assert f"{cases}: folders left out, because no images lie in them: deep, notes\n" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == both("a", "b", "c")
    result = segment(cases, "-o", tmp_path / "elsewhere")
    assert "no images lie in them: deep, notes, out\n" in result.stderr, "label maps are no images"


def test_a_folder_of_one_case_folder_is_a_cohort(make_case: MakeCase, segment: Run) -> None:
    folder = make_case("a").parent
    assert segment(folder).exit_code == 0
    assert "0 done, 1 skipped, 0 failed" in segment(folder).stderr


def test_a_folder_with_images_is_the_case_itself(three: list[Path], make_case: MakeCase) -> None:
    make_case("a/inner")
    assert case_folders([three[0]], None) == [three[0]]
    assert case_folders([three[0], three[0].parent], None) == three  # each once


def test_results_beside_the_case_folders_do_not_make_a_case(
    three: list[Path], segment: Run, tmp_path: Path, pristine: Path
) -> None:
    for counts in ("3 done, 0 skipped, 0 failed", "0 done, 3 skipped, 0 failed"):
        result = segment(tmp_path / "cases", "-o", tmp_path / "cases")
        assert result.exit_code == 0, result.output
        assert counts in result.stderr


def test_images_further_down_are_named(make_case: MakeCase, segment: Run, tmp_path: Path) -> None:
    anat = make_case("sub-1/ses-1/anat")
    result = segment(tmp_path / "cases")
    assert result.exit_code == 2
    assert f"the nearest lie in {anat}" in result.stderr
    (tmp_path / "empty").mkdir()
    result = segment(tmp_path / "empty")
    assert result.exit_code == 2
    assert "empty: no .nii or .nii.gz file in it; expected a case folder, or a folder of case folders" in result.stderr


def test_a_folder_that_cannot_be_listed_stands_alone(
    three: list[Path], segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_folder = Path.iterdir

    def forbidden(folder: Path) -> Any:
        if folder == three[1]:
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    for arguments in ([tmp_path / "cases"], three):
        result = segment(*arguments, "--overwrite")
        assert result.exit_code == 3, result.output
        assert f"2 done, 0 skipped, 1 failed: {three[1]}" in result.stderr


# --- where the results go ---


@pytest.mark.parametrize("name", ["x.NII.GZ", "x.Nii", "x.nii.Gz"])
def test_a_suffix_in_capitals_is_a_suffix(name: str, three: list[Path], segment: Run, tmp_path: Path) -> None:
    assert segment(three[0], "-o", tmp_path / name, "--no-preview", "--no-page").exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    with (tmp_path / name).open("rb") as file:
        assert (file.read(2) == b"\x1f\x8b") == name.lower().endswith("gz")
    (tmp_path / name).rename(tmp_path / name.lower())
    assert nibabel.load(tmp_path / name.lower()).shape == SMALL_SHAPE


def test_an_output_that_is_neither_is_refused_before_any_work(three: list[Path], segment: Run, tmp_path: Path) -> None:
    result = segment(*three, "-o", tmp_path / "x.nrrd")
    assert result.exit_code == 2
    assert "x.nrrd: ends in .nrrd; expected a .nii or .nii.gz file, or a folder" in result.output
    assert "3 cases; expected one case" in segment(*three, "-o", tmp_path / "x.nii").output
    assert not (tmp_path / "x.nrrd").exists()


def test_a_case_id_too_long_for_a_file_name(make_case: MakeCase, segment: Run, tmp_path: Path) -> None:
    long = make_case("long")
    for path in list(long.iterdir()):
        name = path.name.replace("long", "n" * 245).removesuffix(".gz")
        nibabel.save(nibabel.load(path), long / name)
        path.unlink()
    result = segment(long, make_case("a"))
    assert result.exit_code == 3
    assert "_seg.nii.gz: no name for a file here (File name too long)" in result.stderr
    assert results(tmp_path) == both("a")


# --- any name on any terminal ---

NAMES = (b"\xe4\xb8\xad\xe6\x96\x87 \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e", b"caf\xe9")
"""UTF-8 that few encodings have, and Latin-1, which is no UTF-8."""


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@pytest.mark.parametrize("encoding", ["cp932", "ascii"])
def test_names_that_no_terminal_shows(make_case: MakeCase, tiny: Path, tmp_path: Path, encoding: str) -> None:
    for name in NAMES:
        make_case(os.fsdecode(name))
    command = [sys.executable, "-m", "lowmem_brats", "segment", "cases", "-o", "out", "--report", "r.json"]
    settings = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    result = subprocess.run(
        [*command, "--weights", tiny, "--device", "cpu"], env=os.environ | settings, cwd=tmp_path, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert b"2 done, 0 skipped, 0 failed" in result.stderr
    written = sorted(os.listdir(os.fsencode(tmp_path / "out")))
    assert written == sorted(name + end for name in NAMES for end in (b".html", b"_preview.png", b"_seg.nii.gz"))
    assert result.stdout.decode(encoding).count("voxels") == 2
    assert rb"caf\udce9" in result.stdout
    reported = [Path(entry["case"]).name for entry in json.loads((tmp_path / "r.json").read_text())["cases"]]
    assert sorted(os.fsencode(name.encode("utf-8", "surrogateescape")) for name in reported) == sorted(NAMES)

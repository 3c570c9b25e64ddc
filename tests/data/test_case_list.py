"""Cases from a folder, a CSV and a JSON list; what cannot be used is left out with its reason, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case_list import KEYS, read_cases
from lowmem_brats.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files; finding never opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def case(folder: Path) -> Path:
    """Make a labelled case."""
    return touch(folder, *(f"{folder.name}_{kind}.nii" for kind in (*MODALITIES, "seg")))


BARE = [f"{kind}.nii" for kind in (*MODALITIES, "seg")]


def names(data: Path) -> list[str]:
    """The cases found, none left out."""
    cases, notes = read_cases(data)
    assert notes == []
    assert all(len(each.labels) == 1 for each in cases)
    return [each.case_id for each in cases]


# A folder


def test_cases_of_a_folder_by_name(tmp_path: Path) -> None:
    for case_id in ("C2", "C1"):
        case(tmp_path / case_id)
    (case(tmp_path / "C0") / "C0_seg.nii").unlink()
    touch(tmp_path / "C3", "C3_t1.nii", "C3_seg.nii")  # too few
    touch(case(tmp_path / "C4"), "C4_Segm.nii")  # two labels
    touch(tmp_path / "notes", "readme.txt")
    cases, notes = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1", "C2"]
    assert [note.split(": ")[0] for note in notes] == ["left out"] * 3
    assert "C0: no label map" in notes[0]
    assert "C3: no t1ce, t2, flair" in notes[1]
    assert "C4_Segm.nii, C4_seg.nii" in notes[2]
    with pytest.raises(InputError, match="C0: no label map"):
        read_cases(tmp_path, strict=True)


def test_no_labelled_case_is_an_error(tmp_path: Path) -> None:
    (case(tmp_path / "C0") / "C0_seg.nii").rename(tmp_path / "C0" / "C0_tumorMask.nii")
    with pytest.raises(
        InputError, match=r"1 cases, none with images and a label map.*C0: no label map; not used: C0_tumorMask"
    ):
        read_cases(tmp_path)
    with pytest.raises(InputError, match=r"is not a folder"):
        read_cases(tmp_path / "C0" / "C0_t1.nii")


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv: does not exist; expected a folder of case folders"):
        read_cases(tmp_path / "absent.csv")


def test_one_name_for_two_cases_would_mix_them_up(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        touch(tmp_path / folder, *(f"image_{name}" for name in BARE))
    with pytest.raises(InputError, match="several cases named image; expected one name per case"):
        read_cases(tmp_path)


def test_hidden_and_stray_files_are_no_cases(tmp_path: Path) -> None:
    case(tmp_path / "C1")
    touch(tmp_path / "C1", "._C1_t1.nii")
    touch(tmp_path / "copied", "._C1_t1.nii", "._C1_t2.nii", "._C1_seg.nii")
    touch(tmp_path, "C2_t1.nii", "C2_t2.nii", "C2_seg.nii")
    touch(tmp_path / "task01", "BRATS_001.nii.gz", "BRATS_001_seg.nii.gz")
    touch(tmp_path / "with space ", *BARE)
    assert names(tmp_path) == ["C1", "BRATS_001", "with space "]


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case(tmp_path / "data" / "C1")
    (tmp_path / "list.json").write_text('["data/C1"]')

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    for data in (tmp_path / "data", tmp_path / "list.json"):
        with pytest.raises(InputError, match="Permission denied"):
            read_cases(data)


# Modalities that are missing, files that are not used


@pytest.mark.parametrize("data", ["", "folders.csv", "files.csv"])
def test_a_missing_modality_must_be_allowed(tmp_path: Path, data: str) -> None:
    """In a folder of cases, in a list of them, and as an empty cell of a list of files."""
    files = ["t1,t1ce,t2,flair,seg"]
    for name, missing in (("C1", ""), ("C2", "t1ce"), ("C3", "flair")):
        (case(tmp_path / name) / f"{name}_{missing}.nii").unlink(missing_ok=True)
        cells = ["" if kind == missing else f"{name}/{name}_{kind}.nii" for kind in (*MODALITIES, "seg")]
        files.append(",".join(cells))
    (tmp_path / "files.csv").write_text("\n".join(files))
    (tmp_path / "folders.csv").write_text("case\nC1\nC2\nC3")
    for allowed, found in (((), ["C1"]), (("t1ce",), ["C1", "C2"]), (("flair", "t1ce"), ["C1", "C2", "C3"])):
        cases, notes = read_cases(tmp_path / data, allow_missing=allowed)
        assert [each.case_id for each in cases] == found
        for note, missing in zip(notes, ["t1ce", "flair"][len(allowed) :], strict=True):
            assert re.search(rf": no {missing}[ ;]", note)
            assert f"FILE in column {missing}. To go on without, add --allow-missing {missing}: then" in note


def test_what_is_not_used_is_told_once(tmp_path: Path) -> None:
    touch(case(tmp_path / "C1"), "C1_adc.nii", "C1_t1_bet.nii")
    (found,), notes = read_cases(tmp_path)
    assert found.images["t1"].name == "C1_t1_bet.nii"
    assert notes == [
        "C1: not used: C1_adc.nii (the name is not understood)",
        "C1: not used: C1_t1.nii (C1_t1_bet.nii is the skull-stripped one)",
    ]
    assert found.notes == (), "prepared slices keep the warnings of when they were made"


@pytest.mark.parametrize("kind", ["t1ce", "seg"])
def test_content_that_was_not_fetched(tmp_path: Path, kind: str) -> None:
    case(tmp_path / "C1")
    (case(tmp_path / "C2") / f"C2_{kind}.nii").unlink()
    (tmp_path / "C2" / f"C2_{kind}.nii").symlink_to("../.git/annex/objects/a/b")
    cases, (note,) = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1"]
    assert f"C2_{kind}.nii: is a link whose content was not fetched" in note
    assert f"datalad get {tmp_path / 'C2'}" in note


# Lists


def test_a_list_of_folders_gives_what_the_folder_gives(tmp_path: Path) -> None:
    for name in ("C1", "Größe, 2"):
        case(tmp_path / name)
    (tmp_path / "list.json").write_text(json.dumps(["C1", {"case": "Größe, 2"}]))
    (tmp_path / "list.CSV").write_text('case,case_id,\nC1,,\n\n"Größe, 2",,\n', encoding="utf-8")
    expected, _ = read_cases(tmp_path)
    assert [each.case_id for each in expected] == ["C1", "Größe, 2"]
    for data in ("list.json", "list.CSV"):
        assert read_cases(tmp_path / data) == (expected, [])


@pytest.mark.parametrize("name", ["list.csv", "list.json"])
def test_images_and_labels_apart(tmp_path: Path, name: str) -> None:
    """The Medical Segmentation Decathlon keeps 4-D images in one folder and label maps in another."""
    images, labels = (touch(tmp_path / folder, "BRATS_001.nii.gz") for folder in ("imagesTr", "labelsTr"))
    row = {"case": "imagesTr/BRATS_001.nii.gz", "seg": "labelsTr/BRATS_001.nii.gz"}
    text = json.dumps([row]) if name == "list.json" else "\n".join([",".join(row), ",".join(row.values())])
    (tmp_path / name).write_text(text)
    (found,), _ = read_cases(tmp_path / name)
    assert (found.case_id, found.stacked) == ("BRATS_001", images / "BRATS_001.nii.gz")
    assert found.labels == (labels / "BRATS_001.nii.gz",)


def test_files_of_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "s1.nii", "s2.nii", "s3.nii", "s4.nii", "truth.nii")
    (tmp_path / "list.csv").write_text("case_id,t1,t1ce,t2,flair,seg\nP7,s1.nii, s2.nii ,s3.nii,s4.nii,truth.nii\n")
    (found,), _ = read_cases(tmp_path / "list.csv")
    assert found.case_id == "P7"
    assert found.images == {m: tmp_path / f"s{i}.nii" for i, m in enumerate(("t1", "t1ce", "t2", "flair"), 1)}
    assert found.labels == (tmp_path / "truth.nii",)


def test_a_csv_of_case_folders(tmp_path: Path) -> None:
    case(tmp_path / "data" / "C1")
    case(tmp_path / "C2")
    (tmp_path / "list.csv").write_text("case,case_id\ndata/C1,\nC2,Mueller\n")
    assert names(tmp_path / "list.csv") == ["C1", "Mueller"]


def test_a_csv_of_files_takes_no_others_from_their_folder(tmp_path: Path) -> None:
    touch(tmp_path / "flat", *(f"P{n}_{kind}.nii" for n in (1, 2) for kind in ("t1", "t1ce", "t2", "flair", "seg")))
    rows = ["t1,t1ce,t2,flair,seg", *(f"flat/P{n}_t1.nii,,flat/P{n}_t2.nii,,flat/P{n}_seg.nii" for n in (1, 2))]
    (tmp_path / "list.csv").write_text("\ufeff" + "\r\n".join(rows))  # as a spreadsheet writes it
    cases, _ = read_cases(tmp_path / "list.csv", allow_missing=["t1ce", "flair"])
    assert [each.case_id for each in cases] == ["P1", "P2"]
    assert [sorted(each.images) for each in cases] == [["t1", "t2"]] * 2
    assert [each.labels for each in cases] == [(tmp_path / "flat" / f"P{n}_seg.nii",) for n in (1, 2)]


def test_a_json_list(tmp_path: Path) -> None:
    case(tmp_path / "C1")
    case(tmp_path / "C2")
    images = {m: f"C2/C2_{m}.nii" for m in MODALITIES}
    (tmp_path / "list.json").write_text(json.dumps(["C1", {**images, "seg": "C2/C2_seg.nii", "case_id": "X"}]))
    assert names(tmp_path / "list.json") == ["C1", "X"]
    (tmp_path / "list.json").write_text(json.dumps([{"case": str(tmp_path / "C1")}]))
    assert names(tmp_path / "list.json") == ["C1"]


IMAGES = {m: f"C1/C1_{m}.nii" for m in MODALITIES}
UNFIT = ("../x", "a/b", "a\\b", ".", "-a", "a\nb", "x" * 101)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("absent", "does not exist"),
        ({"case": "C1", "color": "red"}, "unknown column color"),
        ({"t1": "C1/C1_t1.nii", "t2": "C1/nope.nii", "seg": "C1/C1_seg.nii"}, "nope.nii does not exist"),
        ({"t1": "C1/C1_t1.nii", "t2": "C1", "seg": "C1/C1_seg.nii"}, "C1 is a folder, not a file"),
        (IMAGES, "no label map"),
        (IMAGES | {"flair": "", "seg": "C1/C1_seg.nii"}, "no flair; expected flair, named like"),
        ({"t1": "C1/C1_t1.nii", "seg": "C1/C1_seg.nii"}, "no t1ce, t2, flair"),
        ({"t1": "C1/C1_t1.nii", "t2": "C1/C1_t1.nii", "seg": "C1/C1_seg.nii"}, "given as t1 and as t2"),
        (IMAGES | {"seg": "C1/nope.nii"}, "nope.nii does not exist"),
        ({"case": "C1", "t1": "C1/C1_t1.nii"}, "a case and files of its modalities"),
        ({"case": "n" * 5000}, "File name too long"),
        ({"case": "C1\0"}, "does not exist"),
        *(({"case": "C1", "case_id": name}, "a name that a file can have") for name in UNFIT),
        ({"case_id": "C1"}, "no path"),
        ({}, "no path"),
        ({"case": 7}, "expected a path"),
        (7, "expected a path"),
        (None, "expected a path"),
        ("", "expected a path"),
        (["C1"], "expected a path"),
    ],
)
def test_a_row_that_is_no_case_is_left_out_or_refused(tmp_path: Path, row: object, why: str) -> None:
    case(tmp_path / "C1")
    case(tmp_path / "C2")
    (tmp_path / "list.json").write_text(json.dumps(["C2", row]))
    cases, (note,) = read_cases(tmp_path / "list.json")
    assert [each.case_id for each in cases] == ["C2"]
    assert note.startswith("left out: ")
    assert why in note
    with pytest.raises(InputError, match=why):
        read_cases(tmp_path / "list.json", strict=True)


@pytest.mark.parametrize("content", ["", "{", '{"case": "C1"}', "7", "null", '"C1"', "\xff\xfe"])
def test_what_is_no_json_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"list\.json"):
        read_cases(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("list.json", "[" * 100_000, "cannot be read (maximum recursion"),
        ("list.json", '["\\ud800"]', "cannot be read ('utf-8' codec can't encode"),
        ("list.json", "[]", "0 cases, none"),
        ("list.csv", "", "0 cases, none"),
        ("list.csv", "case,note\nC1,\n", "unknown or repeated column note; expected of case, case_id, patient, t1"),
        ("list.csv", "case;case_id\nC1;a\n", "unknown or repeated column case;case_id"),
        ("list.csv", "t1,t1,t2,seg\na,b,c,d\n", "unknown or repeated column t1;"),
        ("list.csv", "case\nC1,1\n", "{'case': 'C1', None: ['1']}"),
        ("list.csv", 'case\n"C1', "cannot be read (unexpected end of data)"),
        ("list.csv", "case\n" + "x" * 200_000, "cannot be read (field larger"),
    ],
)
def test_a_malformed_list(tmp_path: Path, name: str, content: str, why: str) -> None:
    case(tmp_path / "C1")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read_cases(tmp_path / name)
    assert why in str(error.value)
    assert error.value.where == str(tmp_path / name)


VALUES = st.none() | st.integers() | st.booleans() | st.text(max_size=6)
ENTRIES = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), VALUES, max_size=4)


@given(entries=st.lists(VALUES | ENTRIES | st.lists(VALUES, max_size=2), max_size=3) | VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_an_input_error(tmp_path: Path, entries: object) -> None:
    (tmp_path / "list.json").write_text(json.dumps(entries))
    with pytest.raises(InputError) as error:
        read_cases(tmp_path / "list.json")
    str(error.value).encode()  # can be shown


@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet='case,t1"\n\\x/.é', max_size=80).map(str.encode)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["list.csv", "list.json"])
def test_any_content_is_an_input_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        read_cases(tmp_path / name)


# Patients


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_patient_is_told_by_the_name_unless_a_list_says_it(tmp_path: Path, kind: str) -> None:
    rows = [("sub-01_ses-1", ""), ("sub-01_ses-2", ""), ("P01-1", "Ö. N."), ("P01-2", " Ö. N. "), ("sub-01_ses-3", "2")]
    for name, _ in rows:
        case(tmp_path / name)
    text = "\n".join(["case,patient", *(f"{name},{patient}" for name, patient in rows)])
    if kind == "json":
        text = json.dumps([{"case": name, "patient": patient} for name, patient in rows])
    (tmp_path / f"list.{kind}").write_text(text, encoding="utf-8")
    cases, notes = read_cases(tmp_path / f"list.{kind}")
    assert [each.patient for each in cases] == ["sub-01", "sub-01", "Ö. N.", "Ö. N.", "2"]
    assert notes == []


def test_names_that_may_be_of_one_patient_are_told_until_a_list_says_whom_they_show(tmp_path: Path) -> None:
    rows = [f"P{number:02}-{scan}" for number in range(7) for scan in (1, 2)] + ["case_001", "case_002"]
    for name in rows:
        case(tmp_path / name)
    cases, (note,) = read_cases(tmp_path)
    assert len({each.patient for each in cases}) == len(rows)
    assert note.startswith(
        "P00-1, P00-2; P01-1, P01-2; P02-1, P02-2; P03-1, P03-2; P04-1, P04-2 and others: their names"
    )
    assert "`patient`" in note
    said = [{"case": name, "patient": name} for name in rows[:14]]
    (tmp_path / "list.json").write_text(json.dumps([*said, *rows[14:]]))
    assert read_cases(tmp_path / "list.json")[1] == [], "also where they are patients of their own"


# Names that no file or screen can hold


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines", "bell\x07", "x" * 151, "ö" * 76])
def test_a_name_that_the_run_folder_cannot_hold(tmp_path: Path, name: str) -> None:
    case(tmp_path / "C1")
    touch(tmp_path / name, *BARE)
    cases, (note,) = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1"]
    assert "expected a name in UTF-8 of at most 150 bytes, without control characters" in note
    note.encode()
    with pytest.raises(InputError, match="Rename it"):
        read_cases(tmp_path, strict=True)


# Folders that are not what was meant


def test_what_lies_beside_the_cases_is_no_case(tmp_path: Path) -> None:
    for name in ("C1", "C2", ".trash"):
        case(tmp_path / name)
    touch(tmp_path / "results", "C1_seg.nii.gz", "C2_seg.nii.gz", "C1_preview.png")
    touch(tmp_path / "runs" / "2026-01-01-1" / "test", "C1_seg.nii.gz")
    touch(tmp_path / "runs" / "2026-01-01-1" / "cache", "C1-s16-0123456789abcdef.json")
    touch(tmp_path / "run" / "test", "C1_seg.nii.gz", "scores.csv")
    touch(tmp_path / "cache", "C1-s16-0123456789abcdef.json")
    assert names(tmp_path) == ["C1", "C2"]


def test_a_label_map_without_images_is_told(tmp_path: Path) -> None:
    case(tmp_path / "C1")
    touch(tmp_path / "C2", "C2_seg.nii")
    cases, (note,) = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1"]
    assert "C2: no t1, t1ce, t2, flair" in note


def test_a_folder_of_case_folders_beside_the_cases_is_told(tmp_path: Path) -> None:
    case(tmp_path / "C1")
    case(tmp_path / "more" / "C2")
    cases, notes = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1"]
    assert notes == [f"not looked into: {tmp_path / 'more'}, which holds case folders"]


def test_a_case_is_no_folder_of_cases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"C1: holds images itself; .*Pass the folder above it"):
        read_cases(case(tmp_path / "C1"))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cases_that_lie_deeper_are_found_for_the_advice(tmp_path: Path, depth: int) -> None:
    """HGG and LGG folders; or sub-01/ses-1/anat."""
    folder = tmp_path.joinpath(*["deep"] * depth)
    case(folder / "C1")
    with pytest.raises(InputError, match="holds no case folder, but") as error:
        read_cases(tmp_path)
    assert f"{folder / 'C1'} is one" in error.value.found
    assert f"such as {folder}," in error.value.advice


def test_an_empty_folder(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    touch(tmp_path / "runs" / "1" / "test", "C1_seg.nii")
    with pytest.raises(InputError, match=r"holds no case folder; expected a folder that holds a folder for each case"):
        read_cases(tmp_path)


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case(tmp_path / "C1")
    (tmp_path / "lost+found").mkdir()
    look = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return look(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    cases, (note,) = read_cases(tmp_path)
    assert [each.case_id for each in cases] == ["C1"]
    assert "lost+found: cannot be read (Permission denied)" in note

"""File names of every convention, matched as whole tokens in any case of letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_brats.case_files import TOKENS, find_case, kind_of, named_case, stem
from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files; finding never opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII", ".NII.GZ"])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(
    ("case_id", "endings"),
    [
        ("BraTS20_Training_001", ("_t1", "_t1ce", "_t2", "_flair", "_seg")),
        ("BraTS2021_00006", ("_t1", "_t1ce", "_t2", "_flair", "_seg")),
        ("BraTS-GLI-00000-000", ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")),
        ("BraTS_0013", ("_0000", "_0001", "_0002", "_0003", "_seg")),
        ("patient.7", ("_T1", "_CT1", "_T2", "_FLAIR", "_seg")),
        ("patient 7", (" t1", " t1c", " t2", " fla", " seg")),
        ("P1", (".T1w", ".T1gd", ".T2w", ".flair", ".segm")),
        ("BraTS18_2013_0_1", ("_t1", "_t1ce", "_t2", "_flair", "_seg")),
    ],
)
def test_every_convention(tmp_path: Path, case_id: str, endings: tuple[str, ...], upper: bool, suffix: str) -> None:
    names = [case_id + (e.upper() if upper else e) + suffix for e in endings]
    case = find_case(touch(tmp_path / "folder", *names))
    assert case.case_id == case_id
    assert [case.images[m].name for m in MODALITIES] == names[:4]
    assert [path.name for path in case.labels] == [names[4]]
    assert (case.stacked, case.missing) == (None, [])
    assert case.numbered == ("_0000" in endings)


def test_bare_modality_names_take_the_folders_name(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path / "Patient_12", "t1.nii", "T1ce.nii", "t2.nii", "FLAIR.nii.gz"))
    assert case.case_id == "Patient_12"
    assert case.missing == []


def test_differing_prefixes_take_the_folders_name(tmp_path: Path) -> None:
    assert find_case(touch(tmp_path / "case", "a_t1.nii", "b_t2.nii")).case_id == "case"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x_t1.nii", "t1"),
        ("x_t1n.nii", "t1"),
        ("x_t1c.nii", "t1ce"),
        ("x_t1ce.nii", "t1ce"),
        ("x_t2f.nii", "flair"),
        ("x_t2w.nii", "t2"),
        ("x_t1cee.nii", None),
        ("xt1.nii", None),  # part of a longer token
        ("t1_x.nii", None),  # only the last token counts
        ("x_t1_brain.nii", None),
        ("x_flair_seg.nii", "seg"),
        ("BraTS-GLI-00000-000.nii", None),
        ("BRATS_001.nii.gz", None),
        ("x_00000.nii", None),
        ("W39_1998.09.19_Segm.nii", "seg"),
    ],
)
def test_only_the_whole_last_token_decides(name: str, kind: str | None) -> None:
    assert kind_of(Path(name)) == kind


def test_no_token_has_two_meanings() -> None:
    tokens = [token for kind in TOKENS.values() for token in kind]
    assert len(tokens) == len(set(tokens))


def test_stem_drops_the_suffix_only() -> None:
    names = ["a.b.nii", "a.b.nii.gz", "A.B.NII.GZ", "a.nii.b"]
    assert [stem(Path(name)) for name in names] == ["a.b", "a.b", "A.B", "a.nii.b"]


def test_the_misnamed_label_of_case_355(tmp_path: Path) -> None:
    images = [f"BraTS20_Training_355_{m}.nii" for m in MODALITIES]
    case = find_case(touch(tmp_path / "BraTS20_Training_355", *images, "W39_1998.09.19_Segm.nii"))
    assert case.case_id == "BraTS20_Training_355"
    assert case.labels == (tmp_path / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii",)


def test_files_that_are_no_images_of_the_case_are_passed_over(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "case",
        *(f"case_{m}.nii.gz" for m in MODALITIES),
        ".partial-17-case_seg.nii.gz",  # a hidden partial file of a run that was killed
        "._case_t1.nii.gz",  # macOS
        "case_t1.json",
        "case_brainmask.nii.gz",
    )
    (folder / "old_t1.nii").mkdir()
    case = find_case(folder)
    assert {m: p.name for m, p in case.images.items()} == {m: f"case_{m}.nii.gz" for m in MODALITIES}
    assert case.labels == ()


def test_a_missing_modality_is_named(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path / "case", "c_t1ce.nii", "c_flair.nii"))
    assert case.missing == ["t1", "t2"]
    assert list(case.images) == ["t1ce", "flair"]


@pytest.mark.parametrize("names", [("c_t1.nii",), ("c_t1.nii", "c_seg.nii"), ("scan.nii", "other.nii"), ()])
def test_fewer_than_two_modalities_is_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"at least 2 of t1, t1ce, t2, flair.*\*_t2f\.nii.*pass --t1") as error:
        find_case(touch(tmp_path / "case", *names))
    assert error.value.where == str(tmp_path / "case")


@pytest.mark.parametrize("second", ["c_t1c.nii", "c_t1ce.nii.gz", "C_T1CE.nii", "d_0001.nii"])
def test_a_modality_twice_is_an_error(tmp_path: Path, second: str) -> None:
    folder = touch(tmp_path / "case", "c_t1.nii", "c_t1ce.nii", "c_t2.nii", "c_flair.nii", second)
    with pytest.raises(InputError, match=r"t1ce twice \(.*\).*name the right file with --t1ce") as error:
        find_case(folder)
    assert "c_t1ce.nii" in error.value.found
    assert second in error.value.found


def test_a_label_twice_stops_training_only(tmp_path: Path) -> None:
    names = [f"c_{name}.nii.gz" for name in (*MODALITIES, "seg", "Segm")]
    case = find_case(touch(tmp_path / "c", *names))
    assert [path.name for path in case.labels] == ["c_Segm.nii.gz", "c_seg.nii.gz"]


def test_one_file_cannot_be_two_modalities(tmp_path: Path) -> None:
    folder = touch(tmp_path / "c", "c_t1.nii.gz", "c_t2.nii.gz")
    with pytest.raises(InputError, match="given as t2 and as flair"):
        find_case(folder, {"flair": folder / "c_t2.nii.gz"})


def test_numbers_that_are_told_are_no_guess(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *(f"case_000{n}.nii.gz" for n in range(4)))
    told = {m: folder / f"case_000{n}.nii.gz" for m, n in zip(MODALITIES, (1, 2, 3, 0), strict=True)}
    assert find_case(folder).numbered
    assert not find_case(folder, told).numbered


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied"):
        find_case(tmp_path)


def test_a_file_as_the_case_takes_no_modalities(tmp_path: Path) -> None:
    folder = touch(tmp_path / "c", "4d.nii.gz", "c_t2.nii.gz")
    with pytest.raises(InputError, match="Pass the case's folder"):
        find_case(folder / "4d.nii.gz", {"t2": folder / "c_t2.nii.gz"})


def test_explicit_paths_go_before_names(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *(f"c_{m}.nii" for m in MODALITIES), "d_t1.nii")
    elsewhere = touch(tmp_path / "elsewhere", "post.nii.gz") / "post.nii.gz"
    case = find_case(folder, {"t1": folder / "d_t1.nii", "t1ce": elsewhere})
    assert dict(case.images) == {
        "t1": folder / "d_t1.nii",
        "t1ce": elsewhere,
        "t2": folder / "c_t2.nii",
        "flair": folder / "c_flair.nii",
    }


def test_explicit_paths_alone_make_a_case(tmp_path: Path) -> None:
    folder = touch(tmp_path / "Mueller", "s3.nii", "s7.nii", "s9.nii")
    case = find_case(folder, {"flair": folder / "s9.nii", "t1": folder / "s3.nii"})
    assert list(case.images) == ["t1", "flair"]  # in the order of the channels
    assert case.missing == ["t1ce", "t2"]
    assert case.case_id == "Mueller"


def test_one_unnamed_file_is_taken_as_stacked(tmp_path: Path) -> None:
    folder = touch(tmp_path / "task01", "BRATS_001.nii.gz", "BRATS_001_seg.nii.gz")
    case = find_case(folder)
    assert (case.case_id, case.stacked, case.missing) == ("BRATS_001", folder / "BRATS_001.nii.gz", [])
    assert case.labels == (folder / "BRATS_001_seg.nii.gz",)


def test_a_file_is_taken_as_stacked(tmp_path: Path) -> None:
    path = touch(tmp_path, "BRATS_484.nii.gz") / "BRATS_484.nii.gz"
    case = find_case(path)
    assert (case.case_id, case.folder, case.stacked, dict(case.images)) == ("BRATS_484", tmp_path, path, {})


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; expected a case folder or a 4-D NIfTI file"):
        find_case(tmp_path / "nowhere")


def test_files_named_one_by_one(tmp_path: Path) -> None:
    names = ("P7_a_t1.nii", "P7_a_t2.nii", "P8_a_t1.nii", "P8_seg.nii")
    folder = touch(tmp_path, *names)
    case = named_case({"t1": folder / names[0], "t2": folder / names[1]})
    assert (case.case_id, case.labels) == ("P7_a", ()), "what else lies in the folder belongs to others"
    assert dict(case.images) == {"t1": folder / names[0], "t2": folder / names[1]}
    with pytest.raises(InputError, match="no t1ce, t2, flair"):
        named_case({"t1": folder / names[0]})
    with pytest.raises(InputError, match="given as t1 and as t2"):
        named_case({"t1": folder / names[0], "t2": folder / names[0]})

"""A folder's files: which are used, which are named in a note, and which make an error; following an error's advice."""

from __future__ import annotations

import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case_files import CaseFiles, as_columns, find_case, named_case, niftis
from lowmem_brats.errors import InputError

BRATS = ("P1_t1.nii.gz", "P1_t1ce.nii.gz", "P1_t2.nii.gz", "P1_flair.nii.gz")
T1, T1CE, T2, FLAIR = BRATS
NO_T1CE = (T1, T2, FLAIR)
UNFETCHED = "../.git/annex/objects/3x/Kq/MD5E-s1--0a.nii.gz/MD5E-s1--0a.nii.gz"


def touch(folder: Path, *names: str) -> Path:
    """Make empty files, folders (`NAME/`) and links (`NAME->TARGET`); finding never opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        elif "->" in name:
            link, target = name.split("->")
            (folder / link).symlink_to(target)
        else:
            (folder / name).touch()
    return folder


def used(case: CaseFiles) -> list[str]:
    """Names of the images, in the order of the modalities."""
    return [path.name for path in case.images.values()]


# --- names of every convention ---


@pytest.mark.parametrize(
    ("case_id", "endings"),
    [
        ("BraTS20_Training_001", "_t1 _t1ce _t2 _flair _seg"),
        ("BraTS2021_00006", "_t1 _t1ce _t2 _flair _seg"),
        ("BraTS-GLI-00000-000", "-t1n -t1c -t2w -t2f -seg"),
        ("BraTS_0013", "_0000 _0001 _0002 _0003 _seg"),
        ("patient.7", "_T1 _CT1 _T2 _FLAIR _seg"),
        ("P1", ".T1w .T1gd .T2w .flair .segm"),
        ("BraTS18_2013_0_1", "_t1 _t1ce _t2 _flair _seg"),
        ("sub-01", "_T1w _ce-gadolinium_T1w _T2w _FLAIR _desc-tumor_dseg"),
        ("sub-01_ses-2", "_acq-3d_T1w _ce-gd_T1w _run-2_T2w _space-T1w_desc-brain_FLAIR _seg"),
        ("UPENN-GBM-00001_11", "_T1 _T1GD _T2 _FLAIR _segm"),
        ("UCSF-PDGM-0004", "_T1_bias _T1c_bias _T2_bias _FLAIR_bias _tumor_segmentation"),
        ("UCSD-PTGBM-0002_01", "_T1pre _T1post _T2 _FLAIR _seg"),
        ("TCGA-02-0006_1996.08.23", "_t1 _t1Gd _t2 _flair _GlistrBoost"),
        ("PatientID_0003_Timepoint_1", "_brain_t1n _brain_t1c _brain_t2w _brain_t2f _seg"),
        ("Mueller", "_AX_T1 _AX_T1_post_3 _T2_TSE _T2_FLAIR _seg"),
        ("P2", "_T1_native _CE_T1 _t2_tse_tra _t2_space_dark-fluid _seg"),
        ("P3_post", "_t1 _t1ce _t2 _flair _seg"),  # after surgery
    ],
)
def test_every_convention(tmp_path: Path, case_id: str, endings: str) -> None:
    for spelled, suffix in ((endings, ".nii"), (endings, ".nii.gz"), (endings.upper(), ".NII.GZ")):
        names = [case_id + ending + suffix for ending in spelled.split()]
        case = find_case(touch(tmp_path / f"folder {spelled} {suffix}", *names))
        assert case.case_id == case_id
        assert used(case) == names[:4]
        assert [path.name for path in case.labels] == [names[4]]
        assert (case.stacked, case.missing, case.notes) == (None, [], ())
        assert case.numbered == ("_0000" in endings)


@pytest.mark.parametrize(
    "names",
    [
        ("t1.nii", "T1ce.nii", "t2.nii", "FLAIR.nii.gz"),
        ("T1_r2s_bet.nii.gz", "CT1_r2s_bet_reg.nii.gz", "T2_r2s_bet_reg.nii.gz", "FLAIR_r2s_bet_reg.nii.gz"),
        ("T1_to_SRI_brain.nii", "T1CE_to_SRI_brain.nii", "T2_to_SRI_brain.nii", "FL_to_SRI_brain.nii"),
        ("t1_bet_raw.nii", "t1c_bet_raw.nii", "t2_bet_raw.nii", "fla_bet_raw.nii"),
        ("T1.nii", "T1+C.nii", "T2.nii", "T2 FLAIR.nii"),
        ("T1.nii", "T1 post.nii", "T2.nii", "Flair.nii"),
        ("T1_(2).nii", "ce-gadolinium_T1w.nii", "AX_T2.nii", "FLAIR_T2.nii"),
    ],
)
def test_names_without_a_case_take_the_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    case = find_case(touch(tmp_path / "Patient_12", *names))
    assert (case.case_id, used(case), case.notes) == ("Patient_12", list(names), ())


def test_the_misnamed_label_of_case_355(tmp_path: Path) -> None:
    images = [f"BraTS20_Training_355_{m}.nii" for m in MODALITIES]
    case = find_case(touch(tmp_path / "BraTS20_Training_355", *images, "W39_1998.09.19_Segm.nii"))
    assert case.case_id == "BraTS20_Training_355"
    assert case.labels == (tmp_path / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii",)
    assert case.notes == ()


# --- what else lies there is named ---

NOT_UNDERSTOOD, REGIONS, FOLDER = "the name is not understood", "a map of regions", "a folder, not a file"
TWIN = "P1_T1_bet.nii.gz is the skull-stripped one"


@pytest.mark.parametrize(
    ("others", "notes"),
    [
        ((), []),
        ((".partial-17-P1_seg.nii.gz", "._P1_t1.nii.gz", "P1_t1.json", "P1_preview.png"), []),  # hidden, or no NIfTI
        (("P1_seg.nii.gz", "P1_Segm.nii"), []),  # an earlier result, a label map
        (("P1_adc.nii.gz",), [f"P1_adc.nii.gz ({NOT_UNDERSTOOD})"]),
        (("P1_adc.NII.GZ",), [f"P1_adc.NII.GZ ({NOT_UNDERSTOOD})"]),
        (("P1_t1_copy.nii", "P1_0004.nii"), [f"P1_0004.nii, P1_t1_copy.nii ({NOT_UNDERSTOOD})"]),
        (("P1_adc.nii->/nowhere",), [f"P1_adc.nii ({NOT_UNDERSTOOD})"]),
        (("P1_brain_mask.nii.gz", "P1_t1_bet_mask.nii"), [f"P1_brain_mask.nii.gz, P1_t1_bet_mask.nii ({REGIONS})"]),
        (("old_t1.nii/", "x.nii.gz/", "P1_seg.nii/"), [f"P1_seg.nii, old_t1.nii, x.nii.gz ({FOLDER})"]),
        (
            ("P1_adc.nii", "P1_brainmask.nii", "dti.nii/", "P1_seg.nii"),
            [f"P1_adc.nii ({NOT_UNDERSTOOD})", f"P1_brainmask.nii ({REGIONS})", f"dti.nii ({FOLDER})"],
        ),
    ],
)
def test_files_beside_four_modalities(tmp_path: Path, others: tuple[str, ...], notes: list[str]) -> None:
    case = find_case(touch(tmp_path / "case", *BRATS, *others))
    assert used(case) == list(BRATS)
    assert list(case.notes) == [f"not used: {note}" for note in notes]


@pytest.mark.parametrize(
    ("stripped", "raw"),
    [
        ("x_T1_bet", "x_T1"),
        ("x_T1_brain", "x_T1"),
        ("x_brain_T1", "x_T1"),
        ("x_T1_stripped", "X_t1"),
        ("x_T1_skull_stripped", "x_T1"),
        ("x_T1", "x_T1_unstripped"),
        ("x_T1_bet", "x_T1_unstripped"),
        ("x_T1_bet_raw", "x_T1_skull_raw"),
        ("x_T1_defaced_bet", "x_T1_defaced"),
        ("x_T1_n4_reg_bet", "x_T1"),
        ("x_T1_n4_bet", "x_T1_n4"),
        ("x_T1_to_SRI_brain", "x_T1_to_SRI"),
        ("x_T1_to_SRI_brain", "x_T1_raw"),
        ("sub-01_desc-brain_T1w", "sub-01_T1w"),
        ("sub-01_acq-3d_desc-brain_T1w", "sub-01_acq-3d_T1w"),
        ("sub-01_space-MNI_desc-brain_T1w", "sub-01_desc-preproc_T1w"),
    ],
)
def test_the_skull_stripped_twin_is_taken(tmp_path: Path, stripped: str, raw: str) -> None:
    rest = [f"{stripped.split('_')[0]}_{name}.nii.gz" for name in ("t1ce", "T2w", "FLAIR")]
    case = find_case(touch(tmp_path, f"{stripped}.nii.gz", f"{raw}.nii.gz", *rest))
    assert used(case)[0] == f"{stripped}.nii.gz"
    assert case.notes == (f"not used: {raw}.nii.gz ({stripped}.nii.gz is the skull-stripped one)",)


def test_of_three_the_one_that_is_stripped_by_its_name(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path, "P1_T1.nii.gz", "P1_T1_bet.nii.gz", "P1_T1_unstripped.nii.gz", *BRATS[1:]))
    assert case.images["t1"].name == "P1_T1_bet.nii.gz"
    assert case.notes == (f"not used: P1_T1.nii.gz, P1_T1_unstripped.nii.gz ({TWIN})",)


# --- errors ---

ADVICE_T1CE = "--allow-missing t1ce: then no enhancing tumour is found."
ERRORS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "no T1ce": (
        NO_T1CE,
        [
            f": no t1ce among {FLAIR}, {T1}, {T2}; expected t1ce, named like *_t1ce, *-t1c, *_T1_post, *_T1Gd, ",
            f". Add --t1ce FILE. To go on without, add {ADVICE_T1CE}",
        ],
    ),
    "no T1ce, a name not understood": (
        (*NO_T1CE, "P1_scan.nii.gz"),
        [
            "; the name P1_scan.nii.gz cannot be understood; ",
            "If P1_scan.nii.gz is the t1ce image, add --t1ce {folder}/P1_scan.nii.gz. ",
            ADVICE_T1CE,
        ],
    ),
    "no T1ce, a name that says two things": (
        (*NO_T1CE, "T1-C.nii.gz"),
        ["the name T1-C.nii.gz", "--t1ce {folder}/T1-C"],
    ),
    "no T1ce, many names not understood": (
        (*NO_T1CE, "b.nii", "a.NII.GZ", "c.nii->/nowhere"),
        ["the names a.NII.GZ, b.nii, c.nii cannot be understood", "Add --t1ce FILE."],
    ),
    "two missing": (
        (T1, T2),
        [
            "no t1ce, flair among",
            "Add --t1ce FILE --flair FILE.",
            "add --allow-missing t1ce --allow-missing flair: then",
        ],
    ),
    "T1ce of another format": ((*NO_T1CE, "P1_t1ce.mha"), [f"among {FLAIR}, {T1}, {T2} (there is also P1_t1ce.mha);"]),
    "one alone": (
        (T1, "P1_seg.nii"),
        ["no t1ce, t2, flair", "at least 2 of t1, t1ce, t2, flair: t1ce, named", "Add --t1ce"],
    ),
    "no modality": (("scan.nii", "other.nii"), ["no t1, t1ce, t2, flair among other.nii, scan.nii; the names"]),
    "nothing": ((), ["no t1, t1ce, t2, flair and no NIfTI file; expected at least 2"]),
    "not fetched": (
        (T1, f"{T1CE}->{UNFETCHED}", T2, FLAIR),
        [f"/{T1CE}: is a link whose content was not fetched", "datalad get {folder}, or git annex get {folder}."],
    ),
    "none fetched": (
        tuple(f"{name}->{UNFETCHED}{i}" for i, name in enumerate(BRATS)),
        [f"/{T1}: is a link whose content was not fetched", f"; so are {T1CE}, {T2}, {FLAIR};"],
    ),
    "a link to nowhere": ((T1, f"{T1CE}->/no/x.nii", T2, FLAIR), [f"/{T1CE}: is a link to /no/x.nii, which cannot be"]),
    "a link to itself": (
        (T1, f"{T1CE}->{T1CE}", T2, FLAIR),
        [f"/{T1CE}: is a link to {T1CE}, which cannot be reached"],
    ),
    "a folder": ((T1, f"{T1CE}/", T2, FLAIR), [f"/{T1CE}: is a folder", "Add --t1ce {folder}/P1_t1ce.nii.gz/FILE."]),
    "the stripped twin is not fetched": (
        ("P1_T1.nii.gz", f"P1_T1_bet.nii.gz->{UNFETCHED}", *BRATS[1:]),
        ["/P1_T1_bet.nii.gz: is a link whose content"],
    ),
    "a 4-D file that is not fetched": ((f"BRATS_001.nii.gz->{UNFETCHED}",), ["/BRATS_001.nii.gz: is a link whose"]),
    "twice": (
        (*BRATS, "P1_t1c.nii.gz"),
        [
            "t1ce twice (P1_t1c.nii.gz, P1_t1ce.nii.gz)",
            "add --t1ce {folder}/P1_t1c.nii.gz, or add --t1ce {folder}/P1_t1ce.nii.gz.",
        ],
    ),
    "twice, a bias-corrected twin": ((*BRATS, "P1_t2_n4.nii.gz"), ["t2 twice (P1_t2.nii.gz, P1_t2_n4.nii.gz)"]),
    "twice, two runs": (
        ("sub-1_run-1_T1w.nii", "sub-1_run-2_desc-brain_T1w.nii", "sub-1_T2w.nii"),
        ["t1 twice (sub-1_run-1_T1w.nii, sub-1_run-2_desc-brain_T1w.nii)"],
    ),
    "twice, two kinds of stripping": ((*BRATS, "P1_t1_bet.nii", "P1_t1_brain.nii"), ["t1 twice ("]),
    "twice, stripped of another case": ((*BRATS, "P2_t1_bet.nii"), ["t1 twice (P1_t1.nii.gz, P2_t1_bet.nii)"]),
    "all twice": (
        tuple(f"U_{m}{end}.nii" for m in ("T1", "T1c", "T2", "FLAIR") for end in ("", "_bias")),
        [
            "t1 twice (U_T1.nii, U_T1_bias.nii); t1ce twice (U_T1c.nii, U_T1c_bias.nii); t2 twice",
            "add --t1 {folder}/U_T1.nii --t1ce {folder}/U_T1c.nii --t2 {folder}/U_T2.nii --flair {folder}/U_FLAIR.nii,",
        ],
    ),
    "another patient": (
        (T1, "P2_t1ce.nii.gz", T2, FLAIR),
        [
            f"files of different cases: {T1} of P1, P2_t1ce.nii.gz of P2, ",
            "if they do belong together, add --t1ce {folder}/P2_t1ce.nii.gz.",
        ],
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_say_what_is_wrong_and_how_to_go_on(tmp_path: Path, what: str) -> None:
    names, parts = ERRORS[what]
    folder = touch(tmp_path / "case", *names)
    with pytest.raises(InputError) as error:
        find_case(folder)
    for part in parts:
        assert part.format(folder=folder) in str(error.value)


def test_in_a_training_errors_advise_a_list(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *NO_T1CE, "x.nii")
    with pytest.raises(
        InputError, match=r"in a list, with \S+/x\.nii in column t1ce\. To go on .* --allow-missing t1ce"
    ):
        find_case(folder, say=as_columns)


def options_in(advice: str) -> list[tuple[str, str]]:
    """Options and their values as the advice shows them."""
    words = shlex.split(re.sub(r"[.:,](?= |$)", " ", advice[advice.index("--") :]))
    return [(option[2:], value) for option, value in pairwise(words) if option.startswith("--")]


FOLLOWED = {
    "the file named": ((*NO_T1CE, "P1_scan.nii"), {"t1ce": "P1_scan.nii"}),
    "a file in a folder with a space and a quote": ((*NO_T1CE, "it's (1).nii"), {"t1ce": "it's (1).nii"}),
    "without": (NO_T1CE, {}),
    "without, and a file not understood": ((*NO_T1CE, "a.nii", "b.nii"), {}),
    "another patient": ((T1, "P2_t1ce.nii", T2, FLAIR), {"t1ce": "P2_t1ce.nii"}),
    "twice": ((*BRATS, "P1_t1c.nii"), {"t1ce": "P1_t1c.nii"}),
    "all twice": (
        (*BRATS, *(name.replace(".nii", "_n4.nii") for name in BRATS)),
        dict(zip(MODALITIES, BRATS, strict=True)),
    ),
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_the_advice_can_be_followed_to_the_letter(tmp_path: Path, what: str) -> None:
    names, taken = FOLLOWED[what]
    folder = touch(tmp_path / "a case", *names)
    with pytest.raises(InputError) as error:
        find_case(folder)
    options = options_in(error.value.advice)
    explicit: dict[str, Path] = {}
    for option, value in options:
        if option in MODALITIES and value != "FILE":
            explicit.setdefault(option, Path(value))
    allowed = [] if explicit else [value for option, value in options if option == "allow-missing"]
    case = find_case(folder, explicit, allowed)
    for modality, name in taken.items():
        assert case.images[modality] == folder / name
    assert case.missing == allowed == ([] if taken else ["t1ce"])
    assert_accounted_for(folder, case)


@pytest.mark.parametrize("packed", [{"t1ce"}, {"t2", "flair"}, set(MODALITIES)])
def test_files_in_folders_of_their_names(tmp_path: Path, packed: set[str]) -> None:
    """So archives of some distributors unpack."""
    inside: dict[str, Path] = {}
    for modality, name in zip(MODALITIES, BRATS, strict=True):
        if modality in packed:
            inside[modality] = tmp_path / "case" / name / f"00000057_brain_{modality}.nii"
            touch(inside[modality].parent, inside[modality].name)
        else:
            touch(tmp_path / "case", name)
    with pytest.raises(InputError, match="is a folder, not a file") as error:
        find_case(tmp_path / "case")
    advised = {modality: Path(file) for modality, file in options_in(error.value.advice)}
    assert advised == inside
    assert inside.items() <= find_case(tmp_path / "case", advised).images.items()


# --- missing modalities ---


@pytest.mark.parametrize("names", [NO_T1CE, (T1, T2), (T1CE, FLAIR), (T2, FLAIR, "P1_adc.nii")])
def test_a_missing_modality_must_be_allowed(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = touch(tmp_path / "case", *names)
    missing = [m for m, name in zip(MODALITIES, BRATS, strict=True) if name not in names]
    case = find_case(folder, allow_missing=missing)
    assert (case.missing, used(case)) == (missing, [name for name in BRATS if name in names])
    assert find_case(folder, allow_missing=MODALITIES) == case
    for refused in missing:
        with pytest.raises(InputError, match=f"no {refused} among"):
            find_case(folder, allow_missing={*missing} - {refused})


def test_an_allowed_modality_that_is_there_is_used(tmp_path: Path) -> None:
    assert used(find_case(touch(tmp_path, *BRATS), allow_missing=MODALITIES)) == list(BRATS)


@pytest.mark.parametrize("names", [(T1,), ("P1_seg.nii",), ("a.nii", "b.nii"), ()])
def test_two_modalities_must_be_there(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 of t1, t1ce, t2, flair") as error:
        find_case(touch(tmp_path, *names), allow_missing=MODALITIES)
    assert "--allow-missing" not in error.value.advice


@pytest.mark.parametrize("trouble", [f"->{UNFETCHED}", "->/nowhere", "/"])
def test_a_file_that_cannot_be_opened_is_not_missing(tmp_path: Path, trouble: str) -> None:
    folder = touch(tmp_path / "case", *NO_T1CE, f"{T1CE}{trouble}")
    with pytest.raises(InputError, match=T1CE):
        find_case(folder, allow_missing=["t1ce"])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touch(tmp_path, *BRATS)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != T1CE)  # root may read anything
    with pytest.raises(InputError, match=r"P1_t1ce\.nii\.gz: cannot be read \(Permission denied\)"):
        find_case(folder)


# --- files of one case ---


def named(prefixes: str) -> list[str]:
    """A name for each modality: T1, T1ce, T2, FLAIR with these prefixes."""
    return [f"{p}_{m}.nii" for p, m in zip(prefixes.split(), ("T1", "T1ce", "T2", "FLAIR"), strict=True)]


@pytest.mark.parametrize(
    ("names", "case_id"),
    [
        (named("P1 p1 P1 P1"), "P1"),
        (named("P-1 P_1 P.1 P-1"), "case"),  # separators
        (["t1.nii", "P1_t1ce.nii", "t2.nii", "P1_flair.nii"], "P1"),
        (named("0007 0007 0007 0007"), "0007"),
        (named("20240131 20240131 20240131 20240131"), "20240131"),
        (["P1_T1_3.nii", "P1_T1_post_11.nii", "P1_T2_4.nii", "P1_FLAIR_5a.nii"], "P1"),
        (["P1_T1_20240131_3.nii", "P1_T1ce_20240131_4.nii", "P1_T2_20240131_5.nii", "P1_FLAIR_20240131_6.nii"], "P1"),
        (["P1_T1_1.nii", "P1_T1ce_1.nii", "P1_T2_2.nii", "P1_FLAIR.nii"], "P1"),
        (["t1_001.nii", "t1ce_001.nii", "t2_001.nii", "flair_1mm.nii"], "case"),
        (["P1_T1.nii", "P1_T1ce_reg.nii", "P1_T2_n4.nii", "P1_FLAIR_bet.nii"], "P1"),
        (["P1_AX_T1.nii", "P1_3D_T1_post.nii", "P1_SAG_T2.nii", "P1_FLAIR.nii"], "P1"),
        (["bet_P1_T1.nii", "P1_T1ce.nii", "P1_T2.nii", "P1_FLAIR.nii"], "case"),
        (
            ["sub-1_acq-a_T1w.nii", "sub-1_ce-gd_T1w.nii", "sub-1_run-3_T2w.nii", "sub-1_space-T1w_res-1_FLAIR.nii"],
            "sub-1",
        ),
    ],
)
def test_differences_within_a_case(tmp_path: Path, names: list[str], case_id: str) -> None:
    case = find_case(touch(tmp_path / "case", *names))
    assert (used(case), case.case_id, case.notes) == (names, case_id, ())


@pytest.mark.parametrize(
    ("prefixes", "numbers"),
    [
        ("003 006 004 005", "003, 004, 005, 006"),
        ("3 11 4a 5", "11, 3, 4a, 5"),
        ("3_AX 11_AX_3D 4_SAG 5", "11, 3, 4, 5"),
        ("case_3 case_11 case_4 case_5", "11, 3, 4, 5"),  # the folder's name is beside them
        ("3_case 11_case 4_case 5_case", "11, 3, 4, 5"),
        ("Series_3 Series_11 Series_4 Series_5", "11, 3, 4, 5"),
    ],
)
def test_series_numbers_are_allowed_and_told(tmp_path: Path, prefixes: str, numbers: str) -> None:
    case = find_case(touch(tmp_path / "case", *named(prefixes)))
    assert (used(case), case.case_id) == (named(prefixes), "case")
    assert case.notes == (f"{numbers} in the file names are taken for series numbers of one scan",)


@pytest.mark.parametrize(
    ("folder", "names", "odd"),
    [
        ("case", named("P1 P2 P1 P1"), "t1ce"),
        ("case", named("BraTS-GLI-00001-000 BraTS-GLI-00002-000 BraTS-GLI-00001-000 BraTS-GLI-00001-000"), "t1ce"),
        ("case", named("BraTS-GLI-00001-000 BraTS-GLI-00001-000 BraTS-GLI-00001-101 BraTS-GLI-00001-000"), "t2"),
        ("case", named("B20_Training_001 B20_Training_002 B20_Training_003 B20_Training_004"), "t1ce t2 flair"),
        ("case", named("00001 00002 00003 00004"), "t1ce t2 flair"),  # too long for series
        ("case", named("001 002 001 001"), "t1ce"),  # one number of two files is a patient's
        ("002", named("001 002 003 004"), "t1ce t2 flair"),  # and so is the folder's
        ("case", named("sub-01 sub-02 sub-01 sub-01"), "t1ce"),
        ("case", named("sub-01_ses-1 sub-01_ses-1 sub-01_ses-1 sub-01_ses-2"), "flair"),
        ("case", named("P1_pre P1_post P1_pre P1_pre"), "t1ce"),
        ("case", named("20240131 20240131 20240131 20230131"), "flair"),
        ("case", ["P1_T1_20240131.nii", "P1_T1ce_20240131.nii", "P1_T2_20230131.nii", "P1_FLAIR_20240131.nii"], "t2"),
        ("case", named("P1 P1 P1 P01"), "flair"),
        ("case", ["t1_001.nii", "t1ce_001.nii", "t2_002.nii", "flair_001.nii"], "t2"),
        ("case", ["t1.nii", "P1_t1ce.nii", "t2.nii", "P2_flair.nii"], "flair"),
    ],
)
def test_files_of_different_cases_are_refused(tmp_path: Path, folder: str, names: list[str], odd: str) -> None:
    case = touch(tmp_path / folder, *names)
    with pytest.raises(InputError, match="files of different cases") as error:
        find_case(case)
    named_in_advice = dict(options_in(error.value.advice))
    assert list(named_in_advice) == odd.split()
    explicit = {modality: Path(file) for modality, file in named_in_advice.items()}
    assert used(find_case(case, explicit)) == names


def test_two_files_of_two_patients(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", "P1_t1.nii", "P2_t1ce.nii")
    with pytest.raises(InputError, match="files of different cases"):
        find_case(folder, allow_missing=["t2", "flair"])


# --- files that are named ---


def test_explicit_paths_go_before_names(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *(f"c_{m}.nii" for m in MODALITIES), "d_t1.nii")
    elsewhere = touch(tmp_path / "elsewhere", "post.nii.gz") / "post.nii.gz"
    case = find_case(folder, {"t1": folder / "d_t1.nii", "t1ce": elsewhere})
    assert list(case.images.values()) == [folder / "d_t1.nii", elsewhere, folder / "c_t2.nii", folder / "c_flair.nii"]
    assert case.case_id == "c"
    assert case.notes == (
        "not used: c_t1.nii (--t1 names another file)",
        "not used: c_t1ce.nii (--t1ce names another file)",
    )


def test_a_file_whose_name_says_otherwise_is_taken_as_the_user_says(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *BRATS, "P1_scan.nii")
    case = find_case(folder, {"t1": folder / T1CE, "t1ce": folder / T1})
    assert used(case) == [T1CE, T1, T2, FLAIR]
    assert case.notes == ("not used: P1_scan.nii (the name is not understood)",)


def test_explicit_paths_alone_make_a_case(tmp_path: Path) -> None:
    folder = touch(tmp_path / "Mueller", "s3.nii", "s7.nii", "s9.nii")
    case = find_case(folder, {"flair": folder / "s9.nii", "t1": folder / "s3.nii"}, ["t1ce", "t2"])
    assert list(case.images) == ["t1", "flair"]  # in the order of the channels
    assert (case.missing, case.case_id) == (["t1ce", "t2"], "Mueller")
    assert case.notes == ("not used: s7.nii (the name is not understood)",)


def test_a_relative_path_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touch(tmp_path / "case", *NO_T1CE, "scan.nii")
    monkeypatch.chdir(folder)
    assert find_case(folder, {"t1ce": Path("scan.nii")}).notes == ()
    assert find_case(Path(), {"t1ce": folder / "scan.nii"}).notes == ()


@pytest.mark.parametrize("link", ["P1_t1ce.nii.gz", "scan.nii"])
def test_one_file_cannot_be_two_modalities(tmp_path: Path, link: str) -> None:
    folder = touch(tmp_path / "case", *NO_T1CE, f"{link}->{T2}")
    with pytest.raises(InputError, match="given as t1ce and as t2"):
        find_case(folder, {"t1ce": folder / link})


def test_numbers_that_are_told_are_no_guess(tmp_path: Path) -> None:
    folder = touch(tmp_path / "case", *(f"case_000{n}.nii.gz" for n in range(4)))
    told = {m: folder / f"case_000{n}.nii.gz" for m, n in zip(MODALITIES, (1, 2, 3, 0), strict=True)}
    assert find_case(folder).numbered
    assert not find_case(folder, told).numbered


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.nii: does not exist; .* Check the path"):
        find_case(touch(tmp_path, *BRATS), {"t1ce": tmp_path / "nope.nii"})


def test_files_named_one_by_one(tmp_path: Path) -> None:
    names = ("P7_a_t1.nii", "P7_a_t2.nii", "P8_a_t1.nii", "P8_seg.nii")
    folder = touch(tmp_path, *names)
    paths = {"t1": folder / names[0], "t2": folder / names[1]}
    case = named_case(paths, ["t1ce", "flair"])
    assert (case.case_id, case.labels) == ("P7_a", ()), "what else lies in the folder belongs to others"
    assert dict(case.images) == paths
    with pytest.raises(
        InputError, match=r"no t1ce, flair; .* with FILE in column t1ce, FILE in column flair\. To go on"
    ):
        named_case(paths)
    with pytest.raises(InputError, match="no t1ce, t2, flair"):
        named_case({"t1": folder / names[0]}, MODALITIES)
    with pytest.raises(InputError, match="given as t1 and as t2"):
        named_case({"t1": folder / names[0], "t2": folder / names[0]})


# --- one 4-D file ---


def test_one_unnamed_file_is_taken_as_stacked(tmp_path: Path) -> None:
    folder = touch(tmp_path / "task01", "BRATS_001.nii.gz", "BRATS_001_seg.nii.gz", "brain_mask.nii")
    case = find_case(folder)
    assert (case.case_id, case.stacked, case.missing) == ("BRATS_001", folder / "BRATS_001.nii.gz", [])
    assert case.labels == (folder / "BRATS_001_seg.nii.gz",)
    assert case.notes == ("not used: brain_mask.nii (a map of regions)",)


def test_a_file_is_taken_as_stacked(tmp_path: Path) -> None:
    path = touch(tmp_path, "BRATS_484.nii.gz") / "BRATS_484.nii.gz"
    case = find_case(path)
    assert (case.case_id, case.folder, case.stacked, dict(case.images)) == ("BRATS_484", tmp_path, path, {})


def test_a_file_as_the_case_takes_no_modalities(tmp_path: Path) -> None:
    folder = touch(tmp_path / "c", "4d.nii.gz", "c_t2.nii.gz")
    with pytest.raises(InputError, match="Pass the case's folder"):
        find_case(folder / "4d.nii.gz", {"t2": folder / "c_t2.nii.gz"})


@pytest.mark.parametrize(("name", "found"), [("nowhere", "does not exist"), ("gone->/no", "is a link to /no")])
def test_nothing_there(tmp_path: Path, name: str, found: str) -> None:
    path = touch(tmp_path, *[name] * ("->" in name)) / name.split("->")[0]
    with pytest.raises(InputError, match=f"{found}.*; expected a case folder or a 4-D NIfTI file"):
        find_case(path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied"):
        find_case(tmp_path)


# --- every file is accounted for ---


def assert_accounted_for(folder: Path, case: CaseFiles | InputError) -> None:
    """Each NIfTI entry is used, a label map, or named."""
    text = "; ".join(case.notes) if isinstance(case, CaseFiles) else str(case)
    if isinstance(case, CaseFiles):
        text += " " + " ".join(path.name for path in (*case.images.values(), *case.labels, case.stacked) if path)
    for path in niftis(folder):
        assert path.name in text, f"{path.name}: {text}"


EXTRAS = """
    P1_adc.nii.gz scan.nii T1-C.nii.gz T1_map.nii P1_t1ce_copy.NII P1_swi.nii.gz t1.nii.gz.nii 1.nii P1.nii.gz T1T2.nii
    x_mask.nii P1_brainmask.nii.gz P1_t1_bet_mask.nii P1_seg.nii.gz dti.nii/ P1_t1_v.nii/ gone.nii->/no
""".split()  # noqa: SIM905


@given(st.sets(st.sampled_from(BRATS)), st.sets(st.sampled_from(EXTRAS)), st.sets(st.sampled_from(MODALITIES)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_every_file_is_used_or_named(
    tmp_path_factory: pytest.TempPathFactory, images: set[str], extras: set[str], allowed: set[str]
) -> None:
    folder = touch(tmp_path_factory.mktemp("case"), *images, *extras)
    try:
        case: CaseFiles | InputError = find_case(folder, allow_missing=allowed)
    except InputError as error:
        case = error
    assert_accounted_for(folder, case)
    missing = {m for m, name in zip(MODALITIES, BRATS, strict=True) if name not in images}
    stacked = isinstance(case, CaseFiles) and case.stacked is not None
    assert isinstance(case, InputError) or stacked or missing <= allowed, "nothing is replaced by zeros unasked"

"""A mixed DICOM folder, made here: right guesses, exact geometry, and a broken series that is refused by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_heads import AFFINE, TIMES, Head, write_dicom_study, write_series

from lowmem_brats.data.nifti import read_volume
from lowmem_brats.errors import InputError
from lowmem_brats.prepare.source import Study
from lowmem_brats.prepare.study import find_study

pytestmark = pytest.mark.usefixtures("extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    return write_dicom_study(tmp_path_factory.mktemp("dicom") / "study", head, {})


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return find_study(folder, {}, (), tmp_path_factory.mktemp("work"))


def test_each_series_is_taken_for_what_it_is(found: Study) -> None:
    taken = {modality: (source.named, source.reason) for modality, source in found.sources.items()}
    assert taken == {
        "t1": ("series 2 (AX T1 FLAIR)", "TE 12 ms, no contrast agent"),
        "t1ce": ("series 3 (AX T1 +C)", "TE 14 ms, a contrast agent in its header"),
        "t2": ("series 4 (AX T2 PROPELLER)", "TE 95 ms, TR 4000 ms"),
        "flair": ("series 5 (AX FLAIR)", "TI 2500 ms, TE 110 ms"),
    }


def test_what_is_left_out_is_told(found: Study) -> None:
    assert [note.partition(": ")[2] for note in found.notes] == [
        "series 1 (3-PLANE LOC): localizer (loc in its description)",
        "series 6 (AX T1 REPEAT): has a missing slice (slices 20 and 21 of 38 lie 8.0 mm apart, the others 4.0 mm)",
        "series 7 (ep2d_diff_b1000): diffusion (b1000, diff, ep2d in its description)",
    ]


def test_voxels_and_their_places_are_exact(found: Study, head: Head) -> None:
    for modality, source in found.sources.items():
        volume = read_volume(source.image)
        assert np.array_equal(volume.data, head.images[modality].astype(np.uint16)), modality
        assert volume.affine == pytest.approx(AFFINE, abs=1e-4)


def test_a_chosen_series_with_a_missing_slice_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"series 6 \(AX T1 REPEAT\): has a missing slice"):
        find_study(folder, {"t1": Path("6")}, (), tmp_path)


def test_the_only_candidate_with_a_missing_slice_is_refused_by_name(head: Head, tmp_path: Path) -> None:
    for number, modality in enumerate(("t1ce", "t2", "flair"), 1):
        write_series(tmp_path / "in", number, modality + " post", head.images[modality][:, :, :12], TIMES[modality])
    write_series(tmp_path / "in", 9, "AX T1", head.images["t1"][:, :, :14], TIMES["t1"], leave_out=(5,))
    with pytest.raises(InputError, match=r"t1: series 9 \(AX T1\) has a missing slice"):
        find_study(tmp_path / "in", {}, (), tmp_path)


def test_two_series_that_are_as_good_are_a_question(folder: Path, head: Head, tmp_path: Path) -> None:
    extra = write_series(tmp_path / "in", 8, "AX T2 again", head.images["t2"][:, :, :12], TIMES["t2"])
    for path in folder.iterdir():
        (extra / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"t2 may be series 4 .* or series 8") as error:
        find_study(extra, {}, (), tmp_path)
    assert "--t2 4, or --t2 8" in str(error.value)
    named = find_study(extra, {"t2": Path("8")}, (), tmp_path / "in")
    assert (named.sources["t2"].named, named.sources["t2"].reason) == ("series 8 (AX T2 again)", "named by the user")


def test_a_number_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--t1ce: 44; expected a file, a folder or the number of a series"):
        find_study(folder, {"t1ce": Path("44")}, (), tmp_path)


def test_one_folder_for_each_series(head: Head, tmp_path: Path) -> None:
    folders = {
        modality: write_series(tmp_path / modality, 1, "?", head.images[modality][:, :, :12], TIMES[modality])
        for modality in TIMES
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "work").mkdir()
    found = find_study(tmp_path / "empty", folders, (), tmp_path / "work")
    assert {m: len(source.files) for m, source in found.sources.items()} == dict.fromkeys(TIMES, 12)


def test_a_folder_with_nothing_of_use(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.raises(InputError, match="neither DICOM nor NIfTI files in it"):
        find_study(tmp_path, {}, (), tmp_path)


def test_a_damaged_header_is_told_with_its_file(head: Head, tmp_path: Path) -> None:
    study = write_series(tmp_path / "study", 2, "AX T1", head.images["t1"][:, :, :3], TIMES["t1"])
    first, *_ = sorted(study.iterdir())
    content = first.read_bytes()
    damaged = {
        "a number that is none": content.replace(b"\x20\x00\x11\x00IS\x02\x002 ", b"\x20\x00\x11\x00IS\x02\x002!"),
        "an unknown kind of value": content.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00ZZ"),
    }
    for what, spoilt in damaged.items():
        assert spoilt != content, what
        first.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"IM_02_000: a DICOM header that cannot be read"):
            find_study(study, {}, (), tmp_path)


def test_a_series_given_as_a_folder_is_not_taken_for_another_modality_too(head: Head, tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_series(study / "a", 1, "AX T1", head.images["t1ce"], TIMES["t1"])
    for number, modality in enumerate(("t2", "flair"), 2):
        write_series(study / modality, number, modality, head.images[modality], TIMES[modality])
    with pytest.raises(InputError, match="no t1 among"):
        find_study(study, {"t1ce": study / "a"}, (), tmp_path)


def test_one_series_for_two_modalities_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"series 2 \(AX T1 FLAIR\) named for two modalities"):
        find_study(folder, {"t1": Path("2"), "t1ce": Path("2")}, (), tmp_path)


def test_where_links_are_not_allowed_files_are_copied(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    study = write_dicom_study(tmp_path / "study", head, {})
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("os.symlink", refuse)
    assert len(find_study(study, {}, (), tmp_path / "work").sources) == 4

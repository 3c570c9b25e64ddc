"""Scans of one patient stay together: told by their names where a scheme is known, else listed as doubtful."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.data.patients import doubtful, patient_of

SCHEMES = {
    "BraTS-GLI-00005-100": "BraTS-GLI-00005",
    "BraTS-GLI-00005-101": "BraTS-GLI-00005",
    "BraTS-GLI-00005": "BraTS-GLI-00005",
    "BraTS-GLI-00005-100-x": "BraTS-GLI-00005",
    "BraTS-PED-00001-000": "BraTS-PED-00001",
    "BraTS-MEN-00005-000": "BraTS-MEN-00005",
    "BraTS-MEN-RT-0001-1": "BraTS-MEN-RT-0001",
    "BraTS-MET-00086-001": "BraTS-MET-00086",
    "BraTS-SSA-00002-000": "BraTS-SSA-00002",
    "BraTS-GoAT-00012": "BraTS-GoAT-00012",
    "BraTS20_Training_001": "BraTS20_Training_001",
    "BraTS20_Training_355": "BraTS20_Training_355",
    "BraTS2021_00006": "BraTS2021_00006",
    "BraTS2021_00006_ses-2": "BraTS2021_00006",
    "BRATS_001": "BRATS_001",
    "Brats18_CBICA_ABC_1": "Brats18_CBICA_ABC",
    "Brats18_2013_10_2": "Brats18_2013_10",
    "BraTS19_TCIA01_235_1": "BraTS19_TCIA01_235",
    "sub-01": "sub-01",
    "sub-01_ses-1": "sub-01",
    "sub-01_ses-post_run-2": "sub-01",
    "sub-01-ses-1": "sub-01",
    "sub-t1": "sub-t1",
    "sub-UPENN-GBM-00001_ses-2": "sub-UPENN-GBM-00001",
    "UPENN-GBM-00001_11": "UPENN-GBM-00001",
    "UPENN-GBM-00001_21": "UPENN-GBM-00001",
    "UCSF-PDGM-0004": "UCSF-PDGM-0004",
    "UCSF-PDGM-0004_FU001d": "UCSF-PDGM-0004",
    "UCSD-PTGBM-0002_01": "UCSD-PTGBM-0002",
    "RHUH-0001_2": "RHUH-0001",
    "TCGA-06-0122": "TCGA-06-0122",
    "TCGA-06-0122_1999.01.17": "TCGA-06-0122",
    "TCGA-06-0122-01A": "TCGA-06-0122",
    "Patient-001_week-012": "Patient-001",
    "Patient-001_week-000-2": "Patient-001",
    "PatientID_0003_Timepoint_2": "PatientID_0003",
    "100001_time1": "100001",
    "P01_ses-pre": "P01",
    "P01_pre": "P01",
    "P01_post": "P01",
    "P01-post-op_2": "P01",
    "P01_baseline": "P01",
    "P01_followup": "P01",
    "P01_follow-up2": "P01",
    "P01_FU3": "P01",
    "P01_date-20190301": "P01",
    "P01_date-2019-03-01": "P01",
    "P01_2019-03-01": "P01",
    "P01_20190301": "P01",
    "P01_03-01-2019": "P01",
    "P01_visit1": "P01",
    "P01_visit-2_2019-03-01": "P01",
    "P01_scan2": "P01",
    "P01_t0": "P01",
    "P01_tp2": "P01",
    "P01_v01": "P01",
    "anna_scan2": "anna",
    "Müller_visit1": "Müller",
    # a patient each
    "case_001": "case_001",
    "scan_001": "scan_001",
    "brain_scan_01": "brain_scan_01",
    "glioma_t1": "glioma_t1",
    "patient_v01": "patient_v01",
    "train_visit_7": "train_visit_7",
    "brain_scan001": "brain_scan001",
    "C3L-00016": "C3L-00016",
    "phantom_000": "phantom_000",
    "P01-1": "P01-1",
    "case12a": "case12a",
    "t0": "t0",
    "baseline": "baseline",
    "17": "17",
}


def test_whom_a_case_shows() -> None:
    assert {case_id: patient_of(case_id) for case_id in SCHEMES} == SCHEMES


@given(st.text(max_size=30) | st.lists(st.sampled_from(["P", "01", "_", "-", "ses", "t1", "2019-03-01"])).map("".join))
def test_a_patient_is_the_beginning_of_a_name_and_shows_itself(case_id: str) -> None:
    patient = patient_of(case_id)
    assert case_id.startswith(patient)
    assert bool(patient) == bool(case_id)
    assert patient_of(patient) == patient


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ("case12a case12b case13", ["case12a case12b"]),
        ("P01-1 P01-2", ["P01-1 P01-2"]),
        ("P01-1 P01-2 P02-1 P02-2 P03-1", ["P01-1 P01-2", "P02-1 P02-2"]),
        ("P01 P01-2 P02", ["P01 P01-2"]),
        ("P01_left P01_right P2", ["P01_left P01_right"]),
        ("P01_test P01_retest", ["P01_retest P01_test"]),
        ("P01_2019 P01_2020 P02_2019", ["P01_2019 P01_2020"]),
        ("P01v1 P01v2 P02v1", ["P01v1 P01v2"]),
        ("P001-001 P001-002 P7", ["P001-001 P001-002"]),
        ("case12_001 case12_002 case13_001", ["case12_001 case12_002"]),
        ("P1_a_t0 P1_a_t1 P1_b P2", ["P1_a_t0 P1_a_t1 P1_b"]),  # P1_a is told by its name, P1_b is not
        ("Smith_1 Smith_2 Jones_1 Miller_1", ["Smith_1 Smith_2"]),
    ],
)
def test_names_that_look_like_scans_of_one_patient(names: str, groups: list[str]) -> None:
    assert doubtful(names.split()) == [group.split() for group in groups]


@pytest.mark.parametrize(
    "names",
    [
        "case_001 case_002 case_010",
        "case_1 case_2 case_10",
        "case1 case2 case12",
        "case_a case_b case_c",
        "a b c",
        "1 2 3 12",
        "phantom_000 phantom_001",
        "BraTS20_Training_001 BraTS20_Training_002",
        "BraTS2021_00006 BraTS2021_00008 BraTS2021_00009",
        "BRATS_001 BRATS_002 BRATS_003",
        "BraTS-GLI-00005-100 BraTS-GLI-00005-101",  # told by their names
        "sub-01_ses-1 sub-01_ses-2 sub-011",
        "UPENN-GBM-00001_11 UPENN-GBM-00001_21 UPENN-GBM-00002_11",
        "2021_001 2021_002",
        "site1_001 site1_002 site2_001 site2_002",
        "ds1_1 ds1_2 ds1_3 ds1_4",  # a data set of one patient would be of no use
        "HGG_1 HGG_2 HGG_3 LGG_1 LGG_2",
        "C3L-00016 C3L-00017 C3N-00012",
        " ".join(f"clinic7_{n}" for n in range(20)) + " other",
        "Anna Anna2 Ben",
        "",
    ],
)
def test_names_of_a_patient_each(names: str) -> None:
    assert doubtful(names.split()) == []


@given(st.lists(st.text("P01_-.aé ", max_size=9), max_size=12))
def test_only_cases_of_several_patients_are_doubtful(names: list[str]) -> None:
    for group in doubtful(names):
        assert set(group) <= set(names)
        assert len({patient_of(name) for name in group}) > 1

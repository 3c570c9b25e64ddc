"""What names say: of public data sets, of tools, of hospitals, and of nothing that can be relied on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.data.naming import EXAMPLES, kind_of, read_name, stem

NAMES = {
    "t1": """
        x_t1 x_t1n t1 T1w x-T1w x_t1_brain x_T1_bet x_T1_N4 x_T1_LIA LIA_T1 ss_T1 x_T1_ss x_T1_masked x_brain_T1
        T1_pre T1pre T1native T1_nativ T1_noncontrast T1_non_contrast T1_wo_contrast T1_ohne_KM pre_contrast_T1
        no_contrast_T1 T1_non_contrast_enhanced T1nonCE AX_T1 T1_MPRAGE T1_SE_tra T1-weighted T1_(1) T1_v2 T1_5
        sub-01_T1w sub-01_ses-1_acq-mprage_run-1_T1w sub-01_space-MNI152_desc-brain_T1w sub-01_ce-none_T1w
        sub-01_acq-preGd_T1w P1_space-FLAIR_T1 UCSF-PDGM-0004_T1_bias UCSD-PTGBM-0002_01_T1pre EGD_T1
        UPENN-GBM-00001_11_T1_unstripped TCGA-02-0006_1996.08.23_t1 T1_r2s_bet_reg T1_to_SRI_brain T1_rai_n4 T1_raw
        T1_to_T1CE T1_in_FLAIR_space T1_regFLAIR t1_bet_raw t1_skull_normalized T1_preproc 3DAXT1precontrast
        8-AX_T1_pre_gd-14019a FL-GBM-001_T1 pre_T1 P1_pre_T1 P1_post_T1 T1_pre_bet x_T1_0001 Tomask_T1 Pre_Op_7_T1
    """,
    "t1ce": """
        x_t1ce x_t1c x-t1c T1CE T1c T1C T1Gd x_t1gd T1GAD CT1 ct1 CET1 T1post T1_post T1-post "T1 post" T1_POST
        T1_gd T1_Gd T1_gado T1_gadolinium T1_CE CE_T1 CE-T1w T1_contrast T1_postcontrast T1_post_contrast
        T1-weighted_post-contrast postcontrast_T1 T1w_contrast contrast_enhanced_T1 T1_contrast-enhanced T1km T1_KM
        T1_mit_KM T1+C T1+c "T1 +C" T1_C+ T1C+ T1+Gd T1_Gd+ "T1+C COR" T1MPRAGE_post T1_MPRAGE_Gd t1_mprage_sag_KM
        T1wCE T1wGd T1w_Gd T1_w_contrast T1_with_contrast post_gd_T1 AX_3D_T1_POST 3DAXT1postcontrast
        6_Brainlab_12-AX_3D_T1_POST sub-01_ce-gadolinium_T1w sub-01_ses-1_ce-gd_T1w sub-01_ce-GADOLINIUM_T1w
        sub-01_ce-Dotarem_T1w ce-gadolinium_T1w sub-01_acq-postGd_T1w sub-01_ce-gd_space-T1w_desc-brain_T1w
        UCSF-PDGM-0004_T1c_bias UCSF_T1gad_bias UCSD-PTGBM-0002_01_T1post UPENN-GBM-00001_11_T1GD RHUH-0001_0_t1ce
        TCGA-02-0006_1996.08.23_t1Gd CT1_r2s_bet_reg CT1_r2s_bet_regT1 CT1_skull_strip T1CE_to_SRI_brain T1CE_rai
        t1c_bet_raw t1c_skull_raw t1c_bet_normalized PatientID_0003_Timepoint_1_brain_t1c T1ce_wo_skull
        406_MRI_19991106_T1+C T1post_BC
    """,
    "t2": """
        x_t2 x_t2w T2 T2w T2_TSE post_T2 "T2 tse tra" T2-weighted T2_in_T1_space 2DAXT2BLADE sub-01_T2w
        sub-01_desc-brain_T2w UCSF-PDGM-0004_T2_bias T2_to_SRI T2_SPACE T2_post P1_space-T1w_T2w T2_bet
    """,
    "flair": """
        x_flair x_FLAIR x_fla x_t2f x-t2f T2_FLAIR T2FLAIR "T2 FLAIR" T2-FLAIR t2_flair_reg FLAIR_T2 FLAIR-T2w
        T2w_FLAIR AX_T2_FLAIR 2DAXT2FLAIR FLAIR_post FLAIR_to_T1 FL_to_SRI_brain fla_bet_raw t2_space_dark-fluid_sag
        sub-01_FLAIR sub-01_space-T1w_desc-brain_FLAIR sub-01_acq-FLAIR_run-1_T2w UCSF-PDGM-0004_FLAIR_bias
        FLAIR_r2s_bet_reg FLAIR_BC
    """,
    "seg": """
        x_seg x-seg x_Segm W39_1998.09.19_Segm x_flair_seg seg segmentation x_segmentation
        UCSF-PDGM-0004_tumor_segmentation UPENN-GBM-00001_11_automated_approx_segm
        TCGA-02-0006_1996.08.23_GlistrBoost TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected
        sub-01_desc-tumor_dseg sub-01_label-lesion_dseg
    """,
    "mask": """
        x_mask x_brain_mask x_bet_mask x_brainmask x_T1_bet_mask t1c_bet_mask x_tumorMask brainTumorMask_SRI MASK
        mask_T1 T1_seg_mask sub-01_desc-brain_mask sub-01_dseg sub-01_desc-aseg_dseg
        UCSF-PDGM-0004_brain_segmentation UCSF-PDGM-0004_brain_parenchyma_segmentation T1_brain_seg mask_in_T2
    """,
    "None": """
        xt1 x_t1cee t1_x BraTS-GLI-00000-000 BRATS_001 x_00000 x_0004 scan x T1-C T1_C T1+ T1_FLAIR T1FLAIR T1_T2
        T1_T1ce T1-T1CE T1Gd_native T1ce_pre T1_pre_post T1_w_wo_contrast T1_map T1map T1_rho T1sub T1_subtraction
        T2star T2_star T2Synth T1_postop t1c_bet_normalized_followup PET_to_T1 ADC_in_T1_space seg_T1
        segmentation_CT1_origspace segmentation_0000 post_T1 UCSF-PDGM-0004_ADC UCSF-PDGM-0004_DTI_eddy_FA
        UCSF-PDGM-0004_SWI_bias sub-01_T1map sub-01_dwi sub-01_T2star sub-01_from-T1w_to-MNI_mode-image_xfm
        t2_tirm_tra x_seg_v2 T1_copy + .
    """,
}


def names(kind: str) -> list[str]:
    """Names between spaces; one that holds a space stands in quotes."""
    quoted = NAMES[kind].split('"')
    return [*" ".join(quoted[::2]).split(), *quoted[1::2]]


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_name_says(kind: str) -> None:
    files = [file for name in names(kind) for file in (f"{name}.nii.gz", f"{name}.nii".upper())]
    assert {file: str(kind_of(Path(file))) for file in files} == dict.fromkeys(files, kind)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_examples_in_messages_are_understood(kind: str) -> None:
    for pattern in EXAMPLES[kind].split(", "):
        assert kind_of(Path(pattern.replace("*", "P1") + ".nii.gz")) == kind


@pytest.mark.parametrize(
    ("name", "case", "key"),
    [
        ("BraTS-GLI-00000-000-t1c", "BraTS-GLI-00000-000", "brats gli 00000 000"),
        ("BraTS20_Training_001_t1ce", "BraTS20_Training_001", "brats20 training 001"),
        ("BraTS18_2013_0_1_t1", "BraTS18_2013_0_1", "brats18 2013 0 1"),
        ("BraTS_0013_0002", "BraTS_0013", "brats 0013"),
        ("patient.7_T1", "patient.7", "patient 7"),
        ("patient 7 t1c", "patient 7", "patient 7"),
        ("Größe__T1", "Größe", "größe"),
        ("t1", "", ""),
        ("T1CE_to_SRI_brain", "", ""),
        ("P1 (T1)", "P1", "p1"),
        ("sub-01_T1w", "sub-01", "sub 01"),
        ("sub-01_ses-1_ce-gadolinium_T1w", "sub-01_ses-1", "sub 01 ses 1"),
        ("sub-01_ses-1_acq-x_run-2_space-T1w_desc-brain_FLAIR", "sub-01_ses-1", "sub 01 ses 1"),
        ("UPENN-GBM-00001_11_T1GD", "UPENN-GBM-00001_11", "upenn gbm 00001 11"),
        ("TCGA-02-0006_1996.08.23_t1Gd", "TCGA-02-0006_1996.08.23", "tcga 02 0006 1996 08 23"),
        ("PatientID_0003_Timepoint_1_brain_t1c", "PatientID_0003_Timepoint_1", "patientid 0003 timepoint 1"),
        ("P1_CE_T1_bet", "P1", "p1"),
        ("P1_post_T1", "P1_post", "p1 post"),  # after surgery
        ("bet_P1_T1", "bet_P1", "p1"),
        ("P1_AX_T1_20240131_5", "P1", "p1 20240131"),  # another date, another case
        ("P1_T1_20240131101500_5a", "P1", "p1 20240131"),
        ("8-AX_T1_pre_gd-14019a", "8", "8"),
        ("P1_T1_3", "P1", "p1"),
        ("T1_003", "", "003"),
        ("T1_1mm", "", ""),
        ("s9", "", ""),
        ("P7_a", "P7", ""),  # not understood: the case is a guess, and is not compared
    ],
)
def test_whose_a_name_is(name: str, case: str, key: str) -> None:
    read = read_name(Path(f"{name}.nii.gz"))
    assert read.case == case
    assert read.key == tuple(key.split())


@pytest.mark.parametrize(
    ("name", "stripped", "processed", "series"),
    [
        ("x_T1", 0, "", ""),
        ("x_T1_bet", 1, "", ""),
        ("x_brain_T1", 1, "", ""),
        ("x_T1_skull_stripped", 1, "", ""),
        ("x_T1_no_skull", 1, "", ""),
        ("x_T1_pre_bet", 1, "", ""),
        ("sub-01_desc-skullStripped_T1w", 1, "", ""),
        ("x_T1_unstripped", -1, "", ""),
        ("x_T1_not_skull_stripped", -1, "", ""),
        ("x_T1_skull_raw", -1, "", ""),
        ("x_T1_defaced", -1, "", ""),
        ("x_T1_N4_reg_brain", 1, "n4,reg", ""),
        ("x_T1_to_SRI_brain", 1, "to sri", ""),
        ("sub-01_space-MNI_res-1_desc-brain_T1w", 1, "res-1,space-mni", ""),
        ("sub-01_acq-3d_run-2_T1w", 0, "", "acq-3d,run-2"),
        ("x_AX_T1_5", 0, "", "5,ax"),
    ],
)
def test_how_an_image_was_made(name: str, stripped: int, processed: str, series: str) -> None:
    read = read_name(Path(f"{name}.nii.gz"))
    assert read.stripped == stripped
    assert ",".join(sorted(read.processed)) == processed
    assert ",".join(sorted(read.series)) == series


def test_only_numbers_are_marked_as_numbered() -> None:
    assert [read_name(Path(f"x{end}.nii")).numbered for end in ("_0000", "_0003", "_t1", "_t1_0001", "_0004")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_stem_drops_the_suffix_only() -> None:
    names = ["a.b.nii", "a.b.nii.gz", "A.B.NII.GZ", "a.nii.b"]
    assert [stem(Path(name)) for name in names] == ["a.b", "a.b", "A.B", "a.nii.b"]


PARTS = st.sampled_from(
    ["T1", "t1c", "T2", "flair", "fl", "to", "in", "post", "no", "seg", "mask", "+", "c", "P1", "0001"]
)


@given(st.lists(PARTS | st.text(max_size=3), max_size=6), st.sampled_from("_-. "))
def test_any_name_is_read(parts: list[str], separator: str) -> None:
    read = read_name(Path(separator.join(parts).replace("/", "") + ".nii.gz"))
    assert read.kind in {None, "t1", "t1ce", "t2", "flair", "seg", "mask"}
    assert read.stripped in (-1, 0, 1)

"""A page holds exactly the voxels that it should, says what is true, and takes no text of a file for HTML."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pages import LPS, SHAPE_XYZ, Read, labelled, small_case

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import CONVENTIONS, Region
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate.pairs import score_patient
from lowmem_brats.pictures.page import draw_page
from lowmem_brats.pictures.page_html import Strip, Table, data, facts_table, text
from lowmem_brats.pictures.page_volumes import Scale, pack, scale_of, to_bytes
from lowmem_brats.pictures.preview import TISSUE_COLOURS

RANK = {0: 0, 2: 1, 4: 2, 1: 3}
"""Label of BraTS 2020 → rank on the page."""
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "' onfocus='window.hacked = 1",
    "a\u2028b\u2029c & &lt; <!-- $facts ${script}",
    "]]>\x00\x1b",
)


def box_of(page: Read) -> tuple[slice, ...]:
    """The part of the volume that a page shows, for a file in LPS order."""
    return tuple(
        slice(a["first"], a["first"] + n) for a, n in zip(page.facts["file_axes"], page.facts["shape"], strict=True)
    )


# --- the volumes ---


def test_the_page_holds_the_voxels_of_images_and_label_maps() -> None:
    case, found, reference = small_case()
    page = Read(draw_page(case, found, "", reference=reference))
    box = box_of(page)
    for modality, image_XYZ in zip(MODALITIES, case.images_CXYZ, strict=True):
        expected = to_bytes(image_XYZ[box], Scale(**page.facts["images"][modality]))
        np.testing.assert_array_equal(page.volume(modality), expected)
        assert not np.delete(image_XYZ, np.r_[box[2]], axis=2).any()
    for name, each in (("found", found), ("reference", reference)):
        expected = np.vectorize(RANK.get)(each.volume.data[box])
        np.testing.assert_array_equal(page.volume(name), expected)
        assert (each.volume.data != 0).sum() == (page.volume(name) != 0).sum()
    assert [tissue["name"] for tissue in page.facts["tissues"]] == list(TISSUE_COLOURS)
    assert page.facts["regions"] == {"WT": [1, 2, 3], "TC": [2, 3], "ET": [2]}


def test_bytes_are_rounded_and_only_the_background_is_zero() -> None:
    values = np.array([0, -5, 100, 100.4, 100.6, 227, 353.4, 354, 1e6], np.float32)
    scale = Scale(100, 354, (0, 1))  # steps of 1
    assert to_bytes(values, scale).tolist() == [0, 1, 1, 1, 2, 128, 254, 255, 255]


@example(0, 8192.0, 0.001)  # two values only: none lies between the ends
@given(st.integers(0, 2**32 - 1), st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_a_byte_tells_the_intensity_to_half_a_step(seed: int, low: float, width: float) -> None:
    values = np.random.default_rng(seed).uniform(low, low + width, 500).astype(np.float32)
    values[values == 0] = width
    scale = scale_of(values)
    assert scale is not None
    told = scale.low + (to_bytes(values, scale) - 1.0) * (scale.high - scale.low) / 254
    inside = (values > scale.low) & (values < scale.high)
    assert np.abs(told - values)[inside].max(initial=0) <= 0.51 * (scale.high - scale.low) / 254 + 1e-6 * abs(low)
    assert scale.low <= scale.window[0] < scale.window[1] <= scale.high


def test_scales_of_images_without_contrast() -> None:
    assert scale_of(np.zeros((2, 2, 2), np.float32)) is None
    assert scale_of(np.full((2, 2, 2), 7, np.float32)) == Scale(6.5, 7.5, (6.5, 7.5))


def test_the_same_volume_is_always_packed_alike() -> None:
    volume = np.random.default_rng(0).integers(0, 255, (5, 6, 7), np.uint8)
    assert pack(volume) == pack(volume.copy(order="F"))


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_positions_are_those_of_the_file(signs: tuple[int, ...], order: tuple[int, ...]) -> None:
    """The page's own axes are LPS; the voxel that it names lies on the file's axes, and its millimetres too."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(signs) * (1.0, 1.5, 2.0))[:, order]
    affine[:3, 3] = (10, -20, 30)
    case, found, _ = small_case(SHAPE_XYZ, affine)
    facts = Read(draw_page(case, found, "")).facts
    label = np.zeros(SHAPE_XYZ)
    label[8, 11, 7] = 1
    in_file = np.argwhere(label)[0]
    own = [0, 0, 0]
    for axis, told in enumerate(facts["file_axes"]):
        own[axis] = (in_file[told["axis"]] - told["first"]) * told["step"]
        assert 0 <= own[axis] < facts["shape"][axis]
    np.testing.assert_allclose(np.array(facts["affine"]) @ [*own, 1], (affine @ [*in_file, 1])[:3])
    assert (np.diag(np.array(facts["affine"])[:, :3]) * (-1, -1, 1) > 0).all(), "LPS order"


def test_an_anisotropic_and_a_flat_case_keep_their_spacing() -> None:
    case, found, _ = small_case((24, 30, 3), np.diag([-0.5, -0.5, 6.0, 1]))
    facts = Read(draw_page(case, found, "")).facts
    assert facts["spacing_mm"] == [0.5, 0.5, 6.0]
    assert facts["shape"][2] == 3


# --- what is said ---


def test_a_missing_modality_cannot_be_chosen() -> None:
    case, found, _ = small_case(without=("t2",))
    page = Read(draw_page(case, found, ""))
    buttons = {a["data-to"]: "disabled" in a for tag, a in page.tags if a.get("data-set") == "modality"}
    assert buttons == {"t1": False, "t1ce": False, "t2": True, "flair": False}
    assert "volume-t2" not in page.scripts
    assert "t2" not in page.facts["images"]


def test_volumes_and_scores() -> None:
    case, found, reference = small_case(affine=np.diag([-2.0, -1, 1, 1]))
    page = Read(draw_page(case, found, "", reference=reference))
    label = found.volume.data
    cells = page.within("td")
    oedema, enhancing, core = (f"{(label == value).sum() * 2 / 1000:.1f}" for value in (2, 4, 1))
    assert cells[:6] == [oedema, oedema, enhancing, enhancing, core, core]
    whole, tumour_core = f"{(label > 0).sum() * 2 / 1000:.1f}", f"{np.isin(label, (1, 4)).sum() * 2 / 1000:.1f}"
    assert cells[6:12] == [whole, whole, tumour_core, tumour_core, enhancing, enhancing]
    scores = score_patient("", found, reference)
    shown = [f"{scores.regions[r].dice:.3f}" for r in Region]
    assert cells[12::4][:3] == shown
    assert cells[13::4][:3] == [f"{scores.regions[r].hd95_mm:.1f}" for r in Region]


def test_without_a_reference_nothing_is_compared() -> None:
    case, found, _ = small_case()
    page = Read(draw_page(case, found, ""))
    assert ("body", {"class": "alone"}) in page.tags
    assert "volume-reference" not in page.scripts
    assert page.facts["reference"] is False
    assert "Scores" not in page.within("caption")


def test_a_strip_has_a_mark_for_each_run_of_slices() -> None:
    shown = facts_table(Table("Slices", [("WT, axial", Strip(10, [[2, 4], [7, 10]]))]))
    assert '<rect x="2" width="2" height="1"/><rect x="7" width="3" height="1"/>' in shown
    assert 'viewBox="0 0 10 1"' in shown
    assert shown.count("5 of 10") == 2, "in words, and for readers who do not see it"


def test_tables_and_warnings_of_the_caller() -> None:
    case, found, _ = small_case()
    table = Table("How sure", [("core", "expected Dice 0.62")])
    page = Read(draw_page(case, found, "from somewhere", [table], ["odd header"]))
    assert "How sure" in page.within("h2")
    assert "expected Dice 0.62" in page.within("td")
    assert page.within("li")[0] == "odd header"
    assert "from somewhere" in page.within("p")
    assert "Research software, not a medical device." in page.within("p")
    assert "warnings" not in [a.get("class") for _, a in Read(draw_page(case, found, "")).tags]


def test_label_maps_that_do_not_fit_are_refused() -> None:
    case, found, _ = small_case()
    with pytest.raises(InputError, match="grid of small"):
        draw_page(case, labelled(np.zeros((5, 5, 5), np.uint8)), "")
    with pytest.raises(InputError, match=r"ref\.nii\.gz: its affine"):
        draw_page(case, found, "", reference=labelled(found.volume.data, LPS + np.eye(4, k=3) * 9, "ref.nii.gz"))
    with pytest.raises(InputError, match=r"seg\.nii\.gz: unknown label 3"):
        draw_page(case, labelled(np.where(found.volume.data == 4, 3, 0).astype(np.uint8)), "")


# --- safety ---


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_file_becomes_html(name: str) -> None:
    case, found, reference = small_case()
    plain = Read(draw_page(case, found, "x", [Table("x", [("x", "x")])], ["x"], reference))
    case.case_id = name
    page = Read(draw_page(case, found, name, [Table(name, [(name, name)])], [name], reference))
    assert page.tags == plain.tags
    seen = name.replace("\r", "\n")
    for tag in ("title", "h1", "li", "h2", "td"):
        assert seen in page.within(tag), tag


def test_names_that_are_no_utf8_are_shown_by_number() -> None:
    assert text("caf\udce9 中文") == "caf\\udce9 中文"


def test_embedded_data_cannot_end_its_script() -> None:
    written = data({"name": "</script><!--\u2028&\udce9"})
    assert written.isascii()
    assert not set("<>&") & set(written)


def test_the_page_runs_its_own_script_and_loads_nothing() -> None:
    case, found, _ = small_case()
    content = draw_page(case, found, "")
    page = Read(content)
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    style, script = page.within("style")[0], page.scripts[""]
    sums = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (script, style)]
    assert policy == f"default-src 'none'; script-src 'sha256-{sums[0]}'; style-src 'sha256-{sums[1]}'"
    assert not re.findall(r"https?:|@import|url\(", content)
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not attributes & {"src", "href", "srcset", "style", "action"}
    assert not [name for name in attributes if name.startswith("on")]


# --- sizes and files ---


def test_a_page_of_a_brats_case_is_below_12_megabytes() -> None:
    """Noise in the volume of a large brain, which no compression makes smaller than its entropy."""
    rng, shape = np.random.default_rng(0), (240, 240, 155)
    grid = np.stack(np.meshgrid(*[(np.arange(n) - n / 2) for n in shape], indexing="ij"))
    brain = (grid / np.array([72, 90, 70]).reshape(3, 1, 1, 1)) ** 2
    brain = brain.sum(axis=0) < 1
    assert 1.8e6 < brain.sum() < 2e6  # mm³
    packed = 0
    for _ in MODALITIES:
        image = np.where(brain, rng.normal(1000, 150, shape), 0).astype(np.float32)[40:200, 25:215, 5:150]
        packed += len(pack(to_bytes(image, scale_of(image) or Scale(0, 1, (0, 1)))))
    assert packed < 11.5e6


def test_the_wheel_holds_every_part_of_the_page(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    inside = set(zipfile.ZipFile(wheel).namelist())
    parts = {f"lowmem_brats/pictures/{path.name}" for path in (root / "lowmem_brats" / "pictures").glob("page*.[hcj]*")}
    assert {Path(part).name for part in parts} == {"page.html", "page.css", "page.js", "page_draw.js"}
    assert parts <= inside


def test_conventions_share_the_page() -> None:
    case, found, _ = small_case()
    msd = np.array([0, 2, 1, 0, 3], np.uint8)[found.volume.data]
    other = labelled(msd)
    again = draw_page(case, type(found)(other.volume, CONVENTIONS["msd"], other.path), "")
    assert again == draw_page(case, found, "")

"""The preview shows the right slices, the right way round, with outlines exactly where the label map has borders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.errors import InputError
from lowmem_brats.pictures.preview import (
    FAINT,
    FOOT_PX,
    GAP_PX,
    LEFT_PX,
    OUTLINE_PX,
    PANEL_PX,
    TISSUE_COLOURS,
    TOP_PX,
    Spacing,
    draw_preview,
    panel_sizes,
)

SIDE = 30
ZOOM = PANEL_PX // SIDE  # a cube fills its panels: one voxel is ZOOM pixels
BRATS = CONVENTIONS["brats2020"]
FLAIR_ROW, T1CE_ROW = 0, 1
AXIAL, CORONAL, SAGITTAL = 0, 1, 2


def cube() -> tuple[np.ndarray, np.ndarray]:
    """Return images that are brain everywhere and an empty label map."""
    return np.ones((len(MODALITIES), SIDE, SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE, SIDE), np.uint8)


def draw(
    images: np.ndarray, label: np.ndarray, spacing: Spacing = (1, 1, 1), convention: str = "brats2020"
) -> Image.Image:
    """Draw with a title."""
    return draw_preview(images, label, CONVENTIONS[convention], spacing, "case")


def panel(page: Image.Image, row: int, column: int) -> np.ndarray:
    """Return the pixels of one panel of a cube's preview."""
    left = LEFT_PX + column * (PANEL_PX + GAP_PX)
    top = TOP_PX + row * (PANEL_PX + GAP_PX)
    return np.asarray(page)[top : top + PANEL_PX, left : left + PANEL_PX]


def coloured(pixels: np.ndarray, tissue: str) -> np.ndarray:
    """Return where the pixels have exactly the tissue's colour."""
    return (pixels == TISSUE_COLOURS[tissue]).all(-1)


def drawn_tissues(pixels: np.ndarray) -> set[str]:
    """Return the tissues whose colour occurs."""
    return {tissue for tissue in TISSUE_COLOURS if coloured(pixels, tissue).any()}


def test_page_size_and_mode() -> None:
    page = draw(*cube())
    assert page.mode == "RGB"
    assert page.size == (LEFT_PX + 3 * (PANEL_PX + GAP_PX), TOP_PX + 2 * (PANEL_PX + GAP_PX) + FOOT_PX)


def test_colours_cover_the_tissues_of_every_convention() -> None:
    for convention in CONVENTIONS.values():
        assert set(convention.tissues) == set(TISSUE_COLOURS)


@pytest.mark.parametrize("row", [FLAIR_ROW, T1CE_ROW])
def test_outline_follows_the_block_exactly(row: int) -> None:
    images, label = cube()
    label[10:20, 5:12, 18:26] = BRATS.ed
    page = draw(images, label)
    # Rows and columns of the block on the page; z counts from the bottom.
    on_page = {AXIAL: (5, 12, 10, 20), CORONAL: (4, 12, 10, 20), SAGITTAL: (4, 12, 5, 12)}
    for column, (top, bottom, left, right) in on_page.items():
        expected = np.zeros((PANEL_PX, PANEL_PX), bool)
        expected[top * ZOOM : bottom * ZOOM, left * ZOOM : right * ZOOM] = True
        edge = OUTLINE_PX
        expected[top * ZOOM + edge : bottom * ZOOM - edge, left * ZOOM + edge : right * ZOOM - edge] = False
        np.testing.assert_array_equal(coloured(panel(page, row, column), "oedema"), expected)


def test_only_present_tissues_are_outlined() -> None:
    images, label = cube()
    label[8:22, 8:22, 8:22] = BRATS.ed
    label[8:19, 8:19, 8:19] = BRATS.et
    page = draw(images, label)
    for column in (AXIAL, CORONAL, SAGITTAL):
        assert drawn_tissues(panel(page, T1CE_ROW, column)) == {"oedema", "enhancing tumour"}


def test_labels_are_read_in_their_convention() -> None:
    images, label = cube()
    label[8:22, 8:22, 8:22] = 2
    assert drawn_tissues(panel(draw(images, label), FLAIR_ROW, AXIAL)) == {"oedema"}
    assert drawn_tissues(panel(draw(images, label, convention="msd"), FLAIR_ROW, AXIAL)) == {"necrotic core"}


def test_each_slice_has_the_most_tumour() -> None:
    images, label = cube()
    label[5:9, 5:9, 3:20] = BRATS.ed  # long, but small in the axial plane
    label[5:25, 5:25, 22] = BRATS.ed
    columns = np.flatnonzero(coloured(panel(draw(images, label), FLAIR_ROW, AXIAL), "oedema").any(0))
    assert (columns[0], columns[-1]) == (5 * ZOOM, 25 * ZOOM - 1)


@pytest.mark.parametrize(
    ("axis", "bright_half", "column", "where"),
    [
        pytest.param(0, "high", AXIAL, "right", id="patient's left on the right, axial"),
        pytest.param(0, "high", CORONAL, "right", id="patient's left on the right, coronal"),
        pytest.param(1, "low", AXIAL, "top", id="front at the top, axial"),
        pytest.param(1, "low", SAGITTAL, "left", id="front at the left, sagittal"),
        pytest.param(2, "high", CORONAL, "top", id="crown at the top, coronal"),
        pytest.param(2, "high", SAGITTAL, "top", id="crown at the top, sagittal"),
    ],
)
def test_radiological_orientation(axis: int, bright_half: str, column: int, where: str) -> None:
    images, label = cube()
    half = slice(SIDE // 2, None) if bright_half == "high" else slice(0, SIDE // 2)
    images[(slice(None), *[half if a == axis else slice(None) for a in range(3)])] = 2
    grey = panel(draw(images, label), FLAIR_ROW, column).mean(-1)
    quarter = PANEL_PX // 4
    strips = {"left": grey[:, :quarter], "right": grey[:, -quarter:], "top": grey[:quarter], "bottom": grey[-quarter:]}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[where]
    assert strips[where].mean() > 200
    assert strips[opposite].mean() < 50


def test_rows_show_flair_above_t1ce() -> None:
    images, label = cube()
    images[MODALITIES.index("flair"), : SIDE // 2] = 2  # bright on the patient's right
    images[MODALITIES.index("t1ce"), SIDE // 2 :] = 2
    page = draw(images, label)
    assert panel(page, FLAIR_ROW, AXIAL)[:, :100].mean() > 200
    assert panel(page, T1CE_ROW, AXIAL)[:, -100:].mean() > 200


def test_without_tumour_the_middle_slice_and_no_outline() -> None:
    images, label = cube()
    images[:, :, :, SIDE // 2] = 2
    page = draw(images, label)
    assert panel(page, FLAIR_ROW, AXIAL).mean() > 200
    assert not any(drawn_tissues(panel(page, row, column)) for row in (0, 1) for column in (0, 1, 2))


def test_missing_modality_leaves_an_empty_panel() -> None:
    images, label = cube()
    images[MODALITIES.index("flair")] = 0
    label[8:22, 8:22, 8:22] = BRATS.ed
    page = draw(images, label)
    for column in (AXIAL, CORONAL, SAGITTAL):
        empty = panel(page, FLAIR_ROW, column)
        assert not drawn_tissues(empty)
        assert (empty == FAINT).all(-1).any(), "the words 'not given' are missing"
        assert np.median(empty) == 0
        assert drawn_tissues(panel(page, T1CE_ROW, column)) == {"oedema"}


def test_outside_of_the_brain_is_black_and_cropped() -> None:
    images = np.zeros((len(MODALITIES), 90, 90, 90), np.float32)
    images[:, 30:60, 30:60, 30:60] = -np.random.default_rng(0).uniform(1, 2, (30, 30, 30))  # z-scores may be negative
    page = draw(images, np.zeros((90, 90, 90), np.uint8))
    axial = panel(page, FLAIR_ROW, AXIAL)
    side = 30 + 2 * 9  # the brain and the margin on both sides
    brain = axial[axial.shape[0] * 12 // side : axial.shape[0] * 36 // side, axial.shape[1] * 12 // side :]
    assert not axial[30:60, 30:60].any()
    assert brain.mean() > 60


@pytest.mark.parametrize(
    ("shape", "spacing", "sizes"),
    [
        ((30, 30, 15), (1.0, 1.0, 2.0), [(420, 420), (420, 420), (420, 420)]),
        ((30, 30, 30), (1.0, 1.0, 0.5), [(420, 420), (420, 210), (420, 210)]),
        ((20, 40, 30), (1.5, 1.0, 1.0), [(315, 420), (315, 315), (420, 315)]),
    ],
)
def test_spacing_sets_the_aspect(shape: tuple[int, int, int], spacing: Spacing, sizes: list[tuple[int, int]]) -> None:
    assert panel_sizes(shape, spacing) == sizes
    width, _ = draw(np.ones((4, *shape), np.float32), np.zeros(shape, np.uint8), spacing).size
    assert width == LEFT_PX + sum(size[0] + GAP_PX for size in sizes)


def test_volumes_in_the_legend_follow_spacing() -> None:
    images, label = cube()
    label[10:20, 10:20, 10:20] = BRATS.ed  # 1 mL at 1 mm
    fine, coarse = (np.asarray(draw(images, label, spacing))[-FOOT_PX:] for spacing in ((1, 1, 1), (2, 2, 2)))
    assert (fine != coarse).any()


def test_mismatched_or_unknown_labels_are_refused() -> None:
    images, label = cube()
    with pytest.raises(InputError, match="same grid"):
        draw(images, label[1:])
    with pytest.raises(InputError, match="same grid"):
        draw(images[:3], label)
    label[0, 0, 0] = 3
    with pytest.raises(InputError, match="unknown label 3"):
        draw(images, label)

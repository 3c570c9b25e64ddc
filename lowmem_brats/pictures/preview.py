"""The picture of a result: tumour outlines on FLAIR and T1ce in three planes, with volumes; for a quick look only.

Array axes are LPS: `X` patient's right to left, `Y` front to back, `Z` bottom to top; `C` modalities. `HW` is a slice
as seen on the page. Axial and coronal slices follow radiological convention: the patient's left is on the page's right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import LabelConvention, LabelMap, Mask, format_millilitres, split_regions
from lowmem_brats.data.slices import VIEWS
from lowmem_brats.errors import InputError
from lowmem_brats.pictures.curves import (
    FAINT,
    FOOT_PX,
    GAP_PX,
    LEFT_PX,
    ROWS,
    TEXT,
    TOP_PX,
    Bytes,
    Colour,
    font,
    new_page,
    windowed,
    write_upwards,
)

Spacing = tuple[float, float, float]

PANEL_PX = 420  # the brain's longest side; an axial panel is then about 330 pixels wide
MARGIN_MM = 9.0  # around the brain, for the letters
OUTLINE_PX = 2
TISSUE_COLOURS: dict[str, Colour] = {  # told apart by colour-blind readers too
    "oedema": (86, 180, 233),
    "enhancing tumour": (250, 220, 60),
    "necrotic core": (240, 90, 40),
}
"""Keys as in LabelConvention.tissues, from the outermost tissue inwards."""


@dataclass(frozen=True)
class Plane:
    """One viewing direction: which array axes run across and down the page, and the letters on the page's edges."""

    name: str
    axis: int
    """The axis that the slice index counts."""
    across: int
    down: int
    edges: tuple[str, str, str, str]
    """Patient directions at the left, right, top and bottom of the page."""

    def cut(self, volume_XYZ: Bytes, index: int) -> Bytes:
        """Return slice `index` as an HW array, oriented as on the page."""
        page_HW: Bytes = np.take(volume_XYZ, index, self.axis).T
        return page_HW[::-1] if self.down == 2 else page_HW  # Z rises to superior, which belongs at the top


_AXIAL, _CORONAL, _SAGITTAL = (view.name for view in VIEWS)
PLANES = (
    Plane(_AXIAL, axis=2, across=0, down=1, edges=("R", "L", "A", "P")),
    Plane(_CORONAL, axis=1, across=0, down=2, edges=("R", "L", "S", "I")),
    Plane(_SAGITTAL, axis=0, across=1, down=2, edges=("A", "P", "S", "I")),
)


def draw_preview(
    images_CXYZ: npt.NDArray[np.float32],
    label_XYZ: LabelMap,
    convention: LabelConvention,
    spacing_mm: Spacing,
    title: str,
) -> Image.Image:
    """Draw a case with its tumour outlined: rows FLAIR and T1ce, columns axial, coronal and sagittal.

    `images_CXYZ`: channels as config.MODALITIES, any intensity unit, 0 outside the brain; a channel of zeros counts as
    not given. `label_XYZ`: labels of `convention`. Both in LPS axis order, `spacing_mm` along X, Y, Z.
    Returns an RGB picture; each slice has the most tumour along its axis, or is the middle one when there is no tumour.
    Raises InputError when the shapes do not match or a label is not in the convention.
    """
    if images_CXYZ.shape != (len(MODALITIES), *label_XYZ.shape) or label_XYZ.ndim != 3:
        found = f"images {images_CXYZ.shape} and label map {label_XYZ.shape}"
        raise InputError("preview", found, "(4, X, Y, Z) and (X, Y, Z)", "Give both on the same grid.")
    box = brain_box(images_CXYZ.any(0) | (label_XYZ != 0), spacing_mm)
    rank_XYZ = rank_tissues(label_XYZ[box], convention, "preview")
    sizes = panel_sizes(rank_XYZ.shape, spacing_mm)
    indices = [_busiest_slice(rank_XYZ, plane) for plane in PLANES]

    row_px = max(height for _, height in sizes) + GAP_PX
    width = LEFT_PX + sum(size[0] + GAP_PX for size in sizes)
    page = new_page(width, TOP_PX + len(ROWS) * row_px + FOOT_PX, title)
    draw = ImageDraw.Draw(page)
    for row, (modality, heading) in enumerate(ROWS.items()):
        top = TOP_PX + row * row_px
        write_upwards(page, heading, top + (row_px - GAP_PX) // 2)
        image_XYZ = images_CXYZ[(MODALITIES.index(modality), *box)]
        grey_XYZ = windowed(image_XYZ, image_XYZ != 0)
        left = LEFT_PX
        for plane, index, size in zip(PLANES, indices, sizes, strict=True):
            panel = _panel(plane.cut(grey_XYZ, index), plane.cut(rank_XYZ, index), plane.edges, size)
            if not grey_XYZ.any():
                panel = _empty_panel(size)
            page.paste(panel, (left, top + (row_px - GAP_PX - size[1]) // 2))
            if row == 0:
                number = index + box[plane.axis].start
                draw.text((left, TOP_PX - 10), f"{plane.name}, {'xyz'[plane.axis]} = {number}", FAINT, font(17), "ls")
            left += size[0] + GAP_PX
    _legend(draw, label_XYZ, convention, spacing_mm, page.height - FOOT_PX)
    return page


def panel_sizes(shape_XYZ: tuple[int, ...], spacing_mm: Spacing) -> list[tuple[int, int]]:
    """Return width and height in pixels of the three panels, one scale for all, true to the voxel spacing."""
    extent = [count * step for count, step in zip(shape_XYZ, spacing_mm, strict=True)]
    scale = PANEL_PX / max(extent)
    return [(max(1, round(extent[p.across] * scale)), max(1, round(extent[p.down] * scale))) for p in PLANES]


def brain_box(brain_XYZ: Mask, spacing_mm: Spacing) -> tuple[slice, slice, slice]:
    """Return the part of the grid that holds the brain and a margin; all of it when there is no brain."""
    box = []
    for axis, step in enumerate(spacing_mm):
        count = brain_XYZ.shape[axis]
        filled = np.flatnonzero(brain_XYZ.any(tuple({0, 1, 2} - {axis})))
        margin = round(MARGIN_MM / step)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, count - 1)
        box.append(slice(max(0, first - margin), min(count, last + 1 + margin)))
    return box[0], box[1], box[2]


def rank_tissues(label_XYZ: LabelMap, convention: LabelConvention, where: object) -> Bytes:
    """Number the tissues from outside in: 0 background, then 1, 2, 3 in the order of TISSUE_COLOURS.

    `where` names the origin of the label map. Raises InputError for labels of another convention.
    """
    split_regions(label_XYZ, convention, where)
    rank_XYZ = np.zeros(label_XYZ.shape, np.uint8)
    for rank, tissue in enumerate(TISSUE_COLOURS, start=1):
        rank_XYZ[label_XYZ == convention.tissues[tissue]] = rank
    return rank_XYZ


def _busiest_slice(rank_XYZ: Bytes, plane: Plane) -> int:
    """Return the index of the slice with the largest tumour area; the middle one without tumour."""
    areas = np.count_nonzero(rank_XYZ, axis=(plane.across, plane.down))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def _panel(grey_HW: Bytes, rank_HW: Bytes, edges: tuple[str, ...], size: tuple[int, int]) -> Image.Image:
    """Draw one slice at `size` pixels with outlines and the directions on its edges."""
    grey = np.asarray(Image.fromarray(grey_HW).resize(size, Image.Resampling.BICUBIC))
    rank = np.asarray(Image.fromarray(rank_HW).resize(size, Image.Resampling.NEAREST))
    # A line runs on the inner side of each border between tissues, in the inner tissue's colour.
    outline = ndimage.minimum_filter(rank, 2 * OUTLINE_PX + 1) < rank
    colours = np.array([(0, 0, 0), *TISSUE_COLOURS.values()], np.uint8)
    panel = Image.fromarray(np.where(outline[..., None], colours[rank], grey[..., None]))
    draw = ImageDraw.Draw(panel)
    width, height = size
    places = ((5, height // 2), (width - 5, height // 2), (width // 2, 4), (width // 2, height - 4))
    for letter, place, anchor in zip(edges, places, ("lm", "rm", "ma", "md"), strict=True):
        draw.text(place, letter, TEXT, font(15), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    return panel


def _empty_panel(size: tuple[int, int]) -> Image.Image:
    """Draw the panel of a modality that was not given."""
    panel = Image.new("RGB", size)
    ImageDraw.Draw(panel).text((size[0] // 2, size[1] // 2), "not given", FAINT, font(19), "mm")
    return panel


def _legend(
    draw: ImageDraw.ImageDraw, label_XYZ: LabelMap, convention: LabelConvention, spacing_mm: Spacing, top: int
) -> None:
    """Write each tissue's colour, name and volume."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    left = float(LEFT_PX)
    for tissue, colour in TISSUE_COLOURS.items():
        volume_ml = np.count_nonzero(label_XYZ == convention.tissues[tissue]) * voxel_ml
        entry = f"{tissue}  {format_millilitres(volume_ml)} mL"
        draw.rectangle((left, top + 12, left + 15, top + 27), colour)
        draw.text((left + 24, top + 20), entry, TEXT, font(17), "lm")
        left += 24 + draw.textlength(entry, font(17)) + 32
    whole = f"whole tumour  {format_millilitres(np.count_nonzero(label_XYZ) * voxel_ml)} mL"
    draw.text((left, top + 20), whole, TEXT, font(17), "lm")

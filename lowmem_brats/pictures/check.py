"""The picture by which a person checks a prepared case: T1ce and each sequence in the squares of a checkerboard.

Where the sequences lie on each other, edges run on from square to square. The first row shows T1ce with its skull and
the outline of what is taken for the brain.

Array axes are LPS; `C` modalities.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import Mask
from lowmem_brats.pictures.curves import (
    FAINT,
    FOOT_PX,
    GAP_PX,
    LEFT_PX,
    TOP_PX,
    Bytes,
    font,
    new_page,
    windowed,
    write_upwards,
)
from lowmem_brats.pictures.preview import PLANES, Spacing, panel_sizes

SQUARE_PX = 40
OUTLINE = (86, 180, 233)
NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}


def draw_check(
    images_CXYZ: npt.NDArray[np.float32],
    head_XYZ: npt.NDArray[np.float32],
    mask_XYZ: Mask,
    missing: Collection[str],
    spacing_mm: Spacing,
    title: str,
) -> Image.Image:
    """Draw a prepared case: a row for T1ce, and one for each other modality; columns axial, coronal, sagittal.

    `images_CXYZ`: channels as config.MODALITIES, 0 outside the brain. `head_XYZ`: T1ce with its skull. `mask_XYZ`: what
    was taken for the brain; the slices go through its middle. Returns an RGB picture.
    """
    box = ndimage.find_objects(mask_XYZ.view(np.uint8))
    middles = [(each.start + each.stop) // 2 for each in box[0]] if box else [n // 2 for n in mask_XYZ.shape]
    sizes = panel_sizes(mask_XYZ.shape, spacing_mm)
    rows = ["t1ce", *(m for m in MODALITIES if m != "t1ce" and m not in missing)]
    row_px = max(height for _, height in sizes) + GAP_PX
    width = LEFT_PX + sum(size[0] + GAP_PX for size in sizes)
    page = new_page(width, TOP_PX + len(rows) * row_px + FOOT_PX, title)
    draw = ImageDraw.Draw(page)
    head_grey_XYZ = windowed(head_XYZ, head_XYZ > 0)
    mask_byte_XYZ = mask_XYZ.astype(np.uint8)
    anchor_XYZ = windowed(images_CXYZ[MODALITIES.index("t1ce")], mask_XYZ)
    for row, modality in enumerate(rows):
        top = TOP_PX + row * row_px
        write_upwards(page, NAMES[modality], top + (row_px - GAP_PX) // 2)
        first_XYZ = head_grey_XYZ if modality == "t1ce" else anchor_XYZ
        other_XYZ = first_XYZ if modality == "t1ce" else windowed(images_CXYZ[MODALITIES.index(modality)], mask_XYZ)
        left = LEFT_PX
        for plane, size in zip(PLANES, sizes, strict=True):
            at = middles[plane.axis]
            panel = _panel(plane.cut(first_XYZ, at), plane.cut(other_XYZ, at), plane.cut(mask_byte_XYZ, at), size)
            page.paste(panel, (left, top + (row_px - GAP_PX - size[1]) // 2))
            if row == 0:
                draw.text((left, TOP_PX - 10), plane.name, FAINT, font(17), "ls")
            left += size[0] + GAP_PX
    told = (
        "Row 1: T1ce, brain mask outlined. Below: squares of T1ce and of the sequence; edges must run on between them."
    )
    draw.text((LEFT_PX, page.height - FOOT_PX + 20), told, FAINT, font(15), "lm")
    return page


def _panel(first_HW: Bytes, other_HW: Bytes, mask_HW: Bytes, size: tuple[int, int]) -> Image.Image:
    """A checkerboard of two slices at `size` pixels, with the mask's outline."""
    first, other = (
        np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in (first_HW, other_HW)
    )
    inside = np.asarray(Image.fromarray(mask_HW * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    down, across = np.indices(first.shape) // SQUARE_PX
    mixed = np.where((down + across) % 2 == 0, first, other)
    outline = inside & ~ndimage.binary_erosion(inside)
    return Image.fromarray(np.where(outline[..., None], np.array(OUTLINE, np.uint8), mixed[..., None]).astype(np.uint8))

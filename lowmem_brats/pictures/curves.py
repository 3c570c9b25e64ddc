"""Pictures of a training: curves and predictions on validation slices. Also what all pictures of the program share.

Shape suffixes: C modalities, H W in-plane (rows run to posterior, columns to the patient's left), N points of a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import Mask
from lowmem_brats.train.validate import Example

Bytes = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Range = tuple[float, float]
Line = npt.NDArray[np.float64]

LEFT_PX, TOP_PX, GAP_PX, FOOT_PX = 48, 92, 14, 84
PAGE: Colour = (18, 20, 24)
TEXT: Colour = (226, 231, 238)
FAINT: Colour = (150, 159, 172)
FOOTER = "Research software, not a medical device."
ROWS = {"flair": "FLAIR", "t1ce": "T1ce"}
"""The modalities that pictures show, from top to bottom."""

PLOT_PX = (380, 220)
PLOT: Colour = (27, 30, 36)
GRID: Colour = (52, 57, 66)
# Colour-blind readers can tell these apart too.
LINE_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (245, 160, 30),
    (60, 200, 150),
    (225, 140, 190),
    (240, 228, 66),
    (240, 90, 40),
)
_CELL_PX = (PLOT_PX[0] + 116, PLOT_PX[1] + 126)  # a plot with its labels
_LINE_PX, _DOT_PX, _EDGE_PX = 2.0, 3.5, 5  # a line's width, a dot's radius, room for both around the plot
_FINER = 4  # lines are drawn this many times larger and then reduced, which smooths their edges
MOST_POINTS = 190
"""A line with more points is drawn as the means of this many equal runs of them; noise would hide it otherwise."""

FRAME_PX = (300, 360)
MARGIN = 6  # pixels of a slice left free around it, for the letters
OUTLINES: dict[str, tuple[Colour, int]] = {"reference": ((86, 180, 233), 5), "predicted": ((250, 120, 30), 2)}
"""Name → colour and width in pixels; the second, narrower outline is drawn on top of the first."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    name: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Name → (x, y) points from left to right; a point that is not finite leaves a gap."""
    marks: Sequence[tuple[float, str]] = ()
    """(x, short text) of vertical dashed lines."""
    x_label: str = "steps"
    y_range: Range | None = None
    """Lowest and highest value shown; values beyond are drawn on the edge. None: taken from the data."""


def draw_curves(panels: Sequence[Panel], title: str) -> Image.Image:
    """Draw line charts in two rows, the first half of the panels above the second half. Returns an RGB picture."""
    panels = panels or [Panel("", {})]
    columns = (len(panels) + 1) // 2
    rows = -(-len(panels) // columns)
    page = new_page(LEFT_PX + columns * _CELL_PX[0], TOP_PX + rows * _CELL_PX[1], title)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        _draw_panel(page, panel, LEFT_PX + column * _CELL_PX[0] + 42, TOP_PX + row * _CELL_PX[1] + 38)
    return page


def draw_examples(examples: Sequence[Example], title: str) -> Image.Image:
    """Draw one column per example, FLAIR above T1ce, with outlines of reference and prediction. Returns RGB."""
    width, height = FRAME_PX[0] + GAP_PX, FRAME_PX[1] + GAP_PX
    page = new_page(LEFT_PX + max(1, len(examples)) * width, TOP_PX + 30 + 2 * height + FOOT_PX, title)
    draw = ImageDraw.Draw(page)
    for row, heading in enumerate(ROWS.values()):
        write_upwards(page, heading, TOP_PX + 30 + row * height + FRAME_PX[1] // 2)
    for column, example in enumerate(examples):
        left = LEFT_PX + column * width
        draw.text((left, TOP_PX), example.case_id, TEXT, _fitting(draw, example.case_id, 17, FRAME_PX[0]), "ls")
        draw.text((left, TOP_PX + 21), f"z = {example.z}, Dice {example.dice:.3f}", FAINT, font(15), "ls")
        for row, modality in enumerate(ROWS):
            page.paste(_frame(example, modality), (left, TOP_PX + 30 + row * height))
    _legend(draw, {name: colour for name, (colour, _) in OUTLINES.items()}, LEFT_PX, page.height - 64, page.width)
    return page


def new_page(width: int, height: int, title: str) -> Image.Image:
    """Return an empty RGB page of `width` × `height` pixels with a title at the top and the footer at the bottom.

    The title is drawn on one line, whatever characters the names in it have.
    """
    title = " ".join(title.encode("utf-8", "backslashreplace").decode().split())
    page = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((LEFT_PX, 18), title, TEXT, _fitting(draw, title, 24, width - LEFT_PX - GAP_PX))
    draw.text((LEFT_PX, height - 28), FOOTER, FAINT, font(15), "lm")
    return page


def windowed(image: npt.NDArray[np.float32], brain: Mask) -> Bytes:
    """Map the brain's values from the 1st to the 99th percentile to grey values 1–255; 0 outside the brain.

    `image`, `brain`: arrays of one shape.
    """
    low, high = np.percentile(image[brain], (1, 99)) if brain.any() else (0.0, 1.0)
    return np.where(brain, 1 + 254 * np.clip((image - low) / max(high - low, 1e-6), 0, 1), 0).astype(np.uint8)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in font in `size` pixels, so that no font has to be installed."""
    return ImageFont.load_default(size)


def write_upwards(page: Image.Image, text: str, middle_y: int) -> None:
    """Write the heading of a row along the left edge, rotated, centred on `middle_y`."""
    strip = Image.new("RGB", (120, 28), PAGE)
    ImageDraw.Draw(strip).text((60, 14), text, TEXT, font(19), "mm")
    page.paste(strip.rotate(90, expand=True), (12, middle_y - 60))


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, size: int, width: float
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to `size` in which the text fits into `width` pixels."""
    return font(max(9, min(size, int(size * width / max(draw.textlength(text, font(size)), 1)))))


def _legend(draw: ImageDraw.ImageDraw, colours: Mapping[str, Colour], left: float, top: float, right: float) -> None:
    """Write each name beside a square of its colour, in rows between `left` and `right`."""
    at = left
    for name, colour in colours.items():
        width = 22 + draw.textlength(name, font(15)) + 22
        if at > left and at + width > right:
            at, top = left, top + 20
        draw.rectangle((at, top + 3, at + 13, top + 16), colour)
        draw.text((at + 22, top + 10), name, TEXT, font(15), "lm")
        at += width


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart, in at most `most` steps."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _points(line: Sequence[tuple[float, float]]) -> Line:
    """The points of a line, [N, 2]; if there are more than MOST_POINTS, that many means."""
    points_N2 = np.array(line, np.float64).reshape(-1, 2)
    runs = np.array_split(points_N2, MOST_POINTS) if len(points_N2) > MOST_POINTS else ()
    return np.array([run.mean(axis=0) for run in runs]) if runs else points_N2


def _range(values: Line, margin: float) -> Range:
    """The smallest and largest finite value with a margin around them; 0 to 1 if there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    extra = (high - low) * margin if high > low else max(abs(high), 1.0) * 0.05
    return low - extra, high + extra


def _draw_panel(page: Image.Image, panel: Panel, left: int, top: int) -> None:
    """Draw one chart, with the upper left corner of its plot at (left, top)."""
    draw = ImageDraw.Draw(page)
    width, height = PLOT_PX
    draw.text((left, top - 12), panel.name, TEXT, font(17), "ls")
    draw.rectangle((left, top, left + width, top + height), PLOT)
    lines = {name: points for name, line in panel.lines.items() if len(points := _points(line))}
    if not lines:
        draw.text((left + width / 2, top + height / 2), "no data yet", FAINT, font(17), "mm")
        return
    together = np.concatenate(list(lines.values()))
    low_x, high_x = _range(np.append(together[:, 0], 0.0), 0.0)
    low_y, high_y = panel.y_range or _range(together[:, 1], 0.05)

    def place(points_N2: Line) -> Line:
        x = (points_N2[:, 0] - low_x) / (high_x - low_x) * width
        return np.stack([x, (1 - np.clip((points_N2[:, 1] - low_y) / (high_y - low_y), 0, 1)) * height], axis=1)

    for value in ticks(low_y, high_y):
        y = top + float(place(np.array([[low_x, value]]))[0, 1])
        draw.line((left, y, left + width, y), GRID)
        draw.text((left - 7, y), f"{value:.4g}", FAINT, font(14), "rm")
    for value in ticks(low_x, high_x):
        x = left + float(place(np.array([[value, low_y]]))[0, 0])
        draw.line((x, top, x, top + height), GRID)
        draw.text((x, top + height + 6), f"{value:.6g}", FAINT, font(14), "ma")
    draw.text((left + width / 2, top + height + 26), panel.x_label, FAINT, font(14), "ma")
    for number, (at, text) in enumerate(panel.marks):
        x = left + float(place(np.array([[at, low_y]]))[0, 0])
        for y in range(top, top + height, 8):
            draw.line((x, y, x, min(y + 4, top + height)), FAINT)
        x, anchor = (x + 3, "la") if x < left + width / 2 else (x - 3, "ra")
        draw.text((x, top + 3 + 14 * (number % 3)), text, FAINT, font(12), anchor)  # side by side they would overlap
    colours = dict(zip(lines, LINE_COLOURS * (len(lines) // len(LINE_COLOURS) + 1), strict=False))
    for name, points_N2 in lines.items():
        _draw_line(page, place(points_N2), colours[name], left, top)
        last = points_N2[np.isfinite(points_N2).all(axis=1)][-1:]
        if len(last):
            y = top + float(place(last)[0, 1])
            draw.text((left + width + 8, y), f"{last[0, 1]:.3f}", colours[name], font(14), "lm")
    if len(lines) > 1:
        _legend(draw, colours, left, top + height + 46, left + width)


def _draw_line(page: Image.Image, points_N2: Line, colour: Colour, left: int, top: int) -> None:
    """Draw a smooth line over the plot at (left, top); non-finite points leave gaps, lone points are dots."""
    size = tuple(_FINER * (side + 2 * _EDGE_PX) for side in PLOT_PX)
    mask = Image.new("L", size)  # type: ignore[arg-type]
    draw = ImageDraw.Draw(mask)
    sound_N = np.asarray(np.isfinite(points_N2).all(axis=1))
    for run in np.split(np.arange(len(points_N2)), np.flatnonzero(np.diff(sound_N)) + 1):
        if not sound_N[run].all():
            continue
        at = [tuple(_FINER * (xy + _EDGE_PX)) for xy in points_N2[run]]
        draw.line(at, 255, round(_FINER * _LINE_PX), "curve")
        if len(at) == 1:
            (x, y), radius = at[0], _FINER * _DOT_PX
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    mask = mask.resize(tuple(side // _FINER for side in size), Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    page.paste(colour, (left - _EDGE_PX, top - _EDGE_PX), mask)


def _frame(example: Example, modality: str) -> Image.Image:
    """One slice with both outlines, as large as FRAME_PX allows, with the letters R and L at its sides."""
    grey_HW = example.slice_CHW[MODALITIES.index(modality)]
    brain_HW = (example.slice_CHW != 0).any(axis=0)
    height, width = grey_HW.shape
    scale = min(FRAME_PX[0] / (width + 2 * MARGIN), FRAME_PX[1] / (height + 2 * MARGIN))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.asarray(Image.fromarray(windowed(grey_HW, brain_HW)).resize(size, Image.Resampling.BICUBIC))
    picture = np.repeat(picture[..., None], 3, axis=2)
    for name, mask_HW in (("reference", example.reference_HW), ("predicted", example.predicted_HW)):
        colour, thickness = OUTLINES[name]
        mask = np.asarray(Image.fromarray(mask_HW).resize(size, Image.Resampling.NEAREST)).astype(bool)
        outline = mask & ~ndimage.binary_erosion(mask, iterations=thickness)
        picture = np.where(outline[..., None], np.array(colour, np.uint8), picture)
    frame = Image.new("RGB", FRAME_PX)
    frame.paste(Image.fromarray(picture), ((FRAME_PX[0] - size[0]) // 2, (FRAME_PX[1] - size[1]) // 2))
    draw = ImageDraw.Draw(frame)
    for letter, x, anchor in (("R", 5, "lm"), ("L", FRAME_PX[0] - 5, "rm")):
        draw.text((x, FRAME_PX[1] // 2), letter, TEXT, font(15), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    return frame

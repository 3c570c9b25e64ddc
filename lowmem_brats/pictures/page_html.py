"""The parts of a page as HTML. Every text from a file is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from lowmem_brats import __version__
from lowmem_brats.pictures.curves import Colour

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Frame:
    """The stored files that a kind of page is made of."""

    page: str
    styles: Sequence[str]
    scripts: Sequence[str]


CASE = Frame("page.html", ("page.css",), ("page_draw.js", "page.js"))
COHORT = Frame("cohort.html", ("page.css", "cohort.css"), ("cohort.js",))


@dataclass(frozen=True)
class Strip:
    """Which of many slices something is true of, as a strip with a mark for each run of them."""

    count: int
    """Of all slices."""
    runs: Sequence[Sequence[int]]
    """First, and one after the last, of each run."""


@dataclass(frozen=True)
class Table:
    """A table of facts at the foot of a page."""

    heading: str
    rows: Sequence[tuple[str, str | Strip]]
    """What, and its value; any text, or a strip."""


def fill_frame(parts: Mapping[str, str], frame: Frame = CASE) -> str:
    """Put the parts, which are HTML, into a frame, with its look and scripts.

    The page allows exactly these scripts and styles, told by their checksums, and to load nothing else than its frame
    says.
    """
    style, script = "".join(map(_stored, frame.styles)), "".join(map(_stored, frame.scripts))
    own = {"style": style, "script": script, "version": __version__}
    allowed = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return Template(_stored(frame.page)).substitute(parts, **own, **allowed)


def text(value: object) -> str:
    """Any text as HTML, inside or outside of a tag; bytes that are no UTF-8 as in `\\udce9`."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def data(values: object) -> str:
    """Plain values as JSON that may stand in a script element: without `<`, `>`, `&`, and in ASCII."""
    written = json.dumps(values, allow_nan=False)
    return written.translate({ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"})


def css(colour: Colour) -> str:
    """A colour in the words of CSS."""
    return f"rgb({' '.join(map(str, colour))})"


def swatch(colour: Colour) -> str:
    """A small patch of a colour."""
    return f'<span class="swatch" data-colour="{css(colour)}"></span>'


def warnings_box(warnings: Sequence[str]) -> str:
    """All warnings, or nothing."""
    rows = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    return f'<section class="warnings" aria-label="Warnings"><ul>{rows}</ul></section>' if warnings else ""


def choice(of: str, values: Iterable[tuple[str, str, bool]]) -> str:
    """Buttons of which one is chosen, as the viewer reads them: value, title, whether it can be chosen."""
    return "".join(
        f'<button data-set="{of}" data-to="{value}"{"" if given else " disabled"}>{text(title)}</button>'
        for value, title, given in values
    )


def reading(title: str, name: str) -> str:
    """A place where the viewer writes what it shows."""
    return f'<div><dt>{text(title)}</dt><dd id="{name}"></dd></div>'


def plane_figure(name: str) -> str:
    """A plane: its slice, and below it the bar that shows and chooses the slice."""
    title = name.capitalize()
    return (
        f'<figure class="plane" id="{name}"><figcaption><b>{title}</b> <output></output>'
        f'<button aria-label="Enlarge the {name} plane">Enlarge</button></figcaption>'
        f'<canvas class="picture" tabindex="0" role="img" aria-label="{title} slice; arrow keys show others"></canvas>'
        f'<div class="scroll"><canvas></canvas>'
        f'<input type="range" min="0" step="1" aria-label="{title} slice"></div></figure>\n'
    )


def numbers(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column, which is HTML, says what the numbers in the others are."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{text(value)}</td>" for value in row[1:])}</tr>'
        for row in rows
    )
    return f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_table(table: Table) -> str:
    """A table of facts."""
    shown = ((what, _strip(value) if isinstance(value, Strip) else text(value)) for what, value in table.rows)
    rows = "".join(f'<tr><th scope="row">{text(what)}</th><td>{value}</td></tr>' for what, value in shown)
    return f"<div><h2>{text(table.heading)}</h2><table><tbody>{rows}</tbody></table></div>\n"


def _strip(strip: Strip) -> str:
    marks = "".join(f'<rect x="{first}" width="{end - first}" height="1"/>' for first, end in strip.runs)
    held = sum(end - first for first, end in strip.runs)
    frame = f'viewBox="0 0 {strip.count} 1" preserveAspectRatio="none" role="img"'
    return f'<svg class="strip" {frame} aria-label="{held} of {strip.count}">{marks}</svg> {held} of {strip.count}'


def volume(name: str, packed: str) -> str:
    """A packed volume where the viewer finds it."""
    return f'<script type="text/plain" id="volume-{name}">{packed}</script>\n'


@cache
def _stored(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

"""The page of a cohort: one HTML file with a row for each case, which links the case's page and sorts by any column."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from lowmem_brats.data.labels import format_millilitres
from lowmem_brats.pictures import page_html as html

VOLUMES = {"wt": "WT mL", "tc": "TC mL", "et": "ET mL", "necrotic core": "necrotic core mL", "oedema": "oedema mL"}
"""Key of a record's `volumes_ml` → heading."""
WORDS = ("picture", "case", "status", "what is flagged")
HEADINGS = (
    "picture",
    "case",
    "status",
    *VOLUMES.values(),
    "least expected Dice",
    "flags",
    "what is flagged",
    "seconds",
)


def draw_cohort(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Draw the records of all cases, as `cohort.records` keeps them, as an HTML page beside their results.

    It holds all but the pictures, which are shown from their files. Texts may hold any characters.
    """
    failed = sum(record["status"] == "failed" for record in records)
    flagged = sum(bool(record.get("warnings")) for record in records)
    counts = f"{len(records)} cases, {failed} failed, {flagged} with warnings"
    parts = {
        "title": html.text(title),
        "counts": html.text(counts),
        "headings": "".join(map(_heading, HEADINGS)),
        "rows": "\n".join(map(_row, records)),
    }
    return html.fill_frame(parts, html.COHORT)


def _heading(title: str) -> str:
    kind = ' class="words"' if title in WORDS else ""
    return f'<th scope="col"{kind}><button>{html.text(title)}</button></th>'


def _row(record: Mapping[str, Any]) -> str:
    case_id, volumes, seconds = record["case_id"], record.get("volumes_ml", {}), record.get("seconds")
    told = [*record.get("warnings", []), *filter(None, [record.get("error")])]
    shown = f'<img src="{_address(record["preview"])}" alt="" loading="lazy">' if record.get("preview") else ""
    best = record.get("page") or record.get("preview")
    cells = [
        _cell("", _link(record.get("preview"), shown)),
        f'<th scope="row" data-sort="{html.text(case_id)}">{_link(best, html.text(case_id))}</th>',
        _cell(record["status"], html.text(record["status"]), "words"),
        *(_number(volumes.get(key), format_millilitres) for key in VOLUMES),
        _number(min(record.get("expected_dice", {}).values(), default=None), "{:.2f}".format),
        _cell(len(told), str(len(told) or "")),
        _cell(told[0] if told else "", _flags(told), "words"),
        _number(seconds, "{:.1f}".format),
    ]
    return f'<tr class="{html.text(record["status"])}">{"".join(cells)}</tr>'


def _cell(sort: object, shown: str, kind: str = "") -> str:
    """A cell of HTML; `sort`: what it is sorted by, empty for no value."""
    return f'<td data-sort="{html.text(sort)}"{f" class={kind}" if kind else ""}>{shown}</td>'


def _number(value: float | None, write: Any) -> str:
    return _cell("" if value is None else value, "" if value is None else html.text(write(value)))


def _flags(told: Sequence[str]) -> str:
    """The texts; several are folded behind the first."""
    if len(told) < 2:
        return "".join(map(html.text, told))
    items = "".join(f"<li>{html.text(each)}</li>" for each in told[1:])
    return f"<details><summary>{html.text(told[0])}</summary><ul>{items}</ul></details>"


def _link(name: str | None, shown: str) -> str:
    return f'<a href="{_address(name)}">{shown}</a>' if name else shown


def _address(name: str) -> str:
    """The address of a file beside the page, whatever bytes its name is of."""
    return quote(os.fsencode(name))

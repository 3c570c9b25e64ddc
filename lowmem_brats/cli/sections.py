"""Help with the options under headings."""

from __future__ import annotations

from typing import Any

import click

OTHER = "Other options"
WIDEST = 30
"""Columns for the options' names; click goes on in the next line for a longer one."""


class SectionOption(click.Option):
    """An option that stands under the heading `section`."""

    def __init__(self, *arguments: Any, section: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help shows options under their headings, in the order of the first option of each.

    Options without a heading come last, as other options.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, with all explanations in one column."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row:
                sections.setdefault(getattr(parameter, "section", "") or OTHER, []).append(row)
        sections[OTHER] = sections.pop(OTHER, [])
        widths = {heading: max((len(name) for name, _ in rows), default=0) for heading, rows in sections.items()}
        widest = min(max(widths.values()), WIDEST)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows, WIDEST, 2 + widest - min(widths[heading], widest))

"""Options under headings."""

from __future__ import annotations

import click
from click.testing import CliRunner

from lowmem_brats.cli.sections import SectionedCommand, SectionOption

HELP = """\
Usage: toy [OPTIONS]

  A toy.

Colours:
  --red                           Red.
  --blue TEXT                     Blue.

Sizes:
  --a-very-long-name-of-an-option INTEGER
                                  How large it is, explained in so many words
                                  that they go on in the next line.

Other options:
  --plain                         Without a heading.
  --help                          Show this message and exit.
"""
NARROW = """\
Usage: toy [OPTIONS]

Colours:
  --red   Red.

Other options:
  --help  Show this message and exit.
"""


def shown(**settings: object) -> str:
    result = CliRunner().invoke(SectionedCommand("toy", **settings), ["--help"], prog_name="toy", terminal_width=80)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_help_of_a_toy() -> None:
    explained = "How large it is, explained in so many words that they go on in the next line."
    options = [
        SectionOption(["--red"], is_flag=True, help="Red.", section="Colours"),
        click.Option(["--plain"], is_flag=True, help="Without a heading."),
        SectionOption(["--a-very-long-name-of-an-option"], type=int, help=explained, section="Sizes"),
        SectionOption(["--secret"], hidden=True, section="Secrets"),
        click.Argument(["places"], nargs=-1, metavar=""),
        SectionOption(["--blue"], help="Blue.", section="Colours"),
    ]
    assert shown(params=options, help="A toy.").replace("[OPTIONS] \n", "[OPTIONS]\n") == HELP


def test_short_options_keep_their_explanations_near() -> None:
    assert shown(params=[SectionOption(["--red"], is_flag=True, help="Red.", section="Colours")]) == NARROW

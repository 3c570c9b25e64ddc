"""Every command in the documents exists, with every flag that it is shown with; every command is in the README."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from lowmem_brats.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "weights" / "README.md") if p.exists()]
COMMANDS = sorted(
    {
        line.split("#")[0].strip().rstrip("\\`")
        for document in DOCUMENTS
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL)
        for line in re.split(r"\n|&&", block)
        if line.strip().removeprefix("$ ").startswith("lowmem-brats")
    }
)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 4


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_parse(line: str) -> None:
    words = shlex.split(line.strip().removeprefix("$ "))[1:]
    if words == ["--help"]:
        return
    command = main.commands[words[0]]
    command.make_parser(click.Context(command)).parse_args(words[1:])
    with click.Context(command, info_name=words[0]) as context:
        command.parse_args(context, words[1:])


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"lowmem-brats {name}" in (ROOT / "README.md").read_text()


def test_every_file_that_the_documents_name_exists() -> None:
    """A path in a document is one from the repository, the package or the benchmarks, or named there as gone."""
    named = {
        (document.name, path)
        for document in DOCUMENTS
        for path in re.findall(r"(?<![\w./])((?:\w+/)*\w+\.py)\b", document.read_text())
    }
    gone = (ROOT / "benchmarks" / "README.md").read_text().partition("a script that is not here any more")[2]
    places = [ROOT, ROOT / "lowmem_brats", ROOT / "benchmarks", ROOT / "lowmem_brats" / "data"]
    missing = [row for row in named if not any((place / row[1]).is_file() for place in places)]
    assert ("architecture.md", "segment/stack.py") in named
    assert not [row for row in missing if f"`{Path(row[1]).stem}`" not in gone]

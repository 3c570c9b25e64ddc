"""Commands in the documents exist, with every flag that they are shown with; README and NOTICE know every network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from lowmem_brats.cli import main
from lowmem_brats.config import NETWORKS

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


def test_the_readme_lists_the_networks_and_their_papers() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Networks\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", section, re.MULTILINE)
    listed = {name.strip("`"): what for names, what in rows[1:] for name in names.split(", ")}
    assert list(listed) == list(NETWORKS)
    assert [name for name, what in NETWORKS.items() if papers(what) - papers(listed[name])] == []


def test_the_notice_names_the_paper_of_every_network() -> None:
    notice = (ROOT / "NOTICE").read_text().partition("Networks and the papers")[2].partition("\nWeights")[0]
    rows = dict(re.findall(r"^  (\w+)  +((?:.|\n   )*)", notice, re.MULTILINE))
    assert rows.keys() == {name.split("-")[0] for name in NETWORKS}
    for name, what in NETWORKS.items():
        told = rows[name.split("-")[0]]
        assert [(author, year) for author, year in papers(what) if author not in told or year not in told] == []


def papers(text: str) -> set[tuple[str, str]]:
    """First author and year of each paper in a text such as `U-Net, Ronneberger 2015`."""
    return set(re.findall(r"(\w+) (\d{4})", text))

"""Each option stands once: in the configuration, from which the commands take it, or in one command."""

from __future__ import annotations

import re
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from lowmem_brats.cli import main, options
from lowmem_brats.config import CohortConfig, NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.config.setting import TIME, Setting, settings_of, words

CONFIGURATIONS = {"segment": [SegmentConfig, CohortConfig], "train": [NetworkConfig, TrainConfig]}
OWN = {
    "segment": "--allow-missing --dicom-seg --flair --help --no-page --no-preview --output --overwrite --page "
    "--prepare --preview --quiet --report --t1 --t1ce --t2",
    "train": "--cache --help --output --overwrite --preset --quiet --resume",
}
"""What a command takes beside the options of its configurations."""


@pytest.mark.parametrize("command", CONFIGURATIONS)
def test_the_help_shows_every_option_of_the_configuration_once_and_no_other(command: str) -> None:
    text = CliRunner().invoke(main, [command, "--help"], env={"COLUMNS": "200"}).output.partition("Main options:")[2]
    names = [name for row in re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE) for name in row.split()]
    shown = sorted(name for name in names if name.startswith("--"))
    described = [each for config in CONFIGURATIONS[command] for each in settings_of(config).values() if each.option]
    assert shown == sorted([*OWN[command].split(), *(name for each in described for name in each.option.split("/"))])


@pytest.mark.parametrize("command", CONFIGURATIONS)
def test_every_field_with_an_option_says_what_it_is_and_under_which_heading(command: str) -> None:
    shown = CliRunner().invoke(main, [command, "--help"]).output
    for config in CONFIGURATIONS[command]:
        for name, described in settings_of(config).items():
            if described.option:
                assert re.fullmatch(r"[A-Z0-9a-z].*\.", described.help), name
                assert f"\n{described.section}:\n" in shown


def test_the_options_of_a_command_say_what_a_plain_call_says() -> None:
    """No option changes anything by itself: without any, every configuration is its default."""
    for config in (NetworkConfig, SegmentConfig, TrainConfig):
        command = options.gather("made", options.fields_of(config), config)(lambda made: made)
        command = click.command()(options.of(config)(command))
        assert command.main([], standalone_mode=False) == config()


@dataclass(frozen=True, kw_only=True)
class Toy:
    number: int = Setting("--number", "A number.", "Toys", metavar="N").default(4)
    share: float | None = Setting("--share", "A share.", "Toys").default(None)
    kind: int = Setting("--kind", "A kind.", "Toys", choices={"one": 1, "many": 9}).default(1)
    parts: tuple[str, ...] = Setting("--part", "Parts.", "Toys", choices=words("a", "b")).default(())
    seconds: float | None = Setting("--time", "A time.", "Toys", form=TIME).default(None)
    careful: bool = Setting("--careful", "Take care.", "Toys").default(False)
    quick: bool = Setting("--quick/--slow", "How fast.", "Toys").default(True)
    hidden: int = Setting().default(0)


@click.command()
@options.of(Toy)
@click.option("--other")
@options.gather("toy", options.fields_of(Toy), Toy)
def _play(toy: Toy, other: str | None) -> tuple[Toy, str | None, set[str]]:
    return toy, other, options.named()


def played(*arguments: str) -> tuple[Toy, str | None, set[str]]:
    result: tuple[Toy, str | None, set[str]] = _play.main(list(arguments), standalone_mode=False)
    return result


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ((), {}),
        (("--number", "5"), {"number": 5}),
        (("--share", "0.5"), {"share": 0.5}),
        (("--kind", "many"), {"kind": 9}),
        (("--part", "b", "--part", "a", "--part", "b"), {"parts": ("b", "a")}),
        (("--time", "1m30s"), {"seconds": 90.0}),
        (("--careful", "--slow"), {"careful": True, "quick": False}),
        (("--quick",), {"quick": True}),
    ],
)
def test_options_become_fields(arguments: tuple[str, ...], values: dict[str, object]) -> None:
    assert played(*arguments, "--other", "x") == (Toy(**values), "x", {*values, "other"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--number", "x"), "'x' is not a valid integer"),
        (("--kind", "9"), "'9' is not one of 'one', 'many'"),
        (("--part", "c"), "'c' is not one of 'a', 'b'"),
        (("--time", "soon"), "'soon', expected a time such as 8h, 90m or 1h30m"),
        (("--hidden", "1"), "No such option"),
    ],
)
def test_what_an_option_cannot_be(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(_play, arguments)
    assert result.exit_code == 2
    assert told in result.output


def test_the_help_says_what_the_fields_say() -> None:
    text = CliRunner().invoke(_play, ["--help"], env={"COLUMNS": "200"}).output
    rows = [re.sub(" {2,}", "  ", line.strip()) for line in text.splitlines() if line.startswith("  --")]
    assert rows[:-2] == [
        "--number N  A number.  [default: 4]",
        "--share FLOAT  A share.",
        "--kind [one|many]  A kind.  [default: one]",
        "--part [a|b]  Parts.",
        "--time TEXT  A time.",
        "--careful  Take care.",
        "--quick / --slow  How fast.  [default: quick]",
    ]


def test_some_fields_under_another_heading() -> None:
    command = click.command()(options.of(Toy, "kind", "number", section="Elsewhere")(lambda kind, number: None))
    assert [(each.name, each.section) for each in command.params] == [("kind", "Elsewhere"), ("number", "Elsewhere")]

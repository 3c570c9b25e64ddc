"""Misspelt commands, options and choices get a suggestion, whatever click itself suggests."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.cli import main
from lowmem_brats.cli.suggest import SuggestingGroup
from lowmem_brats.config import NETWORKS
from lowmem_brats.errors import did_you_mean

ALL_NETWORKS = ", ".join(NETWORKS)


def refused(*arguments: str) -> str:
    """The text of a usage error."""
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("segmnet",), "No such command 'segmnet'. Did you mean 'segment'?"),
        (("Plan", "--train"), "No such command 'Plan'. Did you mean 'plan'?"),
        (("qqq",), "No such command 'qqq'. The commands are bench, "),
        (("segment", ".", "--labels", "brats202"), "Did you mean 'brats2023' or 'brats2020'?"),
        (("segment", ".", "--precision", "fp61"), "is not one of 'auto', 'fp32', 'fp16', 'bf16'. Did you mean 'fp16'"),
        (("evaluate", ".", ".", "--reference-labels", "mds"), "Did you mean 'msd'?"),
        (("train", ".", "--schedule", "cosin"), "Did you mean 'cosine'?"),
        (("plan", "--device", "cdua"), "Did you mean 'cuda'?"),
        (("bench", "memroy"), "Did you mean 'memory'?"),
        (
            ("plan", "--network", "unet2e"),
            f"one of {ALL_NETWORKS}. Did you mean 'unet2d'",
        ),
        (
            ("plan", "--network", "squeeze"),
            f"one of {ALL_NETWORKS}. Check the spelling.",
        ),
        (("segment", ".", "--weights", "unet-2d"), "Did you mean 'unet2d'"),
    ],
)
def test_the_nearest_is_suggested(arguments: tuple[str, ...], suggested: str) -> None:
    assert suggested in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "meant"), [(("segment", ".", "--vrma", "2G"), "--vram"), (("--vresion",), "--version")]
)
def test_options_are_suggested(arguments: tuple[str, ...], meant: str) -> None:
    text = refused(*arguments)
    assert "No such option" in text  # the rest is click's, in the words of its release
    assert meant in text.rpartition("Error: ")[2]


def test_what_is_like_nothing_gets_the_list_alone() -> None:
    text = refused("segment", ".", "--labels", "xyz")
    assert text.rstrip().endswith("'xyz' is not one of 'brats2020', 'brats2023', 'msd'.")


@pytest.mark.parametrize("value", ["fast", "slow"])
def test_a_choice_that_exists_is_taken(value: str) -> None:
    group = SuggestingGroup("group")
    choice = click.Option(["--speed"], type=click.Choice(["fast", "slow"]))
    group.add_command(click.Command("go", params=[choice], callback=lambda speed: click.echo(f"{speed}!")))
    assert "[fast|slow]" in CliRunner().invoke(group, ["go", "--help"]).output
    assert CliRunner().invoke(group, ["go", "--speed", value]).output == f"{value}!\n"


@given(st.text(max_size=12))
def test_only_known_words_are_suggested(found: str) -> None:
    known = ("segment", "plan", "train")
    text = did_you_mean(found, known, "none")
    assert text == "none" or {*text.removeprefix("Did you mean ").rstrip("?").split(" or ")} <= {*map(repr, known)}


def test_a_known_word_comes_first() -> None:
    assert did_you_mean("trian", ["plan", "train"]) == "Did you mean 'train'?"
    assert did_you_mean("xyz", ["plan", "train"]) == ""

"""The commands. Importing this package imports neither torch nor nibabel, so `--help` answers at once."""

from __future__ import annotations

import errno
from typing import Any

import click

from lowmem_brats import __version__
from lowmem_brats.cli import console
from lowmem_brats.cli.bench import bench
from lowmem_brats.cli.demo import demo
from lowmem_brats.cli.doctor import doctor
from lowmem_brats.cli.evaluate import evaluate
from lowmem_brats.cli.failures import UnforeseenError, explain
from lowmem_brats.cli.import_ import import_
from lowmem_brats.cli.measure import compare, measure
from lowmem_brats.cli.page import page
from lowmem_brats.cli.phantom import phantom
from lowmem_brats.cli.plan import plan
from lowmem_brats.cli.prepare import prepare
from lowmem_brats.cli.segment import segment
from lowmem_brats.cli.suggest import SuggestingGroup
from lowmem_brats.cli.train import train


class _Shown(click.ClickException):
    """A user's error: its text on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print it as the other messages are printed, whatever the encoding."""
        console.err.print(f"Error: {self.message}", style="red")


class _Mistake(_Shown):
    """An error that nobody foresaw."""

    exit_code = 1


class _Commands(SuggestingGroup):
    def main(self, *args: Any, **settings: Any) -> Any:
        """As click's, on streams that take every text."""
        console.show_any_text()
        return super().main(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # nobody reads the output any more
                raise
            told = explain(error, f"lowmem-brats {ctx.invoked_subcommand}")
            raise (_Mistake if isinstance(told, UnforeseenError) else _Shown)(str(told)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version")
def main() -> None:
    """Segment brain tumours in BraTS MRI on a budget GPU or none.

    Research software, not a medical device. Inputs must be co-registered, skull-stripped and near 1 mm:
    `prepare` makes them so.

    Try it without any data: lowmem-brats demo
    """


for command in (prepare, segment, page, evaluate, measure, compare, train, import_, plan, doctor, bench, phantom, demo):
    main.add_command(command)

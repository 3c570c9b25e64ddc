"""The commands. Importing this package imports neither torch nor nibabel, so `--help` answers at once."""

from __future__ import annotations

import errno
from typing import Any

import click

from lowmem_brats import __version__
from lowmem_brats.cli.bench import bench
from lowmem_brats.cli.demo import demo
from lowmem_brats.cli.doctor import doctor
from lowmem_brats.cli.evaluate import evaluate
from lowmem_brats.cli.phantom import phantom
from lowmem_brats.cli.plan import plan
from lowmem_brats.cli.segment import segment
from lowmem_brats.cli.train import train
from lowmem_brats.errors import LowmemError


class _Shown(click.ClickException):
    """A user's error: its text on stderr, exit code 2."""

    exit_code = 2


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LowmemError as error:
            raise _Shown(str(error)) from error
        except OSError as error:  # a folder that cannot be made or read, a full disk
            if error.errno == errno.EPIPE:
                raise
            raise _Shown(f"{error.filename or 'file'}: {error.strerror or error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version")
def main() -> None:
    """Segment brain tumours in BraTS MRI on a budget GPU or none.

    Research software, not a medical device. Inputs must be co-registered, skull-stripped and near 1 mm.

    Try it without any data: lowmem-brats demo
    """


for command in (segment, evaluate, train, plan, doctor, bench, phantom, demo):
    main.add_command(command)

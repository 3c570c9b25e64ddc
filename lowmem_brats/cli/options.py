"""Options made from the configuration, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
from click.core import ParameterSource

from lowmem_brats.cli.sections import SectionOption
from lowmem_brats.config import BRATS_SHAPE, NetworkConfig
from lowmem_brats.config.setting import Form, Setting, settings_of
from lowmem_brats.data.labels import CONVENTIONS, LabelConvention
from lowmem_brats.errors import InputError

FILE = click.Path(path_type=Path)

Command = TypeVar("Command", bound=Callable[..., Any])


class _Written(click.ParamType):  # type: ignore[type-arg]
    """A value that is written in a form of its own."""

    def __init__(self, form: Form) -> None:
        self.form, self.name = form, "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text."""
        try:
            return self.form.read(value)
        except ValueError:
            self.fail(f"{value!r}, expected {self.form.expected}", param, ctx)


def option(*names: str, section: str = "", **settings: Any) -> Callable[[Command], Command]:
    """As click's, under the heading `section` of the help."""
    return click.option(*names, cls=SectionOption, section=section, **settings)


def of(config: type, *names: str, section: str | None = None) -> Callable[[Command], Command]:
    """The options for the named fields of a configuration class, or for all that have one; parameter = field.

    `section`: another heading than that of the field.
    """
    described = settings_of(config)

    def add(command: Command) -> Command:
        for name in reversed(names or [name for name in described if described[name].option]):
            heading = described[name].section if section is None else section
            command = _made(config, name, described[name], heading)(command)
        return command

    return add


def _made(config: type, name: str, described: Setting, section: str) -> Callable[[Command], Command]:
    hint, default = get_type_hints(config)[name], getattr(config, name)
    kind: Any = next((each for each in (bool, int, float) if each in (hint, *get_args(hint))), str)
    several, plain_flag = isinstance(default, tuple), kind is bool and "/" not in described.option
    if described.choices is not None:
        kind = click.Choice(list(described.choices))
        default = default if several or default is None else described.written(default)
    elif described.form:
        kind = _Written(described.form)

    def meant(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        """The field's value: without what was said twice, and what a word stands for."""
        if several:
            return tuple(dict.fromkeys(value))
        return (described.choices or {}).get(value, value)

    return option(
        described.option,
        name,
        type=kind,
        default=default,
        show_default=default not in (None, ()) and not plain_flag,
        help=described.help,
        metavar=described.metavar,
        multiple=several,
        callback=meant,
        section=section,
        **({"is_flag": True} if plain_flag else {}),
    )


def gather(into: str, names: Collection[str], make: Callable[..., Any] = dict) -> Callable[[Command], Command]:
    """Give a command the parameters `names` as one, called `into`: what `make` makes of them.

    Stands nearest to the function, below the options.
    """

    def around(command: Command) -> Command:
        @wraps(command)
        def gathered(**values: Any) -> Any:
            one = make(**{name: values.pop(name) for name in names})
            return command(**values, **{into: one})

        return gathered  # type: ignore[return-value]

    return around


def _conventions(labels: str, reference_labels: str | None) -> tuple[LabelConvention, LabelConvention]:
    """Those of a label map and of the reference that it is compared with."""
    return CONVENTIONS[labels], CONVENTIONS[reference_labels or labels]


conventions = gather("conventions", ("labels", "reference_labels"), _conventions)
"""Give a command the parameters `labels` and `reference_labels` as the two conventions that they name."""


def fields_of(config: type) -> list[str]:
    """The fields of a configuration class that have an option."""
    return [name for name, described in settings_of(config).items() if described.option]


quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress bars and tables, only warnings.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")
size = click.option(
    "--size",
    nargs=2,
    type=int,
    metavar="H W",
    help="Size of a slice in pixels. Default: 240 240, padded if the network needs it.",
)


def check_width(network: NetworkConfig) -> None:
    """Raise InputError if the user gave a width although the network's width cannot be chosen."""
    from lowmem_brats.networks import has_width

    if "width" in named() and not has_width(network):
        raise InputError("--width", f"a width for {network.name}", "none: its size is fixed", "Leave the option out.")


def in_its_usual_mode(network: NetworkConfig) -> NetworkConfig:
    """The network with outputs for all three regions if it sees patches; others as they are."""
    from lowmem_brats.networks import patches_of

    return replace(network, outputs=3) if patches_of(network) else network


def size_of(network: NetworkConfig, size: tuple[int, int] | None) -> tuple[int, int]:
    """The slice size that the user gave, or BraTS's, padded as the network needs it."""
    from lowmem_brats.networks import padded_size

    return size or padded_size(network, BRATS_SHAPE[:2])


def what_is_seen(network: NetworkConfig, size: tuple[int, int] | None) -> tuple[int, ...]:
    """As `size_of`; for a network that sees patches the volume of BraTS. Raises InputError for a size given for it."""
    from lowmem_brats.networks import patches_of, usual_size

    if patches_of(network) is None:
        return size_of(network, size)
    if size:
        found = f"a size of slices for {network.name}, which sees patches"
        raise InputError("--size", found, "none: the volume is BraTS's", "Leave the option out.")
    return usual_size(network)


def named() -> set[str]:
    """The names of the parameters that the user gave on the command line."""
    ctx = click.get_current_context()
    sources = {key: ctx.get_parameter_source(key) for key in ctx.params}
    return {key for key, source in sources.items() if source is ParameterSource.COMMANDLINE}

"""Suggestions where a command or one of an option's choices is misspelt; click itself suggests options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lowmem_brats.errors import did_you_mean

if TYPE_CHECKING:
    _ClickChoice = click.Choice[str]
else:
    _ClickChoice = click.Choice  # takes no type before click 8.2


class _Choice(_ClickChoice):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a choice, as click does. Raises BadParameter, with a suggestion, for a word that is none of them."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            text = f"{error.message} {did_you_mean(str(value), self.choices)}".rstrip()
            raise click.BadParameter(text, ctx, param) from error


class SuggestingGroup(click.Group):
    """A group of commands that names the nearest command, or choice of an option, for one that does not exist."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, as click does, and suggest its choices from now on."""
        for parameter in cmd.params:
            if isinstance(parameter.type, click.Choice):
                parameter.type = _Choice(parameter.type.choices)
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, as click does. Raises UsageError, with a suggestion, for an unknown one."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            listed = f"The commands are {', '.join(known)}."
            raise click.UsageError(f"No such command {args[0]!r}. {did_you_mean(args[0], known, listed)}", ctx)
        return super().resolve_command(ctx, args)

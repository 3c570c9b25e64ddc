"""A setting: how it is said on the command line, in which words it is explained, and which values it takes.

The fields of the configuration carry these descriptions. The command line builds its options from them, and the
configuration checks itself with them, so each option stands in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from lowmem_brats.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Check:
    """Which values are valid."""

    expected: str
    """In words, for the error."""
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Form:
    """How a value that is no plain number or word is written."""

    expected: str
    """In words, for the error."""
    read: Callable[[str], Any]
    """Text → value; raises ValueError."""
    write: Callable[[Any], str] = str
    """Value → text."""


@dataclass(frozen=True)
class Setting:
    """What a field of the configuration carries."""

    option: str = ""
    """`--batch`, or `--narrow/--every-slice` for both answers; empty: not on the command line."""
    help: str = ""
    section: str = ""
    """The heading in the help of the command."""
    check: Check | None = None
    choices: Mapping[str, object] | None = None
    """Word on the command line → value. Of a field that holds several values, each is one of these."""
    metavar: str | None = None
    """What the help shows in place of the value."""
    form: Form | None = None

    def written(self, value: object) -> str:
        """The value as a user writes it."""
        if self.form and value is not None:
            return self.form.write(value)
        if isinstance(value, tuple):
            return " ".join(map(self.written, value)) or "none"
        return next((word for word, chosen in (self.choices or {}).items() if chosen == value), str(value))

    def expected(self, value: object) -> str | None:
        """What is expected in place of the value; None if it is valid."""
        if self.choices is not None:
            known = self.choices.values()
            if not all(each in known for each in (value if isinstance(value, tuple) else [value])):
                return f"{'some' if isinstance(value, tuple) else 'one'} of {', '.join(map(str, known))}"
        return None if self.check is None or self.check.holds(value) else self.check.expected

    def default(self, value: Value) -> Value:
        """A field of a dataclass with this description and default. Where the default is None, None is valid too."""
        made: Value = field(default=value, metadata={"setting": self})
        return made


def settings_of(config: object) -> dict[str, Setting]:
    """Field → description, for the fields of a dataclass, or of an instance of it, that have one."""
    found: Any = fields(config)  # type: ignore[arg-type]
    return {each.name: each.metadata["setting"] for each in found if "setting" in each.metadata}


def check_settings(config: object, kind: str = "") -> None:
    """Raise InputError for the first field whose value is not valid.

    `kind`: `network` to speak of the network's fields, which come from weights files too; empty: of options.
    """
    for name, described in settings_of(config).items():
        value, default = getattr(config, name), getattr(type(config), name)
        if value is None and default is None:
            continue
        if expected := described.expected(value):
            where = f"{kind} {name}" if kind else described.option
            advice = "Leave the option out." if default is None else f"The default is {described.written(default)}."
            raise InputError(where, described.written(value), expected, advice)


def words(*names: str) -> dict[str, object]:
    """Choices that are their own values."""
    return {name: name for name in names}


def _read_time(text: str) -> float:
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    if not text.strip() or not match:
        raise ValueError(text)
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))


def _read_fold(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if not match:
        raise ValueError(text)
    return int(match[1]), int(match[2])


TIME = Form("a time such as 8h, 90m or 1h30m", _read_time)
"""In seconds."""
FOLD = Form("K/N, as in 1/5", _read_fold, lambda fold: f"{fold[0]}/{fold[1]}")

"""Options of `train` that are written in a form of their own: a duration, a fold."""

from __future__ import annotations

import re
from typing import Any

import click


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time such as 8h, 90m, 1h30m or 45s, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", value.strip().lower())
        if not value.strip() or not match:
            self.fail(f"{value!r}, expected a time such as 8h, 90m or 1h30m", param, ctx)
        try:
            return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))
        except ValueError:
            self.fail(f"{value!r}, expected a time such as 8h, 90m or 1h30m", param, ctx)


class Fold(click.ParamType):  # type: ignore[type-arg]
    """K/N."""

    name = "K/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read the text."""
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", str(value))
        if not match:
            self.fail(f"{value!r}, expected K/N, as in 1/5", param, ctx)
        return int(match[1]), int(match[2])

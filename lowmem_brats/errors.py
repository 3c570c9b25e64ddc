"""Errors that a user can act on: where, what was found, what was expected, what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LowmemError(Exception):
    """A mistake or a limit that the user can do something about; the command line shows it without a traceback."""

    def __init__(self, where: object, found: str, expected: str, advice: str) -> None:
        self.where, self.found, self.expected, self.advice = str(where), found, expected, advice
        super().__init__(f"{where}: {found}; expected {expected}. {advice}")

    def __reduce__(self) -> tuple[type[LowmemError], tuple[str, ...]]:
        """Lets a worker process send the error to the one that started it."""
        return type(self), (self.where, self.found, self.expected, self.advice)


class InputError(LowmemError):
    """The images, labels, paths or options given cannot be used."""


class WeightsError(LowmemError):
    """A weights file is missing, damaged or of another kind."""


class BudgetError(LowmemError):
    """No plan fits the memory budget."""


def describe(error: Exception) -> str:
    """An error in one line: a user's as it is shown, any other with its kind."""
    return str(error) if isinstance(error, LowmemError) else f"{type(error).__name__}: {error}"


def did_you_mean(found: str, known: Iterable[str], otherwise: str = "") -> str:
    """`Did you mean 'segment'?`, of at most three known words that are spelt like `found`; else `otherwise`."""
    close = get_close_matches(found, list(known))
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else otherwise

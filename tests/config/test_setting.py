"""A described field: its default, its check, the words for its values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.config.setting import FOLD, TIME, Check, Form, Setting, check_settings, settings_of, words
from lowmem_brats.errors import InputError

EVEN = Check("an even number", lambda value: value % 2 == 0)


@dataclass(frozen=True, kw_only=True)
class Toy:
    plain: int = 3
    number: int = Setting("--number", "Some number.", "Numbers", EVEN).default(4)
    perhaps: int | None = Setting("--perhaps", check=EVEN).default(None)
    kind: int = Setting("--kind", choices={"one": 1, "many": 9}).default(1)
    parts: tuple[str, ...] = Setting("--part", choices=words("a", "b"), check=Check("some part", bool)).default(("a",))
    own: int = Setting("--own", check=EVEN, form=Form("a word", len, lambda value: "x" * value)).default(2)
    hidden: int = Setting(check=EVEN).default(0)

    def __post_init__(self) -> None:
        check_settings(self)


def test_the_fields_are_those_of_any_dataclass() -> None:
    assert Toy() == Toy(plain=3, number=4, perhaps=None, kind=1, parts=("a",), own=2, hidden=0)
    assert (Toy.number, Toy.parts) == (4, ("a",))
    assert list(settings_of(Toy)) == list(settings_of(Toy())) == ["number", "perhaps", "kind", "parts", "own", "hidden"]
    assert settings_of(Toy)["number"] == Setting("--number", "Some number.", "Numbers", EVEN)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"number": 5}, "--number: 5; expected an even number. The default is 4."),
        ({"perhaps": 5}, "--perhaps: 5; expected an even number. Leave the option out."),
        ({"kind": 2}, "--kind: 2; expected one of 1, 9. The default is one."),
        ({"parts": ("a", "c")}, "--part: a c; expected some of a, b. The default is a."),
        ({"parts": ()}, "--part: none; expected some part. The default is a."),
        ({"own": 3}, "--own: xxx; expected an even number. The default is xx."),
        ({"number": 7, "own": 3}, "--number: 7; expected an even number. The default is 4."),
    ],
)
def test_what_is_not_valid_is_refused(values: dict[str, int], error: str) -> None:
    with pytest.raises(InputError) as caught:
        Toy(**values)
    assert str(caught.value) == error


def test_the_field_of_a_network_is_named_where_no_option_is_meant() -> None:
    with pytest.raises(InputError, match=r"^network number: 5; expected"):
        check_settings(object.__new__(_Odd), "network")


class _Odd(Toy):
    number = 5
    perhaps, kind, parts, own, hidden = None, 1, ("a",), 2, 0


@pytest.mark.parametrize("values", [{"perhaps": None}, {"perhaps": 2}, {"kind": 9}, {"parts": ("b", "a")}])
def test_what_is_valid_is_taken(values: dict[str, int]) -> None:
    assert vars(Toy(**values)) == vars(Toy()) | values


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("kind", 9, "many"), ("kind", 2, "2"), ("parts", ("a", "b"), "a b"), ("own", 2, "xx"), ("number", 4, "4")],
)
def test_a_value_as_a_user_writes_it(name: str, value: object, text: str) -> None:
    assert settings_of(Toy)[name].written(value) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800.0), ("90m", 5400.0), ("1h30m", 5400.0), ("45s", 45.0), (" 0.5H ", 1800.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert TIME.read(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "1", "1.2.3h", "30m1h", "-1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        TIME.read(text)


@given(st.tuples(st.integers(0, 9999), st.integers(0, 9999)))
def test_a_fold_is_read_as_it_is_written(fold: tuple[int, int]) -> None:
    assert FOLD.read(FOLD.write(fold)) == fold


@pytest.mark.parametrize("text", ["", "3", "1/", "1/5/2", "a/b", "-1/5", "1/50000"])
def test_what_is_no_fold(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        FOLD.read(text)

"""Reading and writing amounts of memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_brats.errors import InputError
from lowmem_brats.memory.budget import CUDA_RESERVE, GIB, MIB, MemoryBudget, format_budget, format_bytes, parse_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2G", 2 * 1024**3),
        ("2GiB", 2 * 1024**3),
        ("2gb", 2 * 1024**3),
        (" 2 G ", 2 * 1024**3),
        ("1.5G", 1536 * 1024**2),
        ("1536M", 1536 * 1024**2),
        ("75%", 6 * 1024**3),
        ("100 %", 8 * 1024**3),
        ("max", 8 * 1024**3),
        ("MAX", 8 * 1024**3),
    ],
)
def test_what_can_be_written(text: str, expected: int) -> None:
    assert parse_budget(text, "cuda", 8 * GIB).total_bytes == expected


@pytest.mark.parametrize(
    "text",
    ["", "2", "2K", "-2G", "0%", "101%", "%", "G", "two G", "2Gi b", "1e9", "inf", "9" * 400 + "G"],
)
def test_what_cannot(text: str) -> None:
    with pytest.raises(InputError, match="such as 2G"):
        parse_budget(text, "cpu", 8 * GIB)


def test_where_the_memory_in_all_is_unknown() -> None:
    assert parse_budget("max", "cpu").total_bytes is None
    assert parse_budget("2G", "cuda:1").total_bytes == 2 * GIB
    for text, device in (("max", "cuda"), ("75%", "cuda"), ("75%", "cpu")):
        with pytest.raises(InputError, match="unknown"):
            parse_budget(text, device)


def test_reserve_is_cudas_alone() -> None:
    assert parse_budget("2G", "cpu", reserve_bytes=MIB).tensor_bytes == 2 * GIB
    assert parse_budget("2G", "cuda").tensor_bytes == 2 * GIB - CUDA_RESERVE
    assert parse_budget("2G", "cuda", reserve_bytes=MIB).tensor_bytes == 2 * GIB - MIB


def test_allows_up_to_the_last_byte() -> None:
    budget = MemoryBudget(10 * MIB, reserve_bytes=MIB)
    assert budget.allows(9 * MIB)
    assert not budget.allows(9 * MIB + 1)
    assert MemoryBudget(None).allows(10**15)
    assert MemoryBudget(MIB, reserve_bytes=2 * MIB).tensor_bytes == 0


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 MiB"),
        (1, "1 bytes"),
        (MIB // 100, "10485 bytes"),
        (MIB // 100 + 1, "0.01 MiB"),
        (MIB // 2, "0.5 MiB"),
        (19 * MIB // 2, "9.5 MiB"),
        (31 * MIB, "31 MiB"),
        (GIB, "1 GiB"),
        (1536 * MIB, "1.5 GiB"),
        (2 * GIB, "2 GiB"),
        (10 * GIB, "10 GiB"),
    ],
)
def test_bytes_as_text(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


@given(st.integers(1, 100_000))
def test_mebibytes_are_read_exactly(count: int) -> None:
    assert parse_budget(f"{count}M").total_bytes == count * MIB


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0M"), (1, "1M"), (1536 * MIB, "1536M"), (2 * GIB, "2G"), (2 * GIB + 1, "2049M")]
)
def test_a_budget_as_text_is_never_less(count: int, expected: str) -> None:
    assert format_budget(count) == expected
    assert (parse_budget(expected).total_bytes or 0) >= count

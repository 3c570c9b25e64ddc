"""What each of several workers may use, and how many fit."""

from __future__ import annotations

import os

import pytest
import torch

from lowmem_brats.cohort import share
from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory.budget import GIB, MIB

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
NETWORK = NetworkConfig(width=8, depth=2)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 GiB, with a card of which 3000 MiB are free and whose context takes 400 MiB."""
    monkeypatch.setattr(share, "host_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(share.cuda, "available_bytes", lambda device: 3000 * MIB)
    monkeypatch.setattr(share.cuda, "measure_context", lambda device: 400 * MIB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def test_threads_are_shared_out() -> None:
    assert [share.threads_of_worker(workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


def test_on_the_cpu_no_limit_is_no_limit_for_each() -> None:
    assert share.vram_of_worker("max", 4, CPU, [NETWORK], "fp32") == "max"
    assert share.vram_of_worker("2G", 4, CPU, [NETWORK], "fp32") == "2G"
    assert share.vram_of_worker("50%", 2, CPU, [NETWORK], "fp32") == "50%"


@pytest.mark.parametrize(
    ("vram", "workers", "told"),
    [
        ("2G", 5, "5 × 2 GiB = 10 GiB; expected at most 8 GiB, which this machine has. Start at most 4,"),
        ("75%", 2, "2 × 6 GiB = 12 GiB; expected at most 8 GiB, which this machine has. Start at most 1,"),
    ],
)
def test_more_than_the_machine_has_is_refused(vram: str, workers: int, told: str) -> None:
    with pytest.raises(BudgetError) as error:
        share.vram_of_worker(vram, workers, CPU, [NETWORK], "fp32")
    assert str(error.value).startswith(f"--workers {workers}: {told}")


def test_a_card_is_divided_and_the_planner_says_for_how_many() -> None:
    assert share.vram_of_worker("max", 2, CARD, [NETWORK], "fp32") == "1500M"
    assert share.vram_of_worker("1G", 2, CARD, [NETWORK], "fp32") == "1G"
    with pytest.raises(
        BudgetError, match=r"^--workers 3: 3 × 1 GiB = 3 GiB; expected at most 2.93 GiB, which the card"
    ):
        share.vram_of_worker("1G", 3, CARD, [NETWORK], "fp32")
    with pytest.raises(BudgetError, match=r"^--workers 7: 2.93 GiB / 7 = 428 MiB for each: .* Start fewer workers.$"):
        share.vram_of_worker("max", 7, CARD, [NETWORK], "fp32")

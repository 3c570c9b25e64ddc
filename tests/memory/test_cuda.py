"""What only a card has, as far as it can be tested without one; and on one, that budgets hold."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import cuda, device
from lowmem_brats.memory.budget import CUDA_RESERVE, MIB

CARD = torch.device("cuda:0")


def pretend(monkeypatch: pytest.MonkeyPatch, answer: str | Exception, uuid: str | None = "1-2") -> list[list[str]]:
    """Make nvidia-smi give this answer; returns the commands that it gets."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(cuda.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(cuda.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    return commands


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What is asked of a card once in a process is asked again by the next test."""
    other_programs = cuda.other_programs  # a test may put something else in its place
    other_programs.cache_clear()
    yield
    other_programs.cache_clear()


def test_used_memory_is_asked_of_the_card_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pretend(monkeypatch, "512\n")
    assert cuda._driver_used(CARD) == 512 * MIB
    assert "--id=GPU-1-2" in commands[0]


@pytest.mark.parametrize("answer", ["[N/A]", "", subprocess.TimeoutExpired("nvidia-smi", 20), OSError("gone")])
def test_where_nvidia_smi_cannot_tell_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    pretend(monkeypatch, answer)
    assert cuda._driver_used(CARD) is None


def test_a_card_without_a_name_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretend(monkeypatch, "512", uuid=None) == []
    assert cuda._driver_used(CARD) is None


def test_a_budget_on_a_card_keeps_the_context_and_caps_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    caps: list[int] = []
    monkeypatch.setattr(cuda, "measure_context", lambda card: 300 * MIB)
    monkeypatch.setattr(cuda, "available_bytes", lambda card: 3700 * MIB)
    monkeypatch.setattr(cuda, "other_programs", lambda card: 0)
    monkeypatch.setattr(cuda, "cap_allocator", lambda card, count: caps.append(count))
    budget = device.open_budget("2G", CARD)
    assert budget.tensor_bytes == (2048 - 300 - 64) * MIB
    assert caps == [(2048 - 300 - 16) * MIB], "the context may grow by 16 MiB"
    assert device.open_budget("50%", CARD).total_bytes == 2000 * MIB
    assert device.open_budget("max", CARD).total_bytes == 4000 * MIB


def test_all_of_a_card_is_what_others_leave_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 GiB, 3000 MiB are free and 100 MiB are reserved by this process, 40 MiB of them for living tensors."""
    fractions: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(cuda, "measure_context", lambda card: 300 * MIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (3000 * MIB, 8192 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: 100 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: 40 * MIB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *call: fractions.append(call))
    budget = device.open_budget("max", CARD)
    assert (budget.total_bytes, budget.reserve_bytes) == (3360 * MIB, 364 * MIB)
    assert budget.tensor_bytes == (3360 - 364) * MIB
    assert device.open_budget("8G", CARD).tensor_bytes == (8192 - 364) * MIB
    assert fractions == [((3100 - 16) / 8192, CARD), ((8192 - 300 - 16 + 40) / 8192, CARD)]


@pytest.mark.parametrize("vram", ["0M", "256M", "300M", "364M"])
def test_a_budget_that_cuda_itself_would_fill_is_refused(monkeypatch: pytest.MonkeyPatch, vram: str) -> None:
    monkeypatch.setattr(cuda, "measure_context", lambda card: 300 * MIB)
    monkeypatch.setattr(cuda, "available_bytes", lambda card: 3700 * MIB)
    monkeypatch.setattr(cuda, "other_programs", lambda card: 0)
    monkeypatch.setattr(cuda, "cap_allocator", lambda card, count: pytest.fail("capped"))
    with pytest.raises(BudgetError, match=r"more than 364M.*300 MiB for its context and 64 MiB for work space"):
        device.open_budget(vram, CARD)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (100 * MIB, 402 * MIB, 300 * MIB),
        (100 * MIB, 101 * MIB, cuda.ASSUMED_CONTEXT),  # less than the allocator alone took
        (500 * MIB, 402 * MIB, cuda.ASSUMED_CONTEXT),
        (None, 402 * MIB, cuda.ASSUMED_CONTEXT),
    ],
)
def test_a_context_that_cannot_be_is_assumed(
    monkeypatch: pytest.MonkeyPatch, before: int | None, after: int, expected: int
) -> None:
    answers = iter([before, after])
    monkeypatch.setattr(cuda, "_driver_used", lambda device: next(answers))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * MIB)
    assert cuda.measure_context.__wrapped__(torch.device("cpu")) == expected


def test_the_context_is_measured_with_all_that_training_runs() -> None:
    names = set[str]()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(func.__name__.partition(".")[0])
            return func(*args, **(kwargs or {}))

    with Names():
        cuda._load_code(torch.device("cpu"))
    assert names >= {
        "convolution",
        "convolution_backward",
        "native_group_norm",
        "native_group_norm_backward",
        "grid_sampler_2d",
        "mm",
        "_fused_adamw_",
    }


def test_the_card_s_peaks_and_whether_they_are_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others hold 500 MiB; the context has grown from 300 to 450 MiB since it was measured."""
    free = iter([7392, 8192 - 500 - 450 - 700, 8192 - 500 - 450 - 600])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (next(free) * MIB, 8192 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda card: 700 * MIB)
    monkeypatch.setattr(cuda, "measure_context", lambda card: 300 * MIB)
    assert cuda.other_programs(CARD) == 500 * MIB
    peak = cuda.highest(cuda.highest(None, "cuda:0"), "cuda:0")
    assert peak == {"reserved": 700 * MIB, "process": 1150 * MIB}
    assert cuda.beyond(peak, 1150 * MIB) == cuda.beyond(peak, None) == cuda.beyond(None, MIB) == []
    (note,) = cuda.beyond(peak, 1024 * MIB)
    assert note.startswith("the card held 1.12 GiB for this program")
    assert note.endswith("--vram allowed 1 GiB")


def test_what_cublas_keeps_is_freed_after_the_context_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(cuda, "_driver_used", lambda card: None)
    monkeypatch.setattr(cuda, "_load_code", lambda card: called.append("load"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda card: None)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: called.append("clear"), raising=False)
    cuda.measure_context.__wrapped__(torch.device("cpu"))
    assert called == ["load", "clear"]
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    cuda.measure_context.__wrapped__(torch.device("cpu"))


def test_the_drivers_version(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "570.86.15\n570.86.15\n")
    assert cuda.driver_version() == "570.86.15"
    pretend(monkeypatch, OSError("gone"))
    assert cuda.driver_version() == "unknown"
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    assert cuda.driver_version() == "unknown"


def test_the_assumed_context_and_the_work_space_are_the_planners_reserve() -> None:
    assert cuda.ASSUMED_CONTEXT + cuda.WORKSPACE == CUDA_RESERVE


def test_on_the_cpu_there_are_no_views_of_a_card() -> None:
    assert cuda.highest(None, "cpu") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vram", ["768M", "1G", "2G"])
def test_budgets_hold_on_a_card(vram: str) -> None:
    from lowmem_brats.bench import bench_memory

    rows = bench_memory([NetworkConfig(width=32)], [vram], (240, 240), 10, CARD, "fp16")
    assert all(row.plan is None or row.within for row in rows)

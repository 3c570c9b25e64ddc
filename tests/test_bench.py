"""What the benchmark says of plans that did not hold."""

from __future__ import annotations

import pytest
import torch

from lowmem_brats import bench
from lowmem_brats.bench import Row, bench_concessions, bench_memory
from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import MIB
from lowmem_brats.memory.planner import InferencePlan

CPU = torch.device("cpu")
SMALL = NetworkConfig(width=8, depth=1)


def row(device: str, **figures: int) -> Row:
    plan = InferencePlan(device, "fp16", 1, predicted_bytes=10 * MIB)
    return Row("unet2d of width 8", "segment", "1G", plan, **figures)


def test_within_compares_with_the_budget() -> None:
    assert row("cpu", measured_bytes=20 * MIB, tensor_bytes=20 * MIB).within  # although more than predicted
    assert not row("cpu", measured_bytes=20 * MIB + 1, tensor_bytes=20 * MIB).within
    assert row("cpu", measured_bytes=20 * MIB).within  # no limit
    most = 20 * MIB + cuda.WORKSPACE
    assert row("cuda:0", measured_bytes=MIB, reserved_bytes=most, tensor_bytes=20 * MIB).within
    assert not row("cuda:0", measured_bytes=MIB, reserved_bytes=most + 1, tensor_bytes=20 * MIB).within
    figures = {"measured_bytes": MIB, "reserved_bytes": most, "tensor_bytes": 20 * MIB, "total_bytes": 400 * MIB}
    assert row("cuda:0", **figures, process_bytes=400 * MIB).within
    assert not row("cuda:0", **figures, process_bytes=400 * MIB + 1).within  # the context has grown


def test_rows_carry_their_budget() -> None:
    rows = bench_memory([SMALL], ["16M", "max"], (16, 16), 1, CPU, "fp32")
    assert [row.tensor_bytes for row in rows] == [16 * MIB, None] * 2
    assert all(row.within and not row.reserved_bytes for row in rows)


def test_running_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> tuple[int, int, float]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(bench, "run_plan", fail)
    shown: list[Row] = []
    rows = bench_memory([SMALL], ["16M"], (16, 16), 1, CPU, "fp32", shown.append)
    assert rows == shown
    assert [(row.job, row.out_of_memory, row.within) for row in rows] == [(job, True, False) for job in bench.JOBS]
    assert all(row.out_of_memory for row in bench_concessions(SMALL, (16, 16), 2, CPU, "fp32"))


def test_a_budget_that_cuda_would_fill_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BudgetError("--vram", "256 MiB", "more than 364M", "Give more.")

    monkeypatch.setattr(bench, "open_budget", refuse)
    rows = bench_memory([SMALL], ["256M"], (16, 16), 1, CPU, "fp32")
    assert [(row.plan, row.within) for row in rows] == [(None, False)] * 2


def test_slices_that_do_not_fit_the_network_are_refused() -> None:
    for run in (
        lambda: bench_memory([SMALL], ["1G"], (15, 16), 1, CPU, "fp32"),
        lambda: bench_concessions(SMALL, (15, 16), 1, CPU, "fp32"),
    ):
        with pytest.raises(InputError, match="multiples of 2"):
            run()

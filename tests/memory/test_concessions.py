"""The table of concessions: every combination once, in the order of what it costs."""

from __future__ import annotations

import pytest
import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.memory.concessions import stages_to_recompute, training_rows

CPU = torch.device("cpu")


def test_training_concessions_in_order() -> None:
    """The last column but one: whether the optimizer's state is in host memory."""
    assert training_rows(10, micro_batches=True) == [
        ("none", 10, False, 1.0),
        ("widest", 10, False, 1.1),
        ("none", 10, True, 1.15),
        ("widest", 10, True, 1.25),
        ("all", 10, False, 1.28),
        *[("none", size, False, 1.33) for size in (5, 3, 2, 1)],
        *[("widest", size, False, 1.43) for size in (5, 3, 2, 1)],
        ("all", 10, True, 1.43),
        *[("none", size, True, 1.48) for size in (5, 3, 2, 1)],
        *[("widest", size, True, 1.58) for size in (5, 3, 2, 1)],
        *[("all", size, False, 1.61) for size in (5, 3, 2, 1)],
        *[("all", size, True, 1.76) for size in (5, 3, 2, 1)],
    ]
    assert training_rows(10, micro_batches=False) == [
        ("none", 10, False, 1.0),
        ("widest", 10, False, 1.1),
        ("none", 10, True, 1.15),
        ("widest", 10, True, 1.25),
        ("all", 10, False, 1.28),
        ("all", 10, True, 1.43),
    ]


def test_the_state_in_host_memory_costs_most_where_a_step_is_short() -> None:
    """It is moved once per step: with one slice this takes longer than all else, with many next to nothing."""
    assert training_rows(1, micro_batches=True) == [
        ("none", 1, False, 1.0),
        ("widest", 1, False, 1.1),
        ("all", 1, False, 1.28),
        ("none", 1, True, 2.5),
        ("widest", 1, True, 2.6),
        ("all", 1, True, 2.78),
    ]
    assert training_rows(150, micro_batches=True)[:2] == [("none", 150, False, 1.0), ("none", 150, True, 1.01)]


@pytest.mark.parametrize("batch", [1, 2, 7, 10, 155])
def test_a_later_training_row_is_never_faster(batch: int) -> None:
    rows = training_rows(batch, micro_batches=True)
    times = [row.relative_time for row in rows]
    assert times == sorted(times)
    assert len({row[:3] for row in rows}) == len(rows)


def test_stages_to_recompute() -> None:
    def stages(recompute: str) -> tuple[str, ...]:
        return stages_to_recompute(NetworkConfig(), (240, 240), recompute, torch.bfloat16, CPU)

    assert stages("none") == ()
    assert stages("widest") == ("down.0", "down.1", "up.2")
    assert stages("all") == ("down.0", "down.1", "down.2", "down.3", "down.4", "up.0", "up.1", "up.2")

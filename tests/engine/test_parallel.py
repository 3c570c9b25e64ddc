"""Alone every function changes nothing; two processes take the steps that one would take with the whole batch.

Run as a script, under torchrun, this file is one of the two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.step import TrainingStep, place, split_batch
from lowmem_brats.networks import build_network

SHARES = {
    "two micro-batches and one": (3, 2),
    "one and two": (1, 4),
    "one each": (2, 2),
    "two each": (4, 4),
}
"""How many slices either process has, in micro-batches of at most two."""
SETTINGS = [(name, regions, kind) for name, regions in (("dice", 1), ("dice+ce", 3)) for kind in SHARES]
STEPS, RATE = 3, 1e-2

Found = dict[str, Any]


def fresh(name: str, regions: int) -> TrainingStep:
    """In float64, and with gradients that are clipped, by the norm of the whole."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(width=8, depth=1, outputs=regions))
    placed = place(network, torch.device("cpu"), torch.float64).train()
    return TrainingStep(placed, find_loss(name), clip_norm=0.1)


def batch(seed: int, size: int, regions: int) -> tuple[Tensor, Tensor]:
    """Slices of which the first hold the most foreground, so that the processes' shares differ."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(0.7, 0.1, size)[:, None, None, None]
    slices_NCHW = torch.randn(size, 4, 8, 8, generator=generator)
    return slices_NCHW, (torch.rand(size, regions, 8, 8, generator=generator) < share).float()


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def train(name: str, regions: int, size: int, own: slice, micro_batch: int) -> Found:
    """Some steps on some slices of each batch; what they gave, the first step's gradient included."""
    step, found = fresh(name, regions), Found(losses=[], norms=[])
    for seed in range(STEPS):
        slices_NCHW, target_NKHW = batch(seed, size, regions)
        parts = split_batch(slices_NCHW[own], target_NKHW[own], micro_batch)
        outcome = step.take(parts, RATE, torch.float64)
        found["losses"].append(outcome.loss)
        found["norms"].append(outcome.norm)
        # The gradient that was stepped with is still there.
        found.setdefault("gradient", flat(parameter.grad for parameter in step.network.parameters()))
    return found | {"weights": flat(step.network.parameters())}


def meet_a_broken_slice(rank: int) -> Found:
    """Only the second process's slices hold a value that is not finite."""
    step = fresh("dice", 1)
    before = flat(step.network.parameters())
    slices_NCHW, target_NKHW = batch(0, 2, 1)
    if rank == 1:
        slices_NCHW[0, 0, 0, 0] = float("inf")
    outcome = step.take([(slices_NCHW, target_NKHW)], RATE, torch.float64)
    return {"stepped": outcome.stepped, "same": torch.equal(flat(step.network.parameters()), before)}


def be_one_of_two(folder: Path) -> None:
    """Leave what this process found in the folder."""
    torch.set_num_threads(1)
    with parallel.processes():
        rank = parallel.rank()
        found: Found = {"rank": rank, "size": parallel.size(), "cpu": parallel.local_device("cpu")}
        found["furthest"] = parallel.furthest((0.25, 0.75)[rank])
        found["first"] = parallel.first([{"seed": 7}, None][rank])
        found["sum"] = torch.tensor([[1.0, 2.0], [10.0, 20.0]][rank])
        parallel.add_up(found["sum"])
        if rank == 0:
            time.sleep(0.5)
            (folder / "late").touch()
        parallel.wait()
        found["late"] = (folder / "late").exists()
        found["broken"] = meet_a_broken_slice(rank)
        for name, regions, kind in SETTINGS:
            mine, whole = SHARES[kind][rank], sum(SHARES[kind])
            own = slice(mine) if rank == 0 else slice(whole - mine, whole)
            found[f"{name} {regions} {kind}"] = train(name, regions, whole, own, 2)
    found["afterwards"] = (parallel.rank(), parallel.size(), distributed.is_initialized())
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What the first and the second of two processes found."""
    folder = tmp_path_factory.mktemp("parallel")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen(
        [*torchrun, __file__, folder], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its processes
            _, errors = process.communicate()
    assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_each_process_knows_its_place_and_afterwards_is_alone(both: list[Found]) -> None:
    assert [(found["rank"], found["size"]) for found in both] == [(0, 2), (1, 2)]
    assert [found["afterwards"] for found in both] == [(0, 1, False)] * 2


@pytest.mark.parametrize(
    ("what", "expected"), [("furthest", 0.75), ("first", {"seed": 7}), ("late", True), ("cpu", "cpu")]
)
def test_both_processes_learn_the_same(both: list[Found], what: str, expected: object) -> None:
    """The largest figure; the first one's; that the first had come to the meeting point; and no card is meant."""
    assert [found[what] for found in both] == [expected] * 2


def test_sums_are_over_both(both: list[Found]) -> None:
    assert [found["sum"].tolist() for found in both] == [[11, 22]] * 2


@pytest.mark.parametrize(("name", "regions", "kind"), SETTINGS)
def test_two_processes_take_the_whole_batchs_steps(both: list[Found], name: str, regions: int, kind: str) -> None:
    whole = sum(SHARES[kind])
    expected = train(name, regions, whole, slice(whole), whole)
    first, second = (found[f"{name} {regions} {kind}"] for found in both)
    for found in (first, second):
        assert (found["gradient"] - expected["gradient"]).norm() < 1e-12 * expected["gradient"].norm()
        assert found["losses"][0] == pytest.approx(expected["losses"][0], rel=1e-12)
        assert found["norms"][0] == pytest.approx(expected["norms"][0], rel=1e-12)
        # Adam divides by each gradient's own size, so a rounding error of a tiny one grows from step to step.
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-9)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=1e-9)
    assert torch.equal(first["weights"], second["weights"])
    assert first["losses"] == second["losses"]
    assert first["norms"] == second["norms"]


def test_a_gradient_that_is_not_finite_in_one_process_stops_the_step_in_both(both: list[Found]) -> None:
    assert [found["broken"] for found in both] == [{"stepped": False, "same": True}] * 2


def test_alone_nothing_changes() -> None:
    tensor, value = torch.tensor([1.0, 2.0]), object()
    with parallel.processes():
        assert not distributed.is_initialized()
        assert (parallel.rank(), parallel.size()) == (0, 1)
        parallel.add_up(tensor)
        assert tensor.tolist() == [1, 2]
        assert parallel.furthest(0.3) == 0.3
        assert parallel.first(value) is value
        parallel.wait()


@pytest.mark.parametrize("requested", ["auto", "cpu", "cuda", "cuda:1"])
def test_alone_the_device_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parallel.local_device(requested) == requested


@pytest.mark.parametrize("cards", [True, False])
def test_of_several_processes_each_takes_its_own_card(monkeypatch: pytest.MonkeyPatch, cards: bool) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards)
    monkeypatch.setenv("LOCAL_RANK", "3")
    found = [parallel.local_device(requested) for requested in ("auto", "cuda", "cpu", "cuda:1")]
    assert found == (["cuda:3", "cuda:3", "cpu", "cuda:1"] if cards else ["auto", "cuda", "cpu", "cuda:1"])


if __name__ == "__main__":
    be_one_of_two(Path(sys.argv[1]))

"""The benchmark of plans: the bytes that each was predicted to need, the bytes that it needed, and its time.

It runs the same steps as `segment` and `train`, on slices of noise.
Shape suffixes: N slices, C modalities, H W in-plane.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.engine.step import TrainingStep, place, predict_batch, split_batch
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.concessions import stages_to_recompute, training_rows
from lowmem_brats.memory.device import PeakMeter, open_budget
from lowmem_brats.memory.planner import (
    InferencePlan,
    TrainPlan,
    check_slices,
    plan_inference,
    plan_train,
)
from lowmem_brats.networks import SliceNetwork, build_network, title_of
from lowmem_brats.segment.stack import empty_cache

JOBS = ("segment", "train")
OnRow = Callable[["Row"], None]


@dataclass(frozen=True)
class Row:
    """One plan and what running it took."""

    network: str
    """As `networks.title_of` names it."""
    job: str
    budget: str
    plan: InferencePlan | TrainPlan | None
    """None if nothing fits the budget."""
    measured_bytes: int = 0
    """Peak of tensors: allocated on CUDA, live on the CPU."""
    reserved_bytes: int = 0
    """Most that CUDA's allocator took from the card; 0 on the CPU."""
    process_bytes: int = 0
    """What the driver says that this process held right after the run, its context included; 0 on the CPU."""
    seconds: float = 0.0
    """Median time per slice when segmenting, per optimisation step when training."""
    total_bytes: int | None = None
    """The budget; None: no limit."""
    tensor_bytes: int | None = None
    """The part of the budget that was left for tensors; None: no limit."""
    out_of_memory: bool = False
    """Whether the device ran out of memory although a plan was made."""

    @property
    def within(self) -> bool:
        """Whether it stayed inside the budget: live tensors on the CPU; on CUDA the allocator and the whole process."""
        if self.plan is None or self.out_of_memory:
            return False
        if self.tensor_bytes is None:
            return True
        if torch.device(self.plan.device).type == "cuda":
            # Of the reserve only the work space is in the allocator; the rest is the context, which was measured.
            reserved = self.reserved_bytes <= self.tensor_bytes + cuda.WORKSPACE
            return reserved and self.process_bytes <= (self.total_bytes or self.process_bytes)
        return self.measured_bytes <= self.tensor_bytes


def bench_memory(
    networks: Sequence[NetworkConfig],
    budgets: Sequence[str],
    size_HW: tuple[int, int],
    batch: int,
    device: torch.device,
    precision: str,
    on_row: OnRow = lambda row: None,
) -> list[Row]:
    """Plan and run every network, segmenting and training, in every budget.

    `budgets`: as `--vram` takes them; `size_HW`: of a slice, pixels; `batch`: slices per training step; `on_row` is
    called with each row when it is done. Returns the rows by network, then job, then budget.
    """
    rows = []
    for network in networks:
        for job in JOBS:
            for text in budgets:
                row = Row(title_of(network), job, text, None)
                try:
                    budget = open_budget(text, device)
                    arguments = budget, str(device), precision
                    plan: InferencePlan | TrainPlan = (
                        plan_inference(network, size_HW, *arguments)
                        if job == "segment"
                        else plan_train(network, size_HW, batch, *arguments)
                    )
                    row = _run(
                        network,
                        replace(row, plan=plan, total_bytes=budget.total_bytes, tensor_bytes=budget.tensor_bytes),
                        plan,
                        size_HW,
                    )
                except BudgetError:
                    pass  # the row says that nothing fits
                on_row(row)
                rows.append(row)
    return rows


def bench_concessions(
    network: NetworkConfig,
    size_HW: tuple[int, int],
    batch: int,
    device: torch.device,
    precision: str,
    on_row: OnRow = lambda row: None,
) -> list[Row]:
    """Run a training step under each concession of the planner, to compare its time with the planner's estimate.

    Arguments as `bench_memory`. Raises InputError for slices that the network cannot take.
    """
    check_slices(network, size_HW, batch)
    rows = []
    for plan in _concessions(network, size_HW, batch, device, precision):
        row = _run(network, Row(title_of(network), "train", "", plan), plan, size_HW)
        on_row(row)
        rows.append(row)
    return rows


def _concessions(
    network: NetworkConfig, size_HW: tuple[int, int], batch: int, device: torch.device, precision: str
) -> Iterator[TrainPlan]:
    for recompute, micro_batch, on_host, relative_time in training_rows(batch, True):
        stages = stages_to_recompute(network, size_HW, recompute, DTYPES[precision], device)
        yield TrainPlan(str(device), precision, batch, micro_batch, recompute, stages, on_host, relative_time)


def _run(network: NetworkConfig, row: Row, plan: InferencePlan | TrainPlan, size_HW: tuple[int, int]) -> Row:
    """Run a row's plan; returns the row with its measurements, or marked as out of memory."""
    empty_cache()  # memory left by the row before would count here
    try:
        measured, reserved, seconds = run_plan(network, plan, size_HW)
        held = (cuda.highest(None, plan.device) or {}).get("process", 0)
        return replace(row, measured_bytes=measured, reserved_bytes=reserved, process_bytes=held, seconds=seconds)
    except torch.OutOfMemoryError:
        pass
    # Outside the except block, because only here has the failed run released its tensors.
    empty_cache()
    return replace(row, out_of_memory=True)


def run_plan(
    config: NetworkConfig, plan: InferencePlan | TrainPlan, size_HW: tuple[int, int], repeats: int = 3
) -> tuple[int, int, float]:
    """Run a plan on noise.

    Returns the peak bytes of one metered step, the bytes that CUDA's allocator took in all (0 on the CPU), and the
    median seconds of `repeats` further steps, per slice when segmenting.
    """
    device = torch.device(plan.device)
    generator = torch.Generator().manual_seed(0)
    slices_NCHW = torch.randn(plan.batch, config.channels, *size_HW, generator=generator)
    network = build_network(config)
    if isinstance(plan, InferencePlan):
        step = _inference(network, plan, slices_NCHW)
        per_call, training = plan.batch, None
    else:
        step, training = _training(network, plan, slices_NCHW)
        per_call = 1
    step()  # not measured: the first call allocates and chooses kernels, and in training Adam makes its state
    resident = training.resident() if training else [*network.parameters(), *network.buffers()]
    with PeakMeter(device, *resident, on_host=training.on_host() if training else ()) as meter:
        step()
    peak = meter.peak_bytes
    seconds = statistics.median(_seconds(step, device) for _ in range(repeats)) / per_call
    return peak, torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0, seconds


def _inference(network: SliceNetwork, plan: InferencePlan, slices_NCHW: torch.Tensor) -> Callable[[], object]:
    place(network, torch.device(plan.device), DTYPES[plan.precision]).eval()
    halves_NCHW = slices_NCHW.half()
    return lambda: predict_batch(network, halves_NCHW)


def _training(
    network: SliceNetwork, plan: TrainPlan, slices_NCHW: torch.Tensor
) -> tuple[Callable[[], object], TrainingStep]:
    training = TrainingStep(place(network, torch.device(plan.device)).train(), find_loss("dice"))
    training.optimizer.keep_state(plan.state_on_host)
    micro_batches = split_batch(slices_NCHW, (slices_NCHW[:, :1] > 1).float(), plan.micro_batch)

    def step() -> object:
        return training.take(micro_batches, 1e-3, DTYPES[plan.precision], plan.stages)

    return step, training


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

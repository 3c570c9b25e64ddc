"""`lowmem-brats plan`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import PRECISIONS, NetworkConfig, TrainConfig
from lowmem_brats.errors import BudgetError

if TYPE_CHECKING:
    from lowmem_brats.memory.budget import MemoryBudget

PARTS = (("weights", "parameters"), ("grads", "gradients"), ("Adam", "optimizer"), ("maps", "activations"))
"""Column → component of a plan."""
LEGEND = (
    "MiB of tensors at the peak: weights, gradients, Adam's moments, maps · state: where these moments lie · "
    "time: of a step, estimated"
)


@click.command()
@click.option("--vram", metavar="2G|1536M", help="One budget in place of the ladder from 256M to 8G.")
@click.option("--train", "training", is_flag=True, help="Plan training steps; without it, segmenting.")
@options.of(NetworkConfig, "name", "width")
@options.of(TrainConfig, "batch")
@options.size
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cuda", show_default=True, help="Plan for it.")
@click.option("--precision", type=click.Choice(PRECISIONS[1:]), default="fp16", show_default=True, help="Format.")
@options.gather("network", ("name", "width"), NetworkConfig)
def plan(
    vram: str | None,
    training: bool,
    network: NetworkConfig,
    batch: int,
    size: tuple[int, int] | None,
    device: str,
    precision: str,
) -> None:
    """Show what fits into which memory budget, and what it costs in time. Needs no data, weights or GPU.

    Bytes are counted by running the real step on tensors without data. G is GiB. The exit code is 2 where nothing fits.
    """
    from lowmem_brats.memory import planner
    from lowmem_brats.memory.budget import CUDA_RESERVE, MemoryBudget, format_budget, parse_budget
    from lowmem_brats.networks import has_width, title_of

    options.check_width(network)
    size = options.size_of(network, size)
    planner.check_slices(network, size, batch)

    def plan_in(budget: MemoryBudget) -> planner.InferencePlan | planner.TrainPlan:
        if training:
            return planner.plan_train(network, size, batch, budget, device, precision)
        return planner.plan_inference(network, size, budget, device, precision)

    reserve = 0 if device == "cpu" else CUDA_RESERVE
    sizes = (parse_budget(vram, device, reserve_bytes=reserve).total_bytes,) if vram else planner.LADDER
    heads = "budget", "batch", "at once", "recompute", "state", "time", "MiB", *(name for name, _ in PARTS)
    widths = training and has_width(network)
    shown = console.table(*heads, *(["width"] if widths else []))
    rows = planner.ladder(plan_in, reserve, sizes)
    for total, row in rows:
        name = "no limit" if total is None else format_budget(total)
        if isinstance(row, BudgetError):
            shown.add_row(name, "–", "–", "–", "–", "–", f"needs {row.expected.removeprefix('at least ')}")
            continue
        counts = (row.predicted_bytes, *(row.components[part] for _, part in PARTS))
        cells = [name, f"{row.batch}", f"{getattr(row, 'micro_batch', row.batch)}", getattr(row, "recompute", "–")]
        cells.append(console.place_of_state(row))
        cells.append(f"{row.relative_time:.2f}×" if isinstance(row, planner.TrainPlan) else "–")
        cells += [f"{count / 2**20:.1f}" for count in counts]
        if widths and total is None:
            cells.append("any")
        elif widths:
            arguments = size, batch, MemoryBudget(total, reserve), device, precision
            fits = planner.largest_width(network, partial(_plan_smallest, *arguments))
            cells.append(f"{fits}")
        shown.add_row(*cells)
    console.out.print(f"{title_of(network)}, slices of {size[0]} × {size[1]}, {device}, {precision}")
    console.out.print(shown)
    console.out.print(LEGEND + (" · width: the largest that fits" if widths else ""), soft_wrap=True)
    if reserve:
        console.out.print(f"each budget also holds {console.mebibytes(reserve)} for CUDA's context and work space")
    failures = [row for _, row in rows if isinstance(row, BudgetError)]
    if len(failures) == len(rows):
        raise failures[-1]


def _plan_smallest(
    size: tuple[int, int], batch: int, budget: MemoryBudget, device: str, precision: str, config: NetworkConfig
) -> object:
    from lowmem_brats.memory.planner import plan_train

    return plan_train(config, size, batch, budget, device, precision, smallest=True)

"""`lowmem-brats plan`."""

from __future__ import annotations

import click

from lowmem_brats.cli import console
from lowmem_brats.config import PRECISIONS, NetworkConfig, TrainConfig

PARTS = ("parameters", "gradients", "optimizer", "activations")


@click.command()
@click.option("--vram", metavar="2G|1536M", help="One budget in place of the ladder from 256M to 8G.")
@click.option("--train", "training", is_flag=True, help="Plan training steps; without it, segmenting.")
@click.option("--network", default=NetworkConfig.name, show_default=True, help="A row of the README's network table.")
@click.option("--width", default=NetworkConfig.width, show_default=True, help="Channels of the first level.")
@click.option("--batch", default=TrainConfig.batch, show_default=True, help="Slices per training step.")
@click.option("--size", nargs=2, type=int, default=(240, 240), show_default=True, metavar="H W", help="Of a slice.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cuda", show_default=True, help="Plan for it.")
@click.option("--precision", type=click.Choice(PRECISIONS[1:]), default="fp16", show_default=True, help="Format.")
def plan(
    vram: str | None,
    training: bool,
    network: str,
    width: int,
    batch: int,
    size: tuple[int, int],
    device: str,
    precision: str,
) -> None:
    """Show what fits into which memory budget, and what it costs in time. Needs no data, weights or GPU.

    Bytes are counted by running the real step on tensors without data. G is GiB.
    """
    config = NetworkConfig(name=network, width=width)
    from lowmem_brats.memory.budget import CUDA_RESERVE, MemoryBudget, format_bytes, parse_budget
    from lowmem_brats.memory.planner import LADDER, InferencePlan, TrainPlan, ladder, largest_width
    from lowmem_brats.memory.planner import plan_inference, plan_train

    def plan_in(budget: MemoryBudget, network: NetworkConfig = config) -> InferencePlan | TrainPlan:
        if training:
            return plan_train(network, size, batch, budget, device, precision)
        return plan_inference(network, size, budget, device, precision)

    reserve = 0 if device == "cpu" else CUDA_RESERVE
    sizes = (parse_budget(vram, device, reserve_bytes=reserve).total_bytes,) if vram else LADDER
    shown = console.table("budget", "batch", "at once", "recompute", "time", "predicted", *PARTS, "CUDA")
    widest = []
    for total, row in ladder(plan_in, reserve, [total for total in sizes if total and total > reserve]):
        name = format_bytes(total)
        if isinstance(row, Exception):
            shown.add_row(name, "does not fit:", row.expected)
            continue
        at_once, recompute = getattr(row, "micro_batch", row.batch), getattr(row, "recompute", "–")
        time = f"{row.relative_time:.2f}×" if isinstance(row, TrainPlan) else "–"
        bytes_shown = [row.predicted_bytes, *(row.components[part] for part in PARTS), reserve]
        shown.add_row(name, f"{row.batch}", f"{at_once}", recompute, time, *map(console.mebibytes, bytes_shown))
        budget = MemoryBudget(total, reserve)
        widest.append(f"{name}: {largest_width(config, lambda network: plan_in(budget, network))}")
    console.out.print(f"{network} of width {width}, slices of {size[0]} × {size[1]}, {device}, {precision}")
    console.out.print(shown)
    if reserve:
        console.out.print(
            f"CUDA: {console.mebibytes(reserve)} kept for its context and work space; no budget is smaller"
        )
    console.out.print("largest width that fits  " + " · ".join(widest), soft_wrap=True)

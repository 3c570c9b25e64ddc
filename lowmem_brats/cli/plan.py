"""`lowmem-brats plan`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import BRAIN_SHAPE, PRECISIONS, NetworkConfig, TrainConfig
from lowmem_brats.errors import BudgetError, InputError

if TYPE_CHECKING:
    from lowmem_brats.memory.budget import MemoryBudget
    from lowmem_brats.memory.planner import InferencePlan, TrainPlan

PARTS = (("weights", "parameters"), ("grads", "gradients"), ("Adam", "optimizer"), ("maps", "activations"))
"""Column → component of a plan."""
LEGEND = (
    "MiB of tensors at the peak: weights, gradients, Adam's moments, maps · state: where these moments lie · "
    "time: of a step, estimated"
)
NOTE_ON_CROPS = (
    "crop: smaller than {wanted}, it shows less around each voxel, so what is learnt, and the Dice, can differ; "
    "nothing else that is conceded changes the gradient · time: for as many voxels"
)
LEGEND_OF_SLICES = "MiB of tensors at the peak: weights, maps"
LEGEND_OF_PATCHES = "MiB of tensors at the peak: weights, maps · time: estimated, against the authors' own way"


@click.command()
@click.option("--vram", metavar="2G|1536M", help="One budget in place of the ladder from 256M to 8G.")
@click.option("--train", "training", is_flag=True, help="Plan training steps; without it, segmenting.")
@options.of(NetworkConfig, "name", "width")
@click.option("--weights", metavar="SET", help="Plan for the network of this set in place of --network.")
@options.of(TrainConfig, "batch")
@options.size
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cuda", show_default=True, help="Plan for it.")
@click.option("--precision", type=click.Choice(PRECISIONS[1:]), default="fp16", show_default=True, help="Format.")
@options.gather("network", ("name", "width"), NetworkConfig)
def plan(
    vram: str | None,
    training: bool,
    network: NetworkConfig,
    weights: str | None,
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
    from lowmem_brats.networks import has_width, patches_of, title_of

    network = _network_to_plan(network, weights)
    seen = options.what_is_seen(network, size)
    patches = patches_of(network)
    if not patches:
        planner.check_slices(network, (seen[0], seen[1]), batch)

    def plan_in(budget: MemoryBudget) -> planner.InferencePlan | planner.TrainPlan:
        if training:
            return planner.plan_train(network, seen, batch, budget, device, precision)
        return planner.plan_inference(network, seen, budget, device, precision, brain_ZHW=BRAIN_SHAPE[::-1])

    reserve = 0 if device == "cpu" else CUDA_RESERVE
    sizes = (parse_budget(vram, device, reserve_bytes=reserve).total_bytes,) if vram else planner.LADDER
    how = _ways(training, patches is not None)
    heads = "budget", "batch", "at once", *how, "time", "MiB", *(name for name, _ in PARTS)
    widths = training and not patches and has_width(network)
    shown = console.table(*heads, *(["width"] if widths else []))
    rows = planner.ladder(plan_in, reserve, sizes)
    for total, row in rows:
        name = "no limit" if total is None else format_budget(total)
        if isinstance(row, BudgetError):
            shown.add_row(name, *["–"] * (3 + len(how)), f"needs {row.expected.removeprefix('at least ')}")
            continue
        cells = [name, *_cells(row)]
        if widths and total is None:
            cells.append("any")
        elif widths:
            arguments = seen, batch, MemoryBudget(total, reserve), device, precision
            fits = planner.largest_width(network, partial(_plan_smallest, *arguments))
            cells.append(f"{fits}")
        shown.add_row(*cells)
    kind = f"{'volumes' if patches else 'slices'} of {' × '.join(map(str, seen))}"
    console.out.print(f"{title_of(network)}, {kind}, {device}, {precision}")
    console.out.print(shown)
    legend = LEGEND if training else LEGEND_OF_PATCHES if patches else LEGEND_OF_SLICES
    console.out.print(legend + (" · width: the largest that fits" if widths else ""), soft_wrap=True)
    if reserve:
        console.out.print(f"each budget also holds {console.mebibytes(reserve)} for CUDA's context and work space")
    _tell_of_smaller_crops([row for _, row in rows])
    failures = [row for _, row in rows if isinstance(row, BudgetError)]
    if len(failures) == len(rows):
        raise failures[-1]


def _ways(training: bool, patches: bool) -> list[str]:
    """The columns that say how a plan runs."""
    if training:
        return ["recompute", "state", "crop"] if patches else ["recompute", "state"]
    return ["patch"] if patches else ["recompute"]


def _tell_of_smaller_crops(rows: Sequence[InferencePlan | TrainPlan | BudgetError]) -> None:
    """Say what a smaller crop means, where a plan concedes one."""
    smaller = [getattr(row, "wanted_ZHW", ()) for row in rows if getattr(row, "smaller_crop", "")]
    if smaller:
        console.out.print(NOTE_ON_CROPS.format(wanted=" × ".join(map(str, smaller[0]))), soft_wrap=True)


def _cells(row: InferencePlan | TrainPlan) -> list[str]:
    """A plan as a row of the table: batch, at once, how, in training the state's place, time, and the bytes by kind."""
    patch = " × ".join(map(str, getattr(row, "patch_ZHW", ())))
    timed = bool(patch) or hasattr(row, "micro_batch")
    cells = [f"{row.batch}", f"{getattr(row, 'micro_batch', row.batch)}", patch or getattr(row, "recompute", "–")]
    cells += [console.place_of_state(row)] if hasattr(row, "micro_batch") else []
    cells += [" × ".join(map(str, crop_ZHW))] if (crop_ZHW := getattr(row, "crop_ZHW", ())) else []
    cells.append(f"{row.relative_time:.2f}×" if timed else "–")
    counts = (row.predicted_bytes, *(row.components[part] for _, part in PARTS))
    return cells + [f"{count / 2**20:.1f}" for count in counts]


def _network_to_plan(network: NetworkConfig, weights: str | None) -> NetworkConfig:
    """The network that the options name. Raises InputError for options that contradict each other."""
    from lowmem_brats.weights.store import open_set

    if weights is None:
        options.check_width(network)
        return options.in_its_usual_mode(network)
    if both := options.named() & {"name", "width"}:
        found = f"--weights and {'--network' if 'name' in both else '--width'}"
        raise InputError("plan", found, "one of them", "Leave one out.")
    opened = open_set(weights)
    if opened.bank:
        *_, largest = opened.bank.gmac_per_megapixel
        console.warn(f"{opened.name} is a bank, of which one member is in memory at a time: planned is {largest}")
    return opened.network


def _plan_smallest(
    size: tuple[int, ...], batch: int, budget: MemoryBudget, device: str, precision: str, config: NetworkConfig
) -> object:
    from lowmem_brats.memory.planner import plan_train

    return plan_train(config, size, batch, budget, device, precision, smallest=True)

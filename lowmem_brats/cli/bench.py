"""`lowmem-brats bench`."""

from __future__ import annotations

import json as json_module
import os
import platform
import re
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowmem_brats.cli import console, options
from lowmem_brats.config import NetworkConfig, SegmentConfig, TrainConfig
from lowmem_brats.files import check_output, replace_when_complete

if TYPE_CHECKING:
    from lowmem_brats.bench import Row


def _networks(name: str, width: tuple[int, ...]) -> list[NetworkConfig]:
    return [NetworkConfig(name=name, width=each) for each in width]


@click.command()
@click.argument("what", type=click.Choice(("memory", "speed")), default="memory")
@options.of(NetworkConfig, "name")
@click.option("--width", multiple=True, default=(16,), show_default=True, help="Repeat for several.")
@click.option("--vram", "budgets", multiple=True, default=("256M", "512M", "1G"), show_default=True,
              metavar="2G|1536M", help="Repeat for several; for `memory`.")  # fmt: skip
@options.of(TrainConfig, "batch")
@options.size
@options.of(SegmentConfig, "device", "precision")
@click.option("--json", type=options.FILE, help="Write the rows, hardware, versions and date to this file.")
@options.overwrite
@options.gather("networks", ("name", "width"), _networks)
@options.gather("where", ("device", "precision"), SegmentConfig)
def bench(
    what: str,
    networks: list[NetworkConfig],
    budgets: tuple[str, ...],
    batch: int,
    size: tuple[int, int] | None,
    where: SegmentConfig,
    json: Path | None,
    overwrite: bool,
) -> None:
    """Measure this machine: `memory`, the default, runs each plan of each budget and compares its peak with the
    prediction; `speed` times a training step under each concession that the planner may make.

    Runs the steps of `segment` and `train` on slices of noise: needs no data and no weights. On two free CPU cores
    `memory` takes about two minutes, `speed` several; wider networks and more budgets take longer.
    """
    from lowmem_brats.bench import JOBS, bench_concessions, bench_memory
    from lowmem_brats.engine.precision import choose_precision
    from lowmem_brats.memory.concessions import training_rows
    from lowmem_brats.memory.device import choose_device
    from lowmem_brats.memory.planner import check_slices
    from lowmem_brats.networks import has_width

    if json:
        check_output(json, overwrite)
    device, notes = choose_device(where.device)
    for note in notes:
        console.warn(note)
    options.check_width(networks[0])
    networks = networks if has_width(networks[0]) else networks[:1]
    precision = choose_precision(where.precision, device)
    arguments = options.size_of(networks[0], size), batch, device, precision
    check_slices(networks[0], arguments[0], batch)
    each = len(JOBS) * len(budgets) if what == "memory" else len(training_rows(batch, True))
    with console.progress() as on_progress:
        rows: list[Row] = []
        on_progress("plans run", 0, each * len(networks))

        def on_row(row: Row) -> None:
            rows.append(row)
            on_progress("plans run", len(rows), each * len(networks))

        if what == "memory":
            bench_memory(networks, budgets, *arguments, on_row)
        else:
            for config in networks:
                bench_concessions(config, *arguments, on_row)
    _show(rows)
    if json:
        with replace_when_complete(json, overwrite) as partial:
            partial.write_text(json_module.dumps(conditions(str(device)) | {"rows": _plain(rows)}, indent=2) + "\n")


def _show(rows: list[Row]) -> None:
    shown = console.table(
        "job",
        "network",
        "budget",
        "batch",
        "at once",
        "recompute",
        "state",
        "predicted",
        "measured",
        "÷",
        "within",
        "seconds",
        "time",
    )
    unlimited: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.plan is None:
            shown.add_row(row.job, row.network, row.budget, "does not fit")
            continue
        plan = row.plan
        if row.out_of_memory:
            shown.add_row(row.job, row.network, row.budget or "–", f"{plan.batch}", "out of memory")
            continue
        fastest = unlimited.setdefault((row.job, row.network), row.seconds)
        estimate = getattr(plan, "relative_time", None)
        shown.add_row(
            row.job,
            row.network,
            row.budget or "–",
            f"{plan.batch}",
            f"{getattr(plan, 'micro_batch', plan.batch)}",
            getattr(plan, "recompute", "–"),
            console.place_of_state(plan),
            console.mebibytes(plan.predicted_bytes) if plan.predicted_bytes else "–",
            console.mebibytes(row.measured_bytes),
            f"{row.measured_bytes / plan.predicted_bytes:.3f}" if plan.predicted_bytes else "–",
            {True: "yes", False: "NO"}[row.within] if plan.predicted_bytes else "–",
            f"{row.seconds:.3f}",
            f"{row.seconds / fastest:.2f}×" + (f" (planned {estimate:.2f}×)" if estimate and not row.budget else ""),
        )
    console.out.print(shown)
    console.out.print(
        "seconds: per slice (segment) or per step (train), median of 3; time: against the job's first row"
    )


def _plain(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) | {"within": row.within} for row in rows]


def conditions(device: str) -> dict[str, Any]:
    """The facts that a result must state: date, hardware, versions and the command.

    Of absolute paths in the command only the last part is told, since results are made public.
    """
    import torch

    from lowmem_brats.memory.budget import format_bytes
    from lowmem_brats.memory.cuda import driver_version
    from lowmem_brats.memory.device import host_bytes
    from lowmem_brats.weights.store import versions

    name = _processor()
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {format_bytes(properties.total_memory)}, driver {driver_version()}"
    memory = host_bytes()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": f"{device} ({name}), {torch.get_num_threads()} threads",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": format_bytes(memory) if memory else "unknown",
        "system": platform.platform(),
        "command": shlex.join([Path(each).name if os.path.isabs(each) else each for each in sys.argv]),
        "versions": versions(),
    }


def _processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "CPU"

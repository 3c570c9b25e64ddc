"""What can only be measured on a card: its context, speed by format and layout, equality with the CPU, peers.

    python benchmarks/bench_card.py OUT.json [--device cpu] [--parts context speed ...] [--picture BUDGETS.json OUT.png]

Every part runs in a process of its own, so that it meets a fresh card and none can take the others with it; the file is
complete after each. With `--device cpu` all parts run in small, to try the script where there is no card.
`on_a_card.sh` runs this and the other checks that need a card. Shape suffixes: N slices, C modalities, H W in-plane.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from peers import PEERS
from PIL import Image, ImageDraw

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, SegmentConfig
from lowmem_brats.data.case_files import find_case
from lowmem_brats.engine import step
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.precision import DTYPES, choose_precision
from lowmem_brats.evaluate.metrics import mask_dice
from lowmem_brats.memory import cuda
from lowmem_brats.networks import build_network
from lowmem_brats.segment.case import segment_case

Row = dict[str, Any]
SIZE_HW = (160, 192)
"""About that of a case of BraTS, cropped to the brain."""
BATCHES = (1, 8, 32)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
NETWORKS = {
    "U-Net, width 16, no norms": NetworkConfig(width=16, norm="none"),
    "U-Net, width 24, group norm": NetworkConfig(width=24),
    "EMCAD-B0": NetworkConfig(name="emcad-b0"),
}
SECONDS = 0.2
"""For which a forward pass or step is repeated; the median of them is stated."""


@dataclass(frozen=True)
class Setting:
    """Where everything is measured."""

    device: torch.device
    small: bool
    """Whether this only tries the script."""

    @property
    def size_HW(self) -> tuple[int, int]:
        """Of a slice."""
        return (32, 32) if self.small else SIZE_HW

    @property
    def batches(self) -> tuple[int, ...]:
        """Slices per pass."""
        return BATCHES[:1] if self.small else BATCHES

    @property
    def formats(self) -> list[str]:
        """Formats that this device computes in."""
        if self.device.type == "cpu":
            return ["fp32"]
        bf16 = torch.cuda.get_device_capability(self.device)[0] >= 8
        return ["fp32", "fp16", *(["bf16"] if bf16 else [])]

    def synchronize(self) -> None:
        """Wait for the card."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_seconds(self, run: Callable[[], object]) -> float:
        """Of as many runs as take SECONDS, at least three, after two that are not counted."""
        seconds = list[float]()
        for count in range(1000):
            began = time.perf_counter()
            run()
            self.synchronize()
            seconds += [time.perf_counter() - began] * (count >= 2)
            if len(seconds) >= 3 and sum(seconds) > SECONDS:
                break
        return statistics.median(seconds)


def measure_context(where: Setting) -> Row:
    """The context that is assumed and measured, and what it has grown to after real training steps."""
    if where.device.type == "cpu":
        return {"not run": "no card"}
    measured = cuda.measure_context(where.device)
    others = cuda.other_programs(where.device)
    rows = {}
    for name, network in NETWORKS.items():
        for precision in where.formats:
            _train_step(where, network, precision, 8)()
            where.synchronize()
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(where.device)
            rows[f"{name}, {precision}"] = total - free - others - torch.cuda.memory_reserved(where.device)
    return {"assumed_bytes": cuda.ASSUMED_CONTEXT, "measured_bytes": measured, "others_bytes": others, "after": rows}


def _train_step(where: Setting, config: NetworkConfig, precision: str, batch: int) -> Callable[[], object]:
    training = step.TrainingStep(step.place(build_network(config), where.device).train(), find_loss("dice"))
    slices_NCHW = torch.randn(batch, config.channels, *_size_of(where, config))
    parts = step.split_batch(slices_NCHW, (slices_NCHW[:, :1] > 1).float(), batch)
    return lambda: training.take(parts, 1e-4, DTYPES[precision])


def _size_of(where: Setting, config: NetworkConfig) -> tuple[int, int]:
    return (64, 64) if where.small else where.size_HW if config.name == "unet2d" else (256, 256)


def measure_speed(where: Setting) -> list[Row]:
    """Milliseconds a slice, forward and in training, by network, format, layout and batch."""
    rows = []
    for layout, memory_format in LAYOUTS.items():
        with patch.object(step, "memory_format", lambda device, chosen=memory_format: chosen):
            for name, config in NETWORKS.items():
                for precision in where.formats:
                    for batch in where.batches:
                        rows.append({"network": name, "format": precision, "layout": layout, "batch": batch})
                        rows[-1] |= _speed_of(where, config, precision, batch)
                        print(rows[-1], flush=True)
    return rows


def _speed_of(where: Setting, config: NetworkConfig, precision: str, batch: int) -> Row:
    network = step.place(build_network(config), where.device, DTYPES[precision]).eval()
    slices_NCHW = torch.randn(batch, config.channels, *_size_of(where, config)).half()
    row: Row = {}
    for what, run in {
        "segment": lambda: step.predict_batch(network, slices_NCHW),
        "train": _train_step(where, config, precision, batch),
    }.items():
        if where.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(where.device)
        row[f"{what}_ms_per_slice"] = 1000 * where.median_seconds(run) / batch
        if where.device.type == "cuda":
            row[f"{what}_allocated_bytes"] = torch.cuda.max_memory_allocated(where.device)
            row[f"{what}_reserved_bytes"] = torch.cuda.max_memory_reserved(where.device)
    return row


def measure_compiled(where: Setting) -> list[Row]:
    """Milliseconds a slice of a forward pass as it is, compiled, and as a CUDA graph."""
    if where.device.type == "cpu":
        return [{"not run": "no card"}]
    config, precision, rows = NETWORKS["U-Net, width 16, no norms"], where.formats[-1], list[Row]()
    network = step.place(build_network(config), where.device, DTYPES[precision]).eval()
    for batch in where.batches:
        slices_NCHW = torch.randn(batch, config.channels, *where.size_HW, device=where.device, dtype=DTYPES[precision])
        with torch.inference_mode():
            times = {"plain": where.median_seconds(lambda slices=slices_NCHW: network(slices))}
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                network(slices_NCHW)
            times["graph"] = where.median_seconds(graph.replay)
            del graph
            began = time.perf_counter()
            compiled = torch.compile(network)
            compiled(slices_NCHW)
            made = time.perf_counter() - began
            times["compiled"] = where.median_seconds(lambda slices=slices_NCHW, run=compiled: run(slices))
        rows.append({"batch": batch, "format": precision, "compile_seconds": made})
        rows[-1] |= {f"{name}_ms_per_slice": 1000 * seconds / batch for name, seconds in times.items()}
    return rows


def compare_with_cpu(where: Setting) -> list[Row]:
    """A phantom's label map by the shipped weights, in each format, against the CPU's in fp32; seconds per stage."""
    from lowmem_brats.cli.phantom import write_phantom

    rows = []
    with TemporaryDirectory() as name:
        shape = (64, 64, 48) if where.small else (240, 240, 155)
        files = find_case(write_phantom(Path(name), 0, shape, overwrite=False))
        output = Path(name) / "seg.nii.gz"
        expected = segment_case(files, output, SegmentConfig(device="cpu", precision="fp32"))
        for precision in where.formats * 2:  # the second time all code is loaded
            began = time.perf_counter()
            found = segment_case(files, output, SegmentConfig(device=str(where.device), precision=precision))
            rows.append(
                {
                    "format": precision,
                    "seconds": time.perf_counter() - began,
                    "stages": found.report.seconds,
                    "voxels_that_differ": int((found.label_XYZ != expected.label_XYZ).sum()),
                    "dice_with_cpu": mask_dice(found.label_XYZ > 0, expected.label_XYZ > 0),
                    "peak_bytes": found.report.peak_bytes,
                    "cuda_peak": found.report.cuda_peak,
                    "warnings": found.report.warnings,
                }
            )
    return rows


def measure_peers(where: Setting) -> list[Row]:
    """Seconds and peak memory of a case's passes of each peer on this device, with autocast on a card."""
    if where.small:
        return [{"not run": "no card"}]
    rows = []
    for name, peer in PEERS.items():
        row: Row = {"name": name, "source": peer.source, "window": peer.window}
        try:
            network = peer.build().to(where.device, memory_format=peer.layout).eval()
            images = peer.images().to(where.device, torch.float32)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(where.device)
            with torch.inference_mode(), torch.autocast(where.device.type, DTYPES[where.formats[-1]]):
                passes = peer.passes((138, 170, 138), (240, 240, 155))
                row["seconds"] = where.median_seconds(lambda run=network, seen=images: run(seen)) * passes
            row |= {"passes": passes, "allocated_bytes": torch.cuda.max_memory_allocated(where.device)}
            row["reserved_bytes"] = torch.cuda.max_memory_reserved(where.device)
        except (ImportError, RuntimeError) as error:
            row["not run"] = str(error).splitlines()[0]
        network = images = None  # type: ignore[assignment]
        rows.append(row)
    return rows


PARTS: dict[str, Callable[[Setting], Any]] = {
    "context": measure_context,
    "equality": compare_with_cpu,
    "speed": measure_speed,
    "peers": measure_peers,
    "compiled": measure_compiled,
}


def draw_budgets(rows: list[Row], path: Path) -> None:
    """Draw a bar for each plan: its budget, what the process and the allocator took of it, and what was predicted."""
    rows = [row for row in rows if row["plan"] and not row["out_of_memory"] and row["total_bytes"]]
    height, left, width = 22, 300, 640
    image = Image.new("RGB", (left + width + 20, height * (len(rows) + 2)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((8, 5), "frame: budget, light: process, dark: allocator, red: tensors as predicted", "black")
    largest = max((row["total_bytes"] for row in rows), default=1)
    for number, row in enumerate(rows, 1):
        top = number * height
        predicted = row["plan"]["predicted_bytes"]
        name = f"{row['job']}, {row['network']}, {row['budget']}: {predicted / 2**20:.0f} MiB"
        draw.text((8, top + 5), name, "black" if row["within"] else "red")
        for key, colour in (("process_bytes", "#aab7b8"), ("reserved_bytes", "#5d6d7e")):
            draw.rectangle((left, top + 5, left + width * row[key] / largest, top + height - 5), fill=colour)
        draw.rectangle((left, top + 2, left + width * row["total_bytes"] / largest, top + height - 2), outline="black")
        x = left + width * predicted / largest
        draw.line((x, top + 2, x, top + height - 2), fill="#c0392b", width=3)
    image.save(path)


def main() -> None:
    """Measure the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--picture", nargs=2, type=Path, metavar=("BUDGETS.json", "OUT.png"))
    options = parser.parse_args()
    if options.picture:
        draw_budgets(json.loads(options.picture[0].read_text())["rows"], options.picture[1])
        return
    device = torch.device(options.device)
    where = Setting(device, small=device.type == "cpu")
    result = conditions(options.device) | {"statistic": f"median of at least 3 repeats within {SECONDS} s, after 2"}
    for name in options.parts:
        result[name] = in_fresh_process(PARTS[name], where)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(name, "done", flush=True)


def in_fresh_process(measure: Callable[[Setting], Any], where: Setting) -> Any:
    """What a part returns, or how it failed."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(_begin, (measure, where))
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"}


def _begin(measure: Callable[[Setting], Any], where: Setting) -> Any:
    choose_precision("fp32", where.device)  # as the program does: no TF32
    return measure(where)


if __name__ == "__main__":
    main()

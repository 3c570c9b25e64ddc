"""Time, operations and memory of one real case on the CPU: this project beside MONAI, nnU-Net and the paper it follows.

    python benchmarks/bench_peers.py --case DIR OUT.json [--repeats 5] [--only NAME...]

Every contestant has a process of its own, and only one computes at a time. Its repeats alternate with those of our
shipped weights, so that whatever else slows the machine slows both. Ours is measured from NIfTI to NIfTI, peers by
their networks alone. `--only`: parts of names. Needs monai and dynamic-network-architectures, and Linux for reading
memory.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_speed import ProcessPeak, segment_counting, slices_gmac
from peers import PEERS, gmac

from lowmem_brats.cli import console
from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, SegmentConfig
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import CaseFiles, find_case
from lowmem_brats.data.labels import Region
from lowmem_brats.memory.budget import MemoryBudget, format_budget
from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.planner import plan_inference
from lowmem_brats.networks import build_network
from lowmem_brats.segment.case import segment_case
from lowmem_brats.segment.result import SegmentReport
from lowmem_brats.weights.file import save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import open_set

Row = dict[str, Any]
TIMES = "seconds", "network_seconds", "cpu_seconds"
LONGEST = 8.0
"""Seconds that a repeat of a peer may take; a slower peer runs some of its passes, and its time is scaled."""
OURS, SMALLEST = "ours", "ours, smallest plan"
CPU = SegmentConfig(device="cpu")
SHIPPED = {
    "ours, every slice": replace(CPU, narrow=False),
    "ours, fp32": replace(CPU, precision="fp32"),
    "ours, fast": replace(CPU, fast=True),
    "ours, emcad-b0": replace(CPU, weights="emcad-b0"),
    "ours, emcad-b0, fast": replace(CPU, weights="emcad-b0", fast=True),
}
"""The shipped weights in other ways than by default, and the other shipped set."""
UNTRAINED = {
    **{f"ours, U-Nets of width {width}": NetworkConfig(width=width) for width in (16, 32, 64)},
    "ours, EMCAD-B0": NetworkConfig(name="emcad-b0"),
}
"""Three binary networks each, with random weights on every slice with brain: the most that a case can take."""
EVERYTHING = replace(CPU, precision="bf16", narrow=False)
STATED = {
    "statistic": "median of the repeats; times_ours: median of each repeat over the repeat of ours just before it",
    "live_peak_bytes": "bytes of tensor storages alive at once in a pass: network, input and maps; of peers without "
    "buffers to stitch windows, in their favour",
    "process_peak_bytes": "most resident memory (VmHWM) above that of the process after its imports; of ours with the "
    "volumes of the case, of peers with one window only, in their favour",
    "seconds": "of ours from NIfTI to NIfTI; of peers their networks' passes, scaled from passes_timed to passes",
    "network_seconds": "the networks' stages alone",
    "gmac": "multiply-accumulates of a case in 10⁹, convolutions and matrix products",
}


class Worker:
    """A process that does one repeat when asked to, and nothing meanwhile."""

    def __init__(self, repeats: Callable[..., Iterator[Row]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, repeats, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def next(self) -> Row:
        """The first time what a contestant found when it was made ready, then one repeat."""
        self._pipe.send(True)
        return self._pipe.recv()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Any, repeats: Callable[..., Iterator[Row]], *arguments: object) -> None:
    results = repeats(*arguments)
    while pipe.recv():
        pipe.send(next(results))


def timed(run: Callable[[], object]) -> Row:
    """Wall and processor seconds of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def repeat_peer(name: str, passes: int) -> Iterator[Row]:
    """What a pass of a peer holds, then the times of a case, again and again."""
    peer = PEERS[name]
    with torch.device("meta"):
        peer.build()  # imports the peer's library, which shall not count as its memory
    memory = ProcessPeak()
    network, images = peer.network(), peer.images()

    @torch.inference_mode()
    def run(times: int) -> None:
        for _ in range(times):
            network(images)

    with PeakMeter(torch.device("cpu"), *network.parameters(), *network.buffers(), images) as meter:
        run(1)
    count = min(passes, max(1, int(LONGEST / timed(partial(run, 1))["seconds"])))
    yield {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "passes": passes,
        "passes_timed": count,
        "live_peak_bytes": meter.peak_bytes,
    }
    while True:
        times = {key: value * passes / count for key, value in timed(partial(run, count)).items()}
        yield times | {"network_seconds": times["seconds"], "process_peak_bytes": memory.bytes()}


def repeat_ours(files: CaseFiles, output: Path, settings: SegmentConfig) -> Iterator[Row]:
    """What a case needs and runs, then the times of segmenting it, again and again."""
    memory = ProcessPeak()
    report, slices = segment_counting(files, output, settings)
    yield {
        "network": asdict(open_set(settings.weights).network),
        "plan": asdict(report.plan),
        "slices": report.slices,
        "sizes": [(tuple(size), count) for size, count in slices.items()],
        "passes": slices.total(),
        "passes_timed": slices.total(),
        "live_peak_bytes": report.peak_bytes,
    }
    while True:
        reports: list[SegmentReport] = []
        times = timed(lambda: reports.append(segment_case(files, output, settings).report))  # noqa: B023
        stages = reports[0].seconds
        networks = sum(stages[network] for network in reports[0].slices)
        yield times | {"network_seconds": networks, "process_peak_bytes": memory.bytes(), "stages": stages}


def write_untrained(folder: Path, network: NetworkConfig) -> Path:
    """Write a set of three binary networks with random weights that find tumour everywhere: no slice is skipped."""
    folder.mkdir()
    paths = {region: folder / f"{region.value}.safetensors" for region in Region}
    for region, path in paths.items():
        untrained = build_network(network)
        torch.nn.init.constant_(untrained.last_bias(), 1000.0)
        save_network(untrained, WeightsFile(path, (region,), network, {}, {}))
    write_index(folder, "untrained", paths)
    return folder


class Bench:
    """Rows of one case, each measured beside our shipped weights."""

    def __init__(self, case: Path, folder: Path, repeats: int) -> None:
        self.files, self.folder, self.repeats = find_case(case), folder, repeats
        self.reference, self.ready = self.start_ours(CPU)
        self.own_repeats: list[Row] = []
        brain_XYZ = read_case(self.files).images_CXYZ.any(axis=0)
        self.volume_XYZ = brain_XYZ.shape
        across = (brain_XYZ.any(axis=axes).nonzero()[0] for axes in ((1, 2), (0, 2), (0, 1)))
        self.brain_XYZ = [int(used[-1] - used[0]) + 1 for used in across]

    def start_ours(self, settings: SegmentConfig) -> tuple[Worker, Row]:
        """One of our own contestants, and what is known of it."""
        worker = Worker(repeat_ours, self.files, self.folder / "seg.nii.gz", settings)
        ready = worker.next()
        network = NetworkConfig(**ready["network"])
        parameters = sum(parameter.numel() for parameter in build_network(network).parameters())
        ready["parameters"] = parameters * len(ready["slices"])
        return worker, ready | {"gmac": slices_gmac(network, dict(ready["sizes"]))}

    def shipped(self, name: str) -> Row:
        """A row of the shipped weights."""
        return self.beside_ours(name, *self.start_ours(SHIPPED[name]))

    def smallest(self) -> Row | None:
        """A row of the shipped weights in the least memory, where that is another plan than the fastest."""
        fastest, network = self.ready["plan"], NetworkConfig(**self.ready["network"])
        largest_HW = max((size for size, _ in self.ready["sizes"]), key=math.prod)
        where = MemoryBudget(None), fastest["device"], fastest["precision"]
        plan = plan_inference(network, largest_HW, *where, smallest=True)
        if asdict(plan) == fastest:
            return None
        return self.beside_ours(SMALLEST, *self.start_ours(replace(CPU, vram=format_budget(plan.predicted_bytes))))

    def untrained(self, name: str) -> Row:
        """A row of one of our architectures."""
        weights = write_untrained(self.folder / name, UNTRAINED[name])
        return self.beside_ours(name, *self.start_ours(replace(EVERYTHING, weights=str(weights))))

    def peer(self, name: str) -> Row:
        """A row of a peer."""
        peer = PEERS[name]
        passes = peer.passes(self.brain_XYZ, self.volume_XYZ)
        fields = {key: getattr(peer, key) for key in ("source", "note", "shape")} | {"dtype": str(peer.dtype)}
        worker = Worker(repeat_peer, name, passes)
        ready = fields | worker.next() | {"gmac": gmac(peer.build, peer.shape) * passes}
        return self.beside_ours(name, worker, ready)

    def beside_ours(self, name: str, worker: Worker, ready: Row) -> Row:
        """Repeat ours and a contestant in turn."""
        pairs = [(self.reference.next(), worker.next()) for _ in range(self.repeats)]
        worker.close()
        self.own_repeats += [own for own, _ in pairs]
        ratios = {key: statistics.median(theirs[key] / own[key] for own, theirs in pairs) for key in TIMES}
        ratios |= {key: ready[key] / self.ready[key] for key in ("live_peak_bytes", "gmac")}
        return summary(name, ready, [theirs for _, theirs in pairs]) | {"times_ours": ratios}

    def ours(self) -> Row:
        """The row of our shipped weights, over all repeats so far."""
        if not self.own_repeats:
            self.own_repeats = [self.reference.next() for _ in range(self.repeats)]
        ratios = dict.fromkeys((*TIMES, "live_peak_bytes", "gmac"), 1.0)
        return summary(OURS, self.ready, self.own_repeats) | {"times_ours": ratios}


def summary(name: str, ready: Row, repeats: list[Row]) -> Row:
    """A row: medians and every repeat."""
    times = {key: statistics.median(repeat[key] for repeat in repeats) for key in TIMES}
    peak = max(repeat["process_peak_bytes"] for repeat in repeats)
    return {"name": name, **ready, "process_peak_bytes": peak, **times, "repeats": repeats}


def show(rows: list[Row]) -> None:
    """The table."""
    heads = "GMAC", "passes", "timed", "live MiB", "process MiB", "seconds", "networks", "CPU s"
    shown = console.table("", *heads, "× GMAC", "× memory", "× seconds", "× networks")
    for row in rows:
        cells = [f"{row['gmac']:.1f}", f"{row['passes']}", f"{row['passes_timed']}"]
        cells += [f"{row[key] / 2**20:.1f}" for key in ("live_peak_bytes", "process_peak_bytes")]
        cells += [f"{row[key]:.2f}" for key in TIMES]
        ratios = row["times_ours"]
        cells += [f"{ratios[key]:.2f}" for key in ("gmac", "live_peak_bytes", "seconds", "network_seconds")]
        shown.add_row(row["name"], *cells)
    console.out.print(shown)


def main() -> None:
    """Measure every contestant; the file is complete after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""])
    options = parser.parse_args()
    command = f"python benchmarks/bench_peers.py --case {options.case.name} OUT.json --repeats {options.repeats}"
    if any(options.only):
        command += f" --only {shlex.join(options.only)}"
    stated = conditions("cpu") | {"command": command, "repeats": options.repeats} | STATED
    stated["versions"] |= {name: version(name) for name in ("monai", "dynamic_network_architectures")}
    with TemporaryDirectory() as folder:
        bench = Bench(options.case, Path(folder), options.repeats)
        contestants: dict[str, Callable[[], Row | None]] = {SMALLEST: bench.smallest}
        contestants |= {name: partial(bench.shipped, name) for name in SHIPPED}
        contestants |= {name: partial(bench.untrained, name) for name in UNTRAINED}
        contestants |= {name: partial(bench.peer, name) for name in PEERS}
        rows: list[Row] = []
        for name, measure in contestants.items():
            if any(part in name for part in options.only) and (row := measure()):
                rows.append(row)
                show(rows[-1:])
            options.out.write_text(json.dumps(stated | {"rows": [bench.ours(), *rows]}, indent=2) + "\n")
        show([bench.ours(), *rows])
        bench.reference.close()


if __name__ == "__main__":
    main()

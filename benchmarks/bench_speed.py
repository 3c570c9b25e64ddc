"""Where the time of `segment` goes on the CPU, and how time and memory grow with slices, their size and cases.

    python benchmarks/bench_speed.py --case DIR OUT.json [--repeats 3]

DIR: one BraTS case (240 × 240 × 155, 1 mm). Everything runs the shipped weights from NIfTI to NIfTI. Needs Linux to
read memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from peers import gmac
from scipy import ndimage
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lowmem_brats.cli.bench import conditions
from lowmem_brats.config import NetworkConfig, SegmentConfig
from lowmem_brats.data.case import read_case
from lowmem_brats.data.case_files import CaseFiles, find_case
from lowmem_brats.engine import step
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.segment.case import segment_case
from lowmem_brats.segment.result import SegmentReport
from lowmem_brats.weights.store import open_set

Row = dict[str, Any]
Size = tuple[int, ...]
CPU = SegmentConfig(device="cpu")
MATRIX = 2048
SLICES = (16, 32, 64, 96, 138)
SIDES = (240, 320, 400, 512)
CASES = (1, 5, 10, 20)
STATED = {
    "statistic": "median of the repeats after one that is not counted; cases: one run each",
    "peak_bytes": "bytes of tensor storages alive at once: network and maps",
    "process_peak_bytes": "most resident memory (VmHWM) above that of the process after its imports",
}


class ProcessPeak:
    """The most resident memory of this process above what it was when this was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present
        self._before = self._read("VmRSS")

    def bytes(self) -> int:
        """So far."""
        return self._read("VmHWM") - self._before

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def segment_counting(files: CaseFiles, output: Path, settings: SegmentConfig) -> tuple[SegmentReport, Counter[Size]]:
    """Segment a case, and count the slices that networks ran on by their size."""
    slices: Counter[Size] = Counter()
    predict_batch = step.predict_batch

    def counting(network: SliceNetwork, slices_NCHW: Tensor) -> Tensor:
        slices[slices_NCHW.shape[2:]] += len(slices_NCHW)
        return predict_batch(network, slices_NCHW)

    with patch.object(step, "predict_batch", counting):
        return segment_case(files, output, settings).report, slices


def slices_gmac(network: NetworkConfig, slices: Mapping[Size, int]) -> float:
    """Multiply-accumulates in 10⁹ of so many slices of each size."""
    build = partial(build_network, network)
    return sum(gmac(build, (1, network.channels, *size_HW)) * count for size_HW, count in slices.items())


def network_seconds(report: SegmentReport) -> float:
    """Of the networks' stages, in which slices are also gathered and logits added up."""
    return sum(report.seconds[network] for network in report.slices)


def where_time_goes(files: CaseFiles, output: Path, repeats: int) -> Row:
    """Seconds per stage, the convolutions' share, and operations per second beside those of a matrix product."""
    report, slices = segment_counting(files, output, CPU)
    reports = [segment_case(files, output, CPU).report for _ in range(repeats)]
    seconds = {stage: statistics.median(each.seconds[stage] for each in reports) for stage in report.seconds}
    networks = statistics.median(map(network_seconds, reports))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        profiled = segment_case(files, output, CPU).report
    convolutions = sum(row.self_cpu_time_total for row in profiler.key_averages() if "conv" in row.key) / 1e6
    operations = 2 * slices_gmac(open_set().network, slices)
    reached = operations / networks
    peaks = {name: product_gflops(DTYPES[name]) for name in ("bf16", "fp32")}
    return {
        "seconds": seconds,
        "whole_seconds": statistics.median(sum(each.seconds.values()) for each in reports),
        "network_seconds": networks,
        "slices": report.slices,
        "precision": report.plan.precision,
        "convolution_seconds": convolutions,
        "profiled_network_seconds": network_seconds(profiled),
        "convolution_share_of_networks": convolutions / network_seconds(profiled),
        "convolution_share_of_case": convolutions / sum(profiled.seconds.values()),
        "gflop": operations,
        "gflop_per_second": reached,
        "matrix_product_gflop_per_second": peaks,
        "share_of_matrix_product": reached / peaks[report.plan.precision],
    }


def product_gflops(dtype: torch.dtype, repeats: int = 5) -> float:
    """The most 10⁹ operations per second of a large matrix product."""
    left, right = torch.randn(2, MATRIX, MATRIX).to(dtype)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / 1e9 / min(seconds[1:])


def changed_case(files: CaseFiles, folder: Path, change: Callable[[Any], Any]) -> CaseFiles:
    """Write a case whose images went through a function."""
    folder.mkdir()
    for modality, path in files.images.items():
        nibabel.save(change(nibabel.load(path)), folder / f"{folder.name}_{modality}.nii.gz")
    return find_case(folder)


def cut(start: int, count: int, image: Any) -> Any:
    """So many axial slices of an image."""
    return image.slicer[..., start : start + count]


def zoomed(side: int, image: Any) -> Any:
    """An image with so many pixels along each side of its slices."""
    factor = side / image.shape[0]
    array_XYZ = ndimage.zoom(np.asarray(image.dataobj, np.float32), (factor, factor, 1), order=1)
    affine = image.affine @ np.diag([1 / factor, 1 / factor, 1, 1])
    return nibabel.Nifti1Image(np.rint(array_XYZ).astype(image.get_data_dtype()), affine)


def measured(files: CaseFiles, output: Path, repeats: int) -> Row:
    """Time and memory of one case, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (files, output, repeats))


def _measured(files: CaseFiles, output: Path, repeats: int) -> Row:
    memory = ProcessPeak()
    reports = [segment_case(files, output, CPU).report for _ in range(repeats + 1)][1:]
    return {
        "seconds": statistics.median(sum(report.seconds.values()) for report in reports),
        "network_seconds": statistics.median(map(network_seconds, reports)),
        "passes": sum(count["run"] for count in reports[0].slices.values()),
        "peak_bytes": reports[0].peak_bytes,
        "process_peak_bytes": memory.bytes(),
        "warnings": reports[0].warnings,
    }


def against_slices(files: CaseFiles, folder: Path, repeats: int) -> list[Row]:
    """Time and memory of so many axial slices around the middle of the brain; few are seen from above only."""
    used = np.flatnonzero(read_case(files).images_CXYZ.any(axis=(0, 1, 2)))
    rows = []
    for count in SLICES:
        start = max(int(used[0] + used[-1] + 1 - count) // 2, 0)
        case = changed_case(files, folder / f"slices_{count}", partial(cut, start, count))
        rows.append({"slices": count} | measured(case, folder / "seg.nii.gz", repeats))
        print(rows[-1], flush=True)
    return rows


def against_size(files: CaseFiles, folder: Path, repeats: int) -> list[Row]:
    """Time and memory of slices with so many pixels a side; of large ones only axial slices are seen."""
    rows = []
    for side in SIDES:
        case = changed_case(files, folder / f"side_{side}", partial(zoomed, side))
        rows.append({"side": side} | measured(case, folder / "seg.nii.gz", repeats))
        print(rows[-1], flush=True)
    return rows


def copies(files: CaseFiles, folder: Path, count: int) -> list[Path]:
    """The case under so many names."""
    paths = [folder / f"copy_{number:02d}" for number in range(count)]
    for path in paths:
        path.mkdir(parents=True)
        for modality, image in files.images.items():
            ending = ".nii.gz" if image.name.endswith(".gz") else ".nii"
            (path / f"{path.name}_{modality}{ending}").symlink_to(image.resolve())
    return paths


def against_cases(files: CaseFiles, folder: Path, alone: float) -> list[Row]:
    """Time of so many cases in one command, and the rate beside that of the networks `alone`, in seconds per case."""
    rows = []
    for count in CASES:
        report = folder / f"{count}.json"
        cases = copies(files, folder / f"{count}_cases", count)
        began = time.perf_counter()
        run_command(["segment", *map(str, cases), "-o", str(folder / f"{count}_results"), "--report", str(report)])
        wall = time.perf_counter() - began
        reports = json.loads(report.read_text())["cases"]
        networks = sum(each["seconds"][network] for each in reports for network in each["slices"])
        row = {"cases": count, "seconds": wall, "seconds_per_case": wall / count, "network_seconds": networks}
        # Beside the reading of the next case the networks take longer than alone.
        rows.append(row | {"networks_share": networks / wall, "share_of_rate_alone": alone * count / wall})
        print(rows[-1], flush=True)
    return rows


def run_command(arguments: Sequence[str]) -> None:
    """Run a command of this project in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "lowmem_brats", *arguments, "--device", "cpu", "--no-preview", "--no-page", "--quiet"],
        check=True,
    )


def main() -> None:
    """Measure every part; the file is complete after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    files = find_case(options.case)
    command = f"python benchmarks/bench_speed.py --case {options.case.name} OUT.json --repeats {options.repeats}"
    result = conditions("cpu") | {"command": command, "repeats": options.repeats} | STATED
    with TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "where": lambda: where_time_goes(files, folder / "seg.nii.gz", options.repeats),
            "slices": lambda: against_slices(files, folder, options.repeats),
            "size": lambda: against_size(files, folder, options.repeats),
            "cases": lambda: against_cases(files, folder, result["where"]["network_seconds"]),
        }
        for part, measure in parts.items():
            result[part] = measure()
            options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["where"], indent=2))


if __name__ == "__main__":
    main()

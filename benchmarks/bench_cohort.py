"""How fast one process, two workers and two parts segment a cohort on this machine, and whether all give the same.

    python benchmarks/bench_cohort.py OUT.json [--cases DIR] [--count 20] [--shape 80 96 64]

Without DIR the cases are phantoms. Every process has one thread. Each way starts from nothing, and its time holds the
start of its processes. On a machine that does other work, compare the seconds of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from lowmem_brats.cli.bench import conditions
from lowmem_brats.cli.phantom import write_phantom
from lowmem_brats.cohort.records import Records

WAYS = {
    "one process": [[]],
    "two workers": [["--workers", "2"]],
    "two parts at once": [["--part", "1/2"], ["--part", "2/2"]],
}
"""Way → the further arguments of each command that runs at once."""
NOT_THE_NETWORK = ("load", "plan", "fuse", "write", "measure")
"""Stages of a report; the others are named by the regions that a network looks for."""


def measured(cases: Path, out: Path, commands: list[list[str]]) -> dict[str, Any]:
    """Run commands at once and wait for all: seconds of the clock, of processors, and in the networks."""
    words = [sys.executable, "-m", "lowmem_brats", "segment", str(cases), "-o", str(out), "--device", "cpu", "-q"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    reports = [out.parent / f"{out.name}-{number}.json" for number, _ in enumerate(commands)]
    running = [
        subprocess.Popen([*words, *more, "--report", str(report)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for more, report in zip(commands, reports, strict=True)
    ]
    codes = [each.wait() for each in running]
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if any(codes):
        raise SystemExit(f"exit codes {codes}")
    entries = [entry for report in reports for entry in json.loads(report.read_text())["cases"]]
    network_s = [sum(s for stage, s in e["seconds"].items() if stage not in NOT_THE_NETWORK) for e in entries]
    stages_s = [sum(entry["seconds"].values()) for entry in entries]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cases": len(entries),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "cases_per_hour": round(3600 * len(entries) / wall_s, 1),
        "cpu_s_per_case": round(cpu_s / len(entries), 2),
        "network_s_per_case": round(float(np.mean(network_s)), 2),
        "stages_s_per_case": round(float(np.mean(stages_s)), 2),
        "network_share_of_stages": round(sum(network_s) / sum(stages_s), 3),
        "record_bytes": round(float(np.mean([path.stat().st_size for path in (out / "records").iterdir()]))),
        "result_bytes_per_case": sum(p.stat().st_size for p in out.iterdir() if p.is_file()) // len(entries),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def same_label_maps(first: Path, second: Path) -> bool:
    """Whether two folders hold the same label maps, voxel by voxel."""
    names = [sorted(path.name for path in out.glob("*_seg.nii.gz")) for out in (first, second)]
    return (
        bool(names[0])
        and names[0] == names[1]
        and all(
            np.array_equal(*(np.asarray(nibabel.load(out / name).dataobj) for out in (first, second)))
            for name in names[0]
        )
    )


def main() -> None:
    """Measure all ways and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(80, 96, 64))
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        cases = given.cases or Path(scratch, "cases")
        for seed in range(0 if given.cases else given.count):
            write_phantom(cases, seed, tuple(given.shape), overwrite=False)
        found: dict[str, Any] = {}
        for way, commands in WAYS.items():
            out = Path(scratch, way.replace(" ", "_"))
            found[way] = measured(cases, out, commands)
            found[way]["same_label_maps"] = same_label_maps(Path(scratch, "one_process"), out)
            print(way, found[way], flush=True)
        records = Records(Path(scratch, "one_process"))
        kind = "real cases" if given.cases else f"phantoms of {' × '.join(map(str, given.shape))} voxels"
        report = {"conditions": conditions("cpu"), "cases": kind, "records": len(records.all()), "ways": found}
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

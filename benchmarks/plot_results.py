"""The picture of the results: what a case costs beside peers, and how its time grows with its slices.

    python benchmarks/plot_results.py PEERS.json SPEED.json OUT.png

PEERS.json is of `bench_peers.py`, SPEED.json of `bench_speed.py`. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, OTHERS = "#c0392b", "#566573"
SIZE_INCHES, DPI = (10, 4.8), 100
Rows = list[dict[str, Any]]


def plot_cost(axes: Axes, rows: Rows) -> None:
    """Operations against memory of every contestant; names in a column on the right, in the order of their points."""
    rows = sorted(rows, key=lambda row: (row["live_peak_bytes"], row["gmac"]))
    for number, row in enumerate(rows):
        x, y = row["gmac"], row["live_peak_bytes"] / 2**20
        colour = OURS if row["name"].startswith("ours") else OTHERS
        axes.plot(x, y, "o", color=colour, markersize=6)
        axes.annotate(
            row["name"],
            (x, y),
            xytext=(1.05, (number + 0.5) / len(rows)),
            textcoords="axes fraction",
            color=colour,
            fontweight="bold" if row["name"] == "ours" else "normal",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)},
        )
    axes.set(xscale="log", yscale="log", xlabel="10⁹ multiply-accumulates per case", ylabel="live tensors, MiB")
    axes.set_title("One BraTS case on the CPU", loc="left")
    axes.grid(True, which="major", alpha=0.3)


def plot_slices(axes: Axes, rows: Rows) -> None:
    """Seconds against slices; cases too flat to be seen from other sides are hollow."""
    slices = [row["slices"] for row in rows]
    for key, style, label in (("seconds", "-", "NIfTI to NIfTI"), ("network_seconds", "--", "networks alone")):
        axes.plot(slices, [row[key] for row in rows], style, color=OURS, label=label)
    for row in rows:
        flat = any("axial slices only" in text for text in row["warnings"])
        axes.plot(row["slices"], row["seconds"], "o", color=OURS, markerfacecolor="white" if flat else OURS)
    axes.set(xlabel="axial slices (hollow: seen axially only)", ylabel="seconds", ylim=(0, None), xlim=(0, None))
    axes.set_title("Time of ours", loc="left")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(True, alpha=0.3)


def main() -> None:
    """Draw both panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path)
    parser.add_argument("speed", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    mpl.use("Agg")
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (cost, slices) = pyplot.subplots(1, 2, figsize=SIZE_INCHES, dpi=DPI, width_ratios=(1.3, 1))
    plot_cost(cost, json.loads(options.peers.read_text())["rows"])
    plot_slices(slices, json.loads(options.speed.read_text())["slices"])
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.12, top=0.92, wspace=0.82)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()

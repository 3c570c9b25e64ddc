"""What a training tells of itself, and what a later one that goes on with it reads again.

`run.json` holds the recipe, the split, the plans and all that happened; `metrics.csv` shows the epochs.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lowmem_brats.config import NetworkConfig, TrainConfig, without_former
from lowmem_brats.data.slice_cache import digest
from lowmem_brats.errors import InputError
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.train.state import Epoch
from lowmem_brats.weights.store import versions

MOST_LISTED = 5


@dataclass
class NetworkReport:
    """How one network's training went."""

    epochs: list[Epoch]
    curve: list[tuple[int, float]]
    """(step, mean loss of the ten steps until then)."""
    switches: list[tuple[int, str]]
    """(step, why the format changed)."""
    peak_bytes: dict[str, int]
    """Format → most bytes of tensors on the device, to compare with its plan's `predicted_bytes`."""
    thresholds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Region → the logit at which validation Dice was best, to which the weights were moved, and that Dice."""


@dataclass
class TrainReport:
    """What a training did; written to `run.json` after every epoch."""

    config: TrainConfig
    versions: dict[str, str]
    device: str
    training_cases: list[str]
    validation_cases: list[str]
    test_cases: list[str]
    plans: list[TrainPlan] = field(default_factory=list)
    """How a step is taken, per format: the one to train in, then the one to fall back to."""
    networks: dict[str, NetworkReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    test: dict[str, dict[str, float]] = field(default_factory=dict)
    """Region → measure → mean over the test patients; empty until the end."""
    cuda_peak: dict[str, int] | None = None
    """On a card: most bytes reserved, and used as the driver sees it."""
    data: str = ""
    """The folder or list of cases, as it was given."""
    cache: str = ""
    """The folder of prepared slices, where one was given."""
    patients: dict[str, str] = field(default_factory=dict)
    """Case → the patient that it shows."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Case → checksum of its files and of how they are prepared."""
    processes: int = 1
    """How many train together."""

    @property
    def held_out(self) -> str:
        """Tells whether networks were trained without the same patients; no patient's name goes into the weights."""
        return digest("\n".join(sorted(self.test_cases)).encode())


def read_run(folder: Path) -> TrainReport:
    """The report of a training that can be resumed, without its plans, networks and scores.

    Raises InputError where there is none.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        stored = without_former(run["config"])
        fold = stored["fold"] and tuple(stored["fold"])
        plain = {
            "network": NetworkConfig(**without_former(stored["network"])),
            "regions": tuple(stored["regions"]),
            "fold": fold,
        }
        plain["allow_missing"] = tuple(stored.get("allow_missing", ()))
        training, validation, test = (
            [str(case) for case in run[f"{part}_cases"]] for part in ("training", "validation", "test")
        )
        config = TrainConfig(**stored | plain)
        report = TrainReport(config, dict(run["versions"]), str(run["device"]), training, validation, test)
        report.notes = [str(note) for note in run["notes"]]
        # Runs of earlier versions have not recorded these.
        report.data, report.cache = str(run.get("data", "")), str(run.get("cache", ""))
        report.processes = int(run.get("processes", 1))
        report.patients, report.checksums = dict(run.get("patients", {})), dict(run.get("checksums", {}))
        return report
    except FileNotFoundError as error:
        advice = "Check -o, or leave out --resume to start anew."
        raise InputError(path, "does not exist", "the run.json of a training that took a step", advice) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"cannot be read ({type(error).__name__}: {error})"
        raise InputError(path, found, "the run.json of a training", "Leave out --resume to start anew.") from error


def changes_since(stored: TrainReport, now: TrainReport) -> list[str]:
    """A note on each change since the training began that does not stop it: data, processes, versions."""
    changed = [case for case, checksum in stored.checksums.items() if now.checksums.get(case, checksum) != checksum]
    notes = []
    if changed:
        named = ", ".join(changed[:MOST_LISTED]) + (" and others" if len(changed) > MOST_LISTED else "")
        notes.append(f"{named}: not the files that the training began with, or they are prepared in another way")
    if stored.processes != now.processes:
        notes.append(f"{stored.processes} processes began the training, {now.processes} go on with it")
    for key, old in stored.versions.items():
        if (new := now.versions.get(key, old)) != old:
            notes.append(f"{key} was {old or 'unknown'} when the training began and is {new or 'unknown'} now")
    return notes


def versions_here() -> dict[str, str]:
    """The versions of this program, torch and Python, and the commit where one is known."""
    return versions() | {"revision": revision()}


def revision() -> str:
    """The commit of this project's checkout that the package runs from; empty where it is installed or copied."""
    checkout, this = Path(__file__).resolve().parents[2], Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An environment may lie inside the repository of somebody's work, which is not what ran.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return ""
        git("ls-files", "--error-unmatch", str(this))
        return git("rev-parse", "HEAD")
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def metrics_csv(report: TrainReport) -> str:
    """A row per epoch of each network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ("network", "number", "steps", "seconds", "skipped_steps", "fallback_steps", "slices_per_second", "loss")
    writer.writerow((*counts, "validation_dice"))
    for network in report.networks.values():
        for epoch in network.epochs:
            writer.writerow((*(getattr(epoch, key) for key in counts), epoch.mean_dice if epoch.region_dice else ""))
    return text.getvalue()

"""The folder of a training: what is written while it runs, so that a person can look and a later run can go on.

| file | what |
|---|---|
| `run.json` | recipe, versions, split, plans, and all that happened |
| `metrics.csv` | one row per epoch |
| `curves.png` | loss and validation Dice |
| `examples/` | predictions on validation slices, of the first and every tenth epoch |
| `checkpoints/` | per network `last` (to go on from) and `best` (weights, fp32) |
| `events/` | the same numbers for TensorBoard, where that is asked for |
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lowmem_brats.checkpoint import load_checkpoint, save_checkpoint
from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.figures import Panel, draw_curves, draw_examples
from lowmem_brats.files import replace_when_complete
from lowmem_brats.fit import Epoch, NetworkTraining
from lowmem_brats.labels import Region
from lowmem_brats.memory.planner import TrainPlan
from lowmem_brats.slice_cache import digest
from lowmem_brats.validate import Validation
from lowmem_brats.weights import INDEX, read_header, write_index

EXAMPLES_EVERY = 10  # epochs
MAY_CHANGE = ("regions", "device", "precision", "vram", "epochs", "max_seconds", "patience", "strict")
"""What a resumed training may do otherwise; all else would make it another training."""


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

    @property
    def held_out(self) -> str:
        """Tells whether networks were trained without the same patients; no patient's name goes into the weights."""
        return digest("\n".join(sorted(self.test_cases)).encode())


class RunFolder:
    """Writes and reads one training's folder; every file whole or not at all."""

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        self.path = path
        self._events = _open_events(path / "events") if tensorboard else None
        for folder in ("checkpoints", "examples"):
            (path / folder).mkdir(parents=True, exist_ok=True)

    def forget(self) -> None:
        """Remove the checkpoints of an older training, and nothing else."""
        for name in ("wt", "tc", "et", "wt-tc-et"):
            for kind in ("", "-last", "-best"):
                (self.path / "checkpoints" / f"{name}{kind}.safetensors").unlink(missing_ok=True)

    def install(self, trained: Mapping[Region, Path], report: TrainReport) -> list[str]:
        """Move weights here and index them, with those of regions trained before without the same patients.

        Returns the regions that are missing for a set: then there is no index either.
        """
        for path in set(trained.values()):
            os.replace(path, self.path / path.name)
        paths = {r: self.path / trained.get(r, Path(f"{r.value}.safetensors")).name for r in Region}
        missing = [r.name for r, path in paths.items() if r not in trained and not _fits(path, report)]
        if missing:
            (self.path / INDEX).unlink(missing_ok=True)
        else:
            write_index(self.path, self.path.resolve().name, paths)
        return missing

    def write_report(self, report: TrainReport) -> None:
        """Write run.json, metrics.csv and curves.png."""
        with replace_when_complete(self.path / "run.json") as partial:
            partial.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        if any(network.epochs for network in report.networks.values()):
            with replace_when_complete(self.path / "metrics.csv") as partial:
                partial.write_text(_metrics(report), encoding="utf-8", newline="")
            self._draw("curves.png", draw_curves(_panels(report), f"{self.path.resolve().name}: training"))

    def add_epoch(self, epoch: Epoch, validation: Validation) -> None:
        """Draw the first and every tenth epoch's examples and pass the numbers to TensorBoard."""
        if validation.examples and (epoch.number == 1 or epoch.number % EXAMPLES_EVERY == 0):
            name = f"{epoch.network.replace(' ', '-')}-epoch-{epoch.number:03d}.png"
            title = f"{epoch.network.upper()}, epoch {epoch.number}, mean validation Dice {epoch.mean_dice:.3f}"
            self._draw(f"examples/{name}", draw_examples(validation.examples, title))
        if self._events:
            self._events.add_scalar(f"loss/{epoch.network}", epoch.loss, epoch.steps)
            for region, mean in epoch.region_dice.items():
                self._events.add_scalar(f"validation Dice/{region}", mean, epoch.steps)
            self._events.flush()

    def holds(self, network: str) -> bool:
        """Whether there is a checkpoint to go on from, of a network named by its regions."""
        return self._checkpoint(network, "last").exists()

    def save(self, training: NetworkTraining) -> None:
        """Write a network's checkpoints: the best weights where the last epoch gave them, and all to go on from."""
        if training.epochs and training.best is training.epochs[-1]:
            save_checkpoint(
                self._checkpoint(training.name, "best"), training.best_state, {"epoch": training.best.number}
            )
        save_checkpoint(self._checkpoint(training.name, "last"), *training.checkpoint())

    def restore(self, training: NetworkTraining) -> bool:
        """Bring a network's training to where its checkpoint was made; False where there is none."""
        if not self.holds(training.name):
            return False
        tensors, state = load_checkpoint(self._checkpoint(training.name, "last"))
        best = load_checkpoint(self._checkpoint(training.name, "best"))[0] if state["epochs"] else {}
        training.restore(tensors, state, best)
        return True

    def _checkpoint(self, network: str, which: str) -> Path:
        return self.path / "checkpoints" / f"{network.replace(' ', '-')}-{which}.safetensors"

    def _draw(self, name: str, picture: Image.Image) -> None:
        with replace_when_complete(self.path / name) as partial:
            picture.save(partial, format="PNG")


def read_run(folder: Path) -> tuple[TrainConfig, list[list[str]]]:
    """Recipe and split (training, validation and test case ids) of a training that can be resumed.

    Raises InputError where there is none.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        stored = run["config"]
        fold = stored["fold"] and tuple(stored["fold"])
        plain = {"network": NetworkConfig(**stored["network"]), "regions": tuple(stored["regions"]), "fold": fold}
        plain["allow_missing"] = tuple(stored.get("allow_missing", ()))  # none in runs of older versions
        split = [[str(case) for case in run[f"{part}_cases"]] for part in ("training", "validation", "test")]
        return TrainConfig(**stored | plain), split
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"cannot be read ({type(error).__name__}: {error})"
        raise InputError(path, found, "the run.json of a training", "Leave out --resume to start anew.") from error


def check_resumable(config: TrainConfig, stored: TrainConfig, folder: Path) -> None:
    """Refuse to go on with another recipe than the stored one. Raises InputError."""
    differ = [key for key, value in vars(stored).items() if key not in MAY_CHANGE and getattr(config, key) != value]
    if differ:
        found = "; ".join(f"{key} {getattr(config, key)!r}" for key in differ)
        expected = "; ".join(f"{key} {getattr(stored, key)!r}" for key in differ)
        raise InputError(f"resuming {folder}", found, f"as it began: {expected}", "Leave these options out.")


def _fits(path: Path, report: TrainReport) -> bool:
    """Whether weights that lie there already may be of one set with the report's."""
    try:
        file = read_header(path)
    except WeightsError:
        return False
    return file.network == report.config.network and file.training.get("held_out") == report.held_out


def revision() -> str:
    """The commit of the checkout that this package runs from; empty for an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _metrics(report: TrainReport) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ("network", "number", "steps", "seconds", "skipped_steps", "fallback_steps", "slices_per_second", "loss")
    writer.writerow((*counts, "validation_dice"))
    for network in report.networks.values():
        for epoch in network.epochs:
            writer.writerow((*(getattr(epoch, key) for key in counts), epoch.mean_dice if epoch.region_dice else ""))
    return text.getvalue()


def _panels(report: TrainReport) -> list[Panel]:
    """Losses above, validation Dice below, a column per network."""
    losses, scores = [], []
    for name, network in report.networks.items():
        marks = [(float(step), why.split(":")[0].removeprefix("back to ")) for step, why in network.switches]
        losses.append(Panel(name.upper(), {"loss": network.curve}, marks, x_label="steps", y_range=None))
        lines = {"mean": [(float(epoch.steps), epoch.mean_dice) for epoch in network.epochs if epoch.region_dice]}
        for epoch in network.epochs if " " in name else ():
            for region, mean in epoch.region_dice.items():
                lines.setdefault(region.upper(), []).append((float(epoch.steps), mean))
        scores.append(Panel(f"{name.upper()} validation Dice", lines, (), x_label="steps", y_range=(0.0, 1.0)))
    return [*losses, *scores]


def _open_events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        advice = "pip install tensorboard, or leave the option out."
        raise InputError("--tensorboard", "tensorboard is not installed", "the package", advice) from error
    return SummaryWriter(str(folder))

"""The folder of a training: what is written while it runs, so that a person can look and a later run can go on.

| file | what |
|---|---|
| `run.json` | recipe, versions, split, plans, and all that happened |
| `metrics.csv` | one row per epoch |
| `curves.png` | loss and validation Dice |
| `examples/` | predictions on validation slices, of the first and every tenth epoch |
| `checkpoints/` | per network `last` (to go on from) and `best` (weights, fp32) |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import date
from itertools import count
from pathlib import Path

from PIL import Image

from lowmem_brats.data.labels import Region
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.pictures.curves import draw_curves, draw_examples
from lowmem_brats.train.loop import Epoch, NetworkTraining
from lowmem_brats.train.report import TrainReport, metrics_csv, panels_of
from lowmem_brats.train.validate import Validation
from lowmem_brats.weights.checkpoint import load_checkpoint, save_checkpoint
from lowmem_brats.weights.store import INDEX, read_header, write_index

RUNS = Path("runs")
"""Where run folders go that nobody named."""
EXAMPLES_EVERY = 10  # epochs


class RunFolder:
    """Writes and reads one training's folder; every file whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in ("checkpoints", "examples"):
            (path / folder).mkdir(parents=True, exist_ok=True)

    def forget(self) -> None:
        """Remove the checkpoints of an older training, and nothing else."""
        for name in ("wt", "tc", "et", "wt-tc-et"):
            for kind in ("", "-last", "-best"):
                (self.path / "checkpoints" / f"{name}{kind}.safetensors").unlink(missing_ok=True)

    def missing(self, trained: Collection[Region], report: TrainReport) -> list[str]:
        """The regions that a set will lack: neither trained now nor before, without the same patients."""
        absent = [region for region in Region if region not in trained]
        return [r.name for r in absent if not _fits(self.path / f"{r.value}.safetensors", r, report)]

    def install(self, trained: Mapping[Region, Path], report: TrainReport) -> list[str]:
        """Move weights here and index them, with those of regions trained before without the same patients.

        Returns the regions that are missing for a set: then there is no index either.
        """
        for path in set(trained.values()):
            os.replace(path, self.path / path.name)
        missing = self.missing(trained, report)
        if missing:
            (self.path / INDEX).unlink(missing_ok=True)
        else:
            paths = {r: self.path / trained.get(r, Path(f"{r.value}.safetensors")).name for r in Region}
            write_index(self.path, self.path.resolve().name, paths)
        return missing

    def write_report(self, report: TrainReport) -> None:
        """Write run.json."""
        with replace_when_complete(self.path / "run.json") as partial:
            partial.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")

    def draw_report(self, report: TrainReport) -> None:
        """Write metrics.csv and curves.png, from the first epoch on."""
        if any(network.epochs for network in report.networks.values()):
            with replace_when_complete(self.path / "metrics.csv") as partial:
                partial.write_text(metrics_csv(report), encoding="utf-8", newline="")
            self._draw("curves.png", draw_curves(panels_of(report), f"{self.path.resolve().name}: training"))

    def add_epoch(self, epoch: Epoch, validation: Validation) -> None:
        """Draw the first and every tenth epoch's examples."""
        if validation.examples and (epoch.number == 1 or epoch.number % EXAMPLES_EVERY == 0):
            name = f"{epoch.network.replace(' ', '-')}-epoch-{epoch.number:03d}.png"
            title = f"{epoch.network.upper()}, epoch {epoch.number}, mean validation Dice {epoch.mean_dice:.3f}"
            self._draw(f"examples/{name}", draw_examples(validation.examples, title))

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


def fresh_runs(runs: Path = RUNS) -> Iterator[Path]:
    """Folders in `runs` for a training that begins today, DATE-1, DATE-2 and so on, without those that hold one."""
    folders = (runs / f"{date.today()}-{number}" for number in count(1))
    return (folder for folder in folders if not (folder / "run.json").exists())


def newest_run(runs: Path = RUNS) -> Path:
    """The training in `runs` that was last at work. Raises InputError where there is none."""
    try:
        found = [(path.stat().st_mtime_ns, _in_order(path.parent.name), path) for path in runs.glob("*/run.json")]
    except OSError as error:
        raise InputError(runs, f"cannot be read ({error.strerror})", "run folders", "Name one with -o.") from error
    if not found:
        raise InputError(runs.resolve(), "no training to go on with", "run folders", "Name one with -o.")
    return max(found)[2].parent


def _in_order(name: str) -> list[str]:
    """Sorts numbers in names by their value."""
    return [part.zfill(9) for part in re.split(r"(\d+)", name)]


def _fits(path: Path, region: Region, report: TrainReport) -> bool:
    """Whether weights of a region that lie there already may be of one set with the report's."""
    try:
        file = read_header(path)
    except WeightsError:
        return False
    alike = file.network == report.config.network and file.training.get("held_out") == report.held_out
    return alike and file.regions == (region,)

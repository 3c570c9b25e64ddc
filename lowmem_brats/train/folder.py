"""The folder of a training: what is written while it runs, so that a person can look and a later run can go on.

| file | what |
|---|---|
| `run.json` | recipe, versions, split, plans, and all that happened |
| `metrics.csv` | one row per epoch |
| `curves.png` | loss and validation Dice, where the listener draws them |
| `examples/` | predictions on validation slices, of the first and every tenth epoch, likewise |
| `checkpoints/` | per network `last` (to go on from) and `best` (weights, fp32) |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import date
from itertools import count
from pathlib import Path

from lowmem_brats.data.case_list import is_plain
from lowmem_brats.data.labels import Region, groups_of, names_of, stem_of
from lowmem_brats.engine import parallel
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.train.lock import InUseError, hold
from lowmem_brats.train.report import TrainReport, metrics_csv
from lowmem_brats.train.state import Epoch, History, TrainingState
from lowmem_brats.weights.checkpoint import load_checkpoint, load_state, of_another_version, save_checkpoint
from lowmem_brats.weights.header import read_header
from lowmem_brats.weights.index import INDEX, write_index

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
        for group in [*groups_of(tuple(Region), 1), *groups_of(tuple(Region), len(Region))]:
            for path in (self.weights_of(names_of(group)), *self._checkpoints(names_of(group))):
                path.unlink(missing_ok=True)

    def missing(self, trained: Collection[Region], report: TrainReport) -> list[str]:
        """The regions that a set will lack: neither trained now nor before, without the same patients."""
        absent = [region for region in Region if region not in trained]
        return [r.name for r in absent if not _fits(self._installed(r), r, report)]

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
            paths = {r: self.path / trained.get(r, self._installed(r)).name for r in Region}
            write_index(self.path, self.path.resolve().name, paths)
        return missing

    def write_report(self, report: TrainReport) -> None:
        """Write run.json."""
        with replace_when_complete(self.path / "run.json") as partial:
            partial.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")

    def write_metrics(self, report: TrainReport) -> None:
        """Write metrics.csv."""
        with replace_when_complete(self.path / "metrics.csv") as partial:
            partial.write_text(metrics_csv(report), encoding="utf-8", newline="")

    @property
    def curves(self) -> Path:
        """The picture of loss and validation Dice."""
        return self.path / "curves.png"

    def examples(self, epoch: Epoch) -> Path | None:
        """The picture of an epoch's predictions: of the first epoch and every tenth."""
        name = f"{stem_of(epoch.network)}-epoch-{epoch.number:03d}.png"
        return self.path / "examples" / name if epoch.number == 1 or epoch.number % EXAMPLES_EVERY == 0 else None

    def weights_of(self, network: str) -> Path:
        """Where the weights of a network, named by its regions, wait for the others of their set."""
        return self.path / "checkpoints" / f"{stem_of(network)}.safetensors"

    def holds(self, network: str) -> bool:
        """Whether there is a checkpoint to go on from, of a network named by its regions."""
        last, _ = self._checkpoints(network)
        return last.exists()

    def check(self, network: str) -> None:
        """Raise InputError where the checkpoint to go on from is none of this version."""
        last, _ = self._checkpoints(network)
        with _as_of_another_version(last):
            History.of(load_state(last)["history"])

    def save(self, network: str, state: TrainingState) -> None:
        """Write a network's checkpoints: the best weights where the last epoch gave them, and all to go on from."""
        last, best = self._checkpoints(network)
        epochs = state.history.epochs
        if epochs and state.history.best is epochs[-1]:
            save_checkpoint(best, state.best_weights, {"epoch": epochs[-1].number})
        save_checkpoint(last, *state.save())

    def restore(self, network: str, state: TrainingState) -> bool:
        """Bring a network's training to where its checkpoint was made; False where there is none."""
        if not self.holds(network):
            return False
        last, best = self._checkpoints(network)
        tensors, values = load_checkpoint(last)
        with _as_of_another_version(last):
            state.restore(tensors, values)
        if state.history.epochs:
            state.best_weights, _ = load_checkpoint(best)
        return True

    def _checkpoints(self, network: str) -> tuple[Path, Path]:
        """The checkpoint to go on from, and that of the best weights."""
        path = self.weights_of(network)
        return path.with_stem(f"{path.stem}-last"), path.with_stem(f"{path.stem}-best")

    def _installed(self, region: Region) -> Path:
        """Where the weights of a region's own network belong in the set."""
        return self.path / self.weights_of(names_of([region])).name


@contextmanager
def hold_run_folder(out: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """The run folder, where no other training may write as long as the block runs, and notes; for all processes.

    `out`: None for a fresh one. The first process locks it. Where it cannot, all raise its InputError.
    """
    with ExitStack() as stack:
        found: tuple[Path, list[str]] | None = None
        trouble: dict[str, str] = {}
        if parallel.rank() == 0:
            try:
                found = _hold_first(out, stack)
            except InputError as error:
                trouble = vars(error)
        found, trouble = parallel.first((found, trouble))
        if found is None:
            raise InputError(**trouble)
        yield found


def _hold_first(out: Path | None, stack: ExitStack) -> tuple[Path, list[str]]:
    """Hold `out`, or the first fresh folder that is free, until the stack is closed; as `hold_run_folder`."""
    if not is_plain(place := str((out or Path()).resolve())):
        raise InputError(repr(place), "a name that weights cannot be read from", "UTF-8 on one line", "Choose another.")
    for folder in [out] if out else fresh_runs():
        try:
            return folder, stack.enter_context(hold(folder))
        except InUseError:
            if out:
                raise
    raise InputError("-o", "no free name for a run folder", "one", "Name it.")


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


@contextmanager
def _as_of_another_version(path: Path) -> Iterator[None]:
    """Turn what a checkpoint of other contents raises into an InputError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise of_another_version(path) from error

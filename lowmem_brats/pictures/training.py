"""The pictures of a training under way, for its listener to draw: `TrainListener(draw_curves=…, draw_examples=…)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lowmem_brats.data.labels import regions_of
from lowmem_brats.files import replace_when_complete
from lowmem_brats.pictures import curves
from lowmem_brats.pictures.curves import Panel
from lowmem_brats.train.report import TrainReport
from lowmem_brats.train.state import Epoch
from lowmem_brats.train.validate import Example


def draw_curves(path: Path, report: TrainReport) -> None:
    """Draw loss and validation Dice of all networks; the title is the name of the folder of `path`."""
    _write(path, curves.draw_curves(panels_of(report), f"{path.parent.resolve().name}: training"))


def draw_examples(path: Path, epoch: Epoch, examples: Sequence[Example]) -> None:
    """Draw predictions on validation slices after an epoch."""
    title = f"{epoch.network.upper()}, epoch {epoch.number}, mean validation Dice {epoch.mean_dice:.3f}"
    _write(path, curves.draw_examples(examples, title))


def panels_of(report: TrainReport) -> list[Panel]:
    """Losses above, validation Dice below, a column per network."""
    losses, scores = [], []
    for name, network in report.networks.items():
        marks = [(float(step), why.split(":")[0].removeprefix("back to ")) for step, why in network.switches]
        losses.append(Panel(name.upper(), {"loss": network.curve}, marks, x_label="steps", y_range=None))
        lines = {"mean": [(float(epoch.steps), epoch.mean_dice) for epoch in network.epochs if epoch.region_dice]}
        for epoch in network.epochs if len(regions_of(name)) > 1 else ():
            for region, mean in epoch.region_dice.items():
                lines.setdefault(region.upper(), []).append((float(epoch.steps), mean))
        scores.append(Panel(f"{name.upper()} validation Dice", lines, (), x_label="steps", y_range=(0.0, 1.0)))
    return [*losses, *scores]


def _write(path: Path, picture: Image.Image) -> None:
    with replace_when_complete(path) as partial:
        picture.save(partial, format="PNG")

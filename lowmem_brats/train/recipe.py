"""What can be asked of a training: on this machine, and when it goes on with what an earlier one has begun."""

from __future__ import annotations

from pathlib import Path

import torch

from lowmem_brats.config import TrainConfig
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.errors import InputError
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import choose_device, open_budget
from lowmem_brats.networks import check_rates, stride_of

MAY_CHANGE = ("regions", "device", "precision", "vram", "epochs", "max_seconds", "patience", "strict", "allow_missing")
"""Options that may change when a training is resumed; any other would make it another training."""


def check_recipe(config: TrainConfig) -> tuple[torch.device, MemoryBudget, list[str]]:
    """The device of this process, its budget, and notes on the choice.

    Raises InputError for a loss, network or device that does not exist, for what several processes cannot share, and
    for what the network cannot drop.
    """
    if config.batch < parallel.size():
        raise InputError("--batch", str(config.batch), f"{parallel.size()} or more, one per process", "Raise it.")
    if config.network.norm == "batch" and parallel.size() > 1:
        raise InputError("batch norm", "several processes", "one, whose statistics are the batch's", "Use 'group'.")
    find_loss(config.loss)
    check_rates(config.network, config.stochastic_depth, config.spatial_dropout)
    if config.window % (stride := stride_of(config.network)):
        expected = f"a multiple of {stride} for {config.network.name}, or 0"
        raise InputError("--window", str(config.window), expected, "Choose one.")
    device, notes = choose_device(parallel.local_device(config.device))
    return device, open_budget(config.vram, device), notes


def check_resumable(config: TrainConfig, stored: TrainConfig, folder: Path) -> None:
    """Refuse to go on with another recipe than the stored one. Raises InputError."""
    now, began = _recipe(config), _recipe(stored)
    differ = [key for key in began if now[key] != began[key]]
    if differ:
        found, expected = ("; ".join(f"{key} {recipe[key]}" for key in differ) for recipe in (now, began))
        raise InputError(f"resuming {folder}", found, f"as it began: {expected}", "Leave these options out.")


def _recipe(config: TrainConfig) -> dict[str, str]:
    """What must stay as it began, in words: setting → value."""
    network = {"network" if key == "name" else key: value for key, value in vars(config.network).items()}
    settings = {key: value for key, value in vars(config).items() if key not in {"network", *MAY_CHANGE}}
    return {
        key.replace("_", " "): " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for key, value in (network | settings).items()
    }

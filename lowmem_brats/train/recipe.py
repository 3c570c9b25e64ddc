"""What can be asked of a training: on this machine, and when it goes on with what an earlier one has begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lowmem_brats.config import TrainConfig
from lowmem_brats.config.names import REGIONS
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.errors import InputError
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import choose_device, open_budget
from lowmem_brats.networks import check_rates, patches_of, stride_of

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
    _check_patches(config)
    check_rates(config.network, config.stochastic_depth, config.spatial_dropout)
    if config.window % (stride := stride_of(config.network)):
        expected = f"a multiple of {stride} for {config.network.name}, or 0"
        raise InputError("--window", str(config.window), expected, "Choose one.")
    device, notes = choose_device(parallel.local_device(config.device))
    return device, open_budget(config.vram, device), notes


def _check_patches(config: TrainConfig) -> None:
    """Raise InputError for a network of patches that is not trained here, and for what such a network cannot heed."""
    patches = patches_of(config.network)
    if patches is None:
        return
    name, network = config.network.name, config.network
    if not patches.crops_ZHW:
        raise InputError("--network", f"{name}, which is imported", "a network that can be trained here", "Choose one.")
    slices_alone = {
        "--mode": (network.outputs != len(REGIONS), "three-networks", "one-network"),
        "--views": (network.views != 1, str(network.views), "1: a crop shows all sides"),
        "--context": (network.context != 0, str(network.context), "0: a crop holds the neighbours"),
        "--window": (config.window != 0, str(config.window), "0: --vram decides on the crop"),
        "--finetune": (config.finetune is not None, f"{config.finetune}", "fresh weights"),
    }
    for option, (given, found, expected) in slices_alone.items():
        if given:
            raise InputError(option, f"{found} for {name}, which sees patches", expected, "Leave the option out.")


def with_crop_of(stored: TrainConfig, config: TrainConfig) -> TrainConfig:
    """A recipe with the crop that a training, which is gone on with, has chosen at its start."""
    if config.network.patch:
        return config
    chosen = stored.network
    return replace(config, network=replace(config.network, patch=chosen.patch, cropped=chosen.cropped))


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

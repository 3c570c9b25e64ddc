"""The weights file of a bank's decision network, and what a bank is.

As of any network: safetensors with a header that describes it, checked and never unpickled. The header names the
members that the network was trained to choose among by their checksums, so that it cannot be put beside others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowmem_brats.config import MODALITIES, PREPROCESSING
from lowmem_brats.errors import WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.networks.shufflenet import DecisionNetwork
from lowmem_brats.weights.file import fill

FORMAT = "lowmem-brats-decision/1"
MOST_MEMBERS = 16
LARGEST_FRAME = 4096


@dataclass(frozen=True)
class DecisionFile:
    """The weights of a decision network: their file and what its header says."""

    path: Path
    members: Mapping[str, str]
    """Name → sha256 of the weights of each member that it chooses among, the smallest first."""
    frame_HW: tuple[int, int]
    """Pixels of the slices that it was trained on; smaller ones are padded to this size."""
    training: Mapping[str, Any]
    """How it was trained."""
    sha256: str = field(default="", compare=False)
    """Of the file; empty until it is opened through an index, which names it."""


@dataclass(frozen=True)
class Bank:
    """Several networks of all three regions, one of which segments each slice, and what chooses it."""

    gmac_per_megapixel: Mapping[str, float]
    """Name of each member → 10⁹ multiply-adds per megapixel, the smallest first."""
    decision: DecisionFile


def read_decision(path: Path) -> DecisionFile:
    """Read the header of a decision network's file. Raises WeightsError for a file that is none of this version."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
        found = [header.get(key) for key in ("format", "preprocessing", "modalities")]
        if found != [FORMAT, PREPROCESSING, " ".join(MODALITIES)]:
            raise ValueError(f"{' '.join(map(str, found))}")
        members, training = json.loads(header["members"]), json.loads(header["training"])
        height, width = json.loads(header["frame_HW"])
        texts = [text for pair in members.items() for text in pair]
        sound = 0 < len(members) <= MOST_MEMBERS and all(isinstance(text, str) for text in texts)
        sides = [side for side in (height, width) if type(side) is int and 0 < side <= LARGEST_FRAME]
        if not (sound and len(sides) == 2 and isinstance(training, dict)):
            raise ValueError("members, frame or training")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        found_text = f"not understood ({str(error)[:200]})"
        advice = "Copy the file again, or train the bank again."
        raise WeightsError(path, found_text, f"a decision network, {FORMAT}", advice) from error
    return DecisionFile(path, members, (height, width), training)


def load_decision(file: DecisionFile) -> DecisionNetwork:
    """Build the decision network on the CPU, in evaluation mode. Raises WeightsError where its tensors do not fit."""
    with torch.device("meta"):
        network = DecisionNetwork(len(MODALITIES), 1 + len(file.members))
    fill(network, file.path, f"a decision network for {len(file.members)} members")
    return network.eval()


def save_decision(network: DecisionNetwork, file: DecisionFile) -> None:
    """Write a decision network with its header to `file.path`, whole or not at all."""
    header = {
        "format": FORMAT,
        "preprocessing": PREPROCESSING,
        "modalities": " ".join(MODALITIES),
        "members": json.dumps(dict(file.members)),
        "frame_HW": json.dumps(file.frame_HW),
        "training": json.dumps(dict(file.training)),
    }
    with replace_when_complete(file.path) as partial:
        partial.write_bytes(save({key: value.contiguous() for key, value in network.state_dict().items()}, header))

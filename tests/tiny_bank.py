"""A bank of two tiny members of different kinds, with a decision network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tiny_weights import SMALL_SHAPE, write_tiny_set, write_tiny_single

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.labels import Region
from lowmem_brats.data.phantom import make_phantom
from lowmem_brats.data.slices import prepare, views_of
from lowmem_brats.networks import build_network
from lowmem_brats.networks.shufflenet import DecisionNetwork
from lowmem_brats.segment.bank import padded
from lowmem_brats.weights.decision import DecisionFile, save_decision
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.index import sha256_of, write_bank_index
from lowmem_brats.weights.store import open_set

COSTS = {"small": 1.0, "large": 4.0}
FRAME_HW = (40, 48)


def decision_of(choice: int, choices: int = 3) -> DecisionNetwork:
    """A decision network that always makes the same choice."""
    torch.manual_seed(0)
    network = DecisionNetwork(len(MODALITIES), choices).eval()
    with torch.no_grad():
        network.scores.weight.zero_()
        network.scores.weight[choice] = 1  # the features are not below 0
        network.last[0][1].bias.fill_(1)  # type: ignore[index, union-attr]
    return network


@cache
def undecided() -> DecisionNetwork:
    """A decision network that makes every choice for some slices of the small phantom, seen from all sides."""
    torch.manual_seed(0)
    network = DecisionNetwork(len(MODALITIES), 3).train()
    stack = prepare(make_phantom(0, SMALL_SHAPE).images_CXYZ.astype(np.float32), 4)
    seen_VNCHW = [torch.from_numpy(padded(seen, FRAME_HW)).float() for seen in views_of(stack.slices_ZCHW, 3)]
    with torch.no_grad():
        network(torch.cat([seen_NCHW[..., : FRAME_HW[0], : FRAME_HW[1]] for seen_NCHW in seen_VNCHW]))
        network.eval()
        features = torch.cat([network.last(network.stages(network.stem(seen_NCHW))) for seen_NCHW in seen_VNCHW])
        mean = features.mean(dim=0)
        _, _, directions = torch.linalg.svd(features - mean, full_matrices=False)
        first, second = (d - mean * (d @ mean) / (mean @ mean) for d in directions[:2])
        network.scores.weight.copy_(torch.stack([second, first, -first]))  # a slice like the mean scores about 0 in all
    return network


def write_bank(folder: Path, decision: DecisionNetwork, views: int = 3, members: Sequence[str] = tuple(COSTS)) -> Path:
    """Write the bank; `small` finds what the tiny set of one network finds, `large` less of it. Returns `folder`."""
    three = write_tiny_set(folder / "three")
    single = open_set(str(write_tiny_single(folder / "single", three))).files[0]
    rows = {}
    for name in members:
        config = replace(single.network, views=views, width=single.network.width * (2 if name == "large" else 1))
        torch.manual_seed(1)
        network = build_network(config)
        if name == "small":
            network.load_state_dict(load_network(single).state_dict())
            network.take_masks_at([-0.3, -0.3, -0.3])  # so that something is left where views disagree
        else:
            network.take_masks_at([0.5, 0.6, 0.7])
            network.head.bias.data += 3  # type: ignore[union-attr, operator]
        path = folder / "members" / name / "wt-tc-et.safetensors"
        path.parent.mkdir(parents=True)
        save_network(network, replace(single, path=path, network=config, regions=tuple(Region)))
        rows[name] = (path, COSTS[name])
    checksums = {name: sha256_of(path) for name, (path, _) in rows.items()}
    save_decision(decision, DecisionFile(folder / "decision.safetensors", checksums, FRAME_HW, {}))
    write_bank_index(folder, "bank", rows, folder / "decision.safetensors")
    return folder

"""Sets of tiny untrained networks, biased so that each finds something in some slices and nothing in others.

The three networks differ in their heads only: those heads on one trunk are the set of one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lowmem_brats.config import MODALITIES, NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.data.phantom import make_phantom
from lowmem_brats.data.slices import prepare
from lowmem_brats.networks import adapted, build_network
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import open_set

TINY = NetworkConfig(width=8, depth=2)
SMALL_SHAPE = (48, 56, 40)


def write_tiny_set(folder: Path) -> Path:
    """Write the set of three networks and return its folder."""
    folder.mkdir(parents=True)
    stack = prepare(make_phantom(0, SMALL_SHAPE).images_CXYZ.astype(np.float32), 4)
    slices_NCHW = torch.from_numpy(stack.slices_ZCHW).float()
    brain_NHW = (slices_NCHW != 0).any(dim=1)
    paths = {}
    for region, share in zip(Region, (0.002, 0.0015, 0.0008), strict=True):
        torch.manual_seed(4)
        network = build_network(TINY).eval()
        weight, bias = network.head.parameters()  # type: ignore[union-attr]
        with torch.no_grad():
            if region is not Region.WT:
                # Alike, so that the masks overlap, but not the same: TC and ET reach outside their parents.
                weight += 0.1 * torch.randn_like(weight)
            bias -= network(slices_NCHW)[:, 0][brain_NHW].quantile(1 - share)
        paths[region] = folder / f"{region.value}.safetensors"
        save_network(network, WeightsFile(paths[region], (region,), TINY, {}, {}))
    write_index(folder, "tiny", paths)
    return folder


def write_tiny_single(folder: Path, three: Path) -> Path:
    """Write the set of one network that computes what the set of three in `three` computes; returns `folder`."""
    folder.mkdir(parents=True)
    states = [load_network(file).state_dict() for file in open_set(str(three)).files]
    for key in states[0]:
        alike = all(torch.equal(state[key], states[0][key]) for state in states)
        assert alike != key.startswith("head"), f"{key}: one trunk, three heads"
    heads = {key: torch.cat([state[key] for state in states]) for key in ("head.weight", "head.bias")}
    config = replace(TINY, outputs=3)
    network = build_network(config)
    network.load_state_dict(states[0] | heads)
    path = folder / "all.safetensors"
    save_network(network, WeightsFile(path, tuple(Region), config, {}, {}))
    write_index(folder, "single", dict.fromkeys(Region, path))
    return folder


def write_changed(folder: Path, three: str, change: Callable[[Region, torch.nn.Module], None], views: int = 1) -> Path:
    """Write the set of three networks in `three` with each head as `change` leaves it; returns `folder`."""
    folder.mkdir(parents=True)
    paths = {}
    for region, file in zip(Region, open_set(three).files, strict=True):
        network, paths[region] = load_network(file), folder / file.path.name
        with torch.no_grad():
            change(region, network.head)  # type: ignore[arg-type]
        save_network(network, replace(file, path=paths[region], network=replace(file.network, views=views)))
    write_index(folder, folder.name, paths)
    return folder


def write_seeing_neighbours(folder: Path, single: str) -> Path:
    """Write the set of one network that heeds neighbours too, and where there are none computes what `single` does."""
    folder.mkdir(parents=True)
    file = open_set(single).files[0]
    config = replace(file.network, context=1)
    network = build_network(config)
    network.load_state_dict(adapted(load_network(file).state_dict(), config))
    torch.manual_seed(0)
    with torch.no_grad():
        next(network.parameters())[:, len(MODALITIES) :].normal_(std=0.3)
    path = folder / "all.safetensors"
    save_network(network, replace(file, path=path, network=config))
    write_index(folder, "seeing", dict.fromkeys(Region, path))
    return folder


def write_pointwise_set(folder: Path, views: int = 3) -> Path:
    """Write three U-Nets without norms, each a threshold of a sum of modalities, that find the tumour of a phantom.

    A voxel's logit depends on that voxel alone, so wherever a network looks it finds the same.
    """
    folder.mkdir(parents=True)
    config, paths = replace(TINY, norm="none", views=views), {}
    for region, (factors, least) in POINTWISE.items():
        network = build_network(config)
        state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
        state["down.0.0.weight"][0, :, 1, 1] = torch.tensor(factors)
        state["down.0.2.weight"][0, 0, 1, 1] = state["up.1.conv.2.weight"][0, 0, 1, 1] = 1
        state["up.1.conv.0.weight"][0, TINY.width, 1, 1] = 1  # the first channel that the skip connection brings
        state["head.weight"][0, 0], state["head.bias"][0] = 1, -least
        network.load_state_dict(state)
        paths[region] = folder / f"{region.value}.safetensors"
        save_network(network, WeightsFile(paths[region], (region,), config, {}, {}))
    write_index(folder, "pointwise", paths)
    return folder


POINTWISE = {
    Region.WT: ((0.0, 0.0, 0.0, 1.0), 1.0),
    Region.TC: ((0.0, 1.0, 1.0, -1.0), 0.25),
    Region.ET: ((0.0, 1.0, 0.0, 0.0), 0.75),
}
"""Region → factors of T1, T1ce, T2 and FLAIR, and the sum above which a voxel counts as the region."""

"""A weights file: safetensors, one per network, with a header that describes it.

Weights are untrusted input: they are checked, never unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lowmem_brats.config import MODALITIES, PREPROCESSING, NetworkConfig, without_former
from lowmem_brats.data.labels import Region, groups_of, names_of, regions_of
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.networks import SliceNetwork, build_network, mismatches, stride_of

FORMAT = "lowmem-brats/1"


@dataclass(frozen=True)
class WeightsFile:
    """The weights of one network: their file and what its header says."""

    path: Path
    regions: tuple[Region, ...]
    """The regions that the network segments, in the order of its outputs: one region, or WT, TC and ET."""
    network: NetworkConfig
    training: Mapping[str, Any]
    """How it was trained: data, steps, versions."""
    metrics: Mapping[str, Any]
    """The scores that it reached on its validation cases."""
    sha256: str = field(default="", compare=False)
    """Of the file; empty until it is opened through an index, which names it."""

    @property
    def name(self) -> str:
        """The names of its regions: `wt`, or `wt tc et`."""
        return names_of(self.regions)


def read_header(path: Path) -> WeightsFile:
    """Read the header of a weights file. Raises WeightsError listing everything that this version cannot use."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(path, f"not a safetensors file ({error})", "sound weights", "Copy it again.") from error
    expected = {"format": FORMAT, "preprocessing": PREPROCESSING, "modalities": " ".join(MODALITIES)}
    wrong = {key: (header.get(key), want) for key, want in expected.items() if header.get(key) != want}
    if wrong:
        found = ", ".join(f"{key} {found!r}" for key, (found, _) in wrong.items())
        wanted = ", ".join(f"{key} {want!r}" for key, (_, want) in wrong.items())
        raise WeightsError(path, found, wanted, "Use weights that were trained by this version.")
    try:
        network = _network(json.loads(header["network"]))
        stride_of(network)  # it can be built
        training, metrics = json.loads(header["training"]), json.loads(header["metrics"])
        if not (isinstance(training, dict) and isinstance(metrics, dict)):
            raise TypeError("training and metrics are no tables")
        regions = regions_of(header["region"])
        if len(regions) != network.outputs or [regions] != groups_of(regions, network.outputs):
            raise ValueError(f"region {header['region']!r} for {network.outputs} outputs")
        return WeightsFile(path, regions, network, training, metrics)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError, InputError) as error:
        found = f"header not understood ({str(error)[:200]})"
        raise WeightsError(path, found, FORMAT, "Train or copy the file again.") from error


def _network(stored: Any) -> NetworkConfig:
    """The settings of a header. Raises TypeError for a value of another kind than the setting has."""
    if not isinstance(stored, dict):
        raise TypeError("network is no table")
    settings = without_former(stored)
    for key, value in settings.items():
        if type(value) is not type(getattr(NetworkConfig, key, None)):
            raise TypeError(f"{key} {value!r}")
    return NetworkConfig(**settings)


def load_network(file: WeightsFile) -> SliceNetwork:
    """Build the network of a weights file on the CPU, fp32, in evaluation mode.

    Raises WeightsError listing every tensor that is missing, unexpected, of another shape or not finite.
    """
    with torch.device("meta"):  # no memory yet: the header is untrusted, and the file must hold as much as it says
        network = build_network(file.network)
    fill(network, file.path, f"the tensors of {file.network}")
    return network.eval()


def fill(network: nn.Module, path: Path, expected: str) -> None:
    """Give a network on torch's meta device the tensors of a file, on the CPU.

    Raises WeightsError listing every tensor that is missing, unexpected, of another shape or not finite.
    """
    wanted = network.state_dict()
    try:
        with safe_open(path, framework="pt") as stored:
            found = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (it is not a dict)
        problems = mismatches(found, wanted)
    except (SafetensorError, RuntimeError, TypeError, OSError) as error:  # a format that torch cannot read or check
        raise WeightsError(path, f"tensors not understood ({error})", "sound weights", "Copy it again.") from error
    if problems:
        raise WeightsError(path, "; ".join(problems), expected, "Use weights of this network.")
    network.load_state_dict({key: found[key].to(like.dtype) for key, like in wanted.items()}, assign=True)


def save_network(network: SliceNetwork, file: WeightsFile) -> None:
    """Write a network's weights in fp16 with their header to `file.path`, whole or not at all."""
    tensors = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    header = {
        "format": FORMAT,
        "preprocessing": PREPROCESSING,
        "modalities": " ".join(MODALITIES),
        "region": file.name,
        "network": json.dumps(asdict(file.network)),
        "training": json.dumps(dict(file.training)),
        "metrics": json.dumps(dict(file.metrics)),
    }
    with replace_when_complete(file.path) as partial:
        partial.write_bytes(save(tensors, header))  # save_file() reports a full disk as an error of its own

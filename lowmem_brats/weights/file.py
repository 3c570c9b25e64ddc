"""The tensors of a weights file: safetensors, one file per network, with the header of `header`.

Weights are untrusted input: they are checked, never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import WeightsError
from lowmem_brats.files import replace_when_complete
from lowmem_brats.networks import (
    AnyNetwork,
    Network,
    PatchNetwork,
    SliceNetwork,
    build_network,
    build_patch_network,
    mismatches,
)
from lowmem_brats.weights.header import WeightsFile, header_of


def load_network(file: WeightsFile) -> SliceNetwork:
    """Build the network of a weights file on the CPU, fp32, in evaluation mode.

    Raises WeightsError listing every tensor that is missing, unexpected, of another shape or not finite.
    """
    return _load(file, build_network)


def load_patch_network(file: WeightsFile) -> PatchNetwork:
    """As `load_network`, for a file whose network sees patches."""
    return _load(file, build_patch_network)


def _load(file: WeightsFile, build: Callable[[NetworkConfig], AnyNetwork]) -> AnyNetwork:
    with torch.device("meta"):  # no memory yet: the header is untrusted, and the file must hold as much as it says
        network = build(file.network)
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


def save_network(network: Network, file: WeightsFile) -> None:
    """Write a network's weights in fp16 with their header to `file.path`, whole or not at all."""
    save_tensors({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}, file)


def save_tensors(tensors: Mapping[str, Tensor], file: WeightsFile) -> None:
    """Write tensors as they are, as `save_network`."""
    with replace_when_complete(file.path) as partial:
        # save_file() reports a full disk as an error of its own
        partial.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, header_of(file)))

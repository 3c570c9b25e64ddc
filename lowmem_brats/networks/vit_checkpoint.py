"""Read the public weights of R50-ViT-B/16 into TransUNet's encoder: an .npz file, read by numpy alone.

Names and layouts are those of the checkpoints that Dosovitskiy et al. published (github.com/google-research/
vision_transformer, Apache-2.0). Letters of shapes: H W of a kernel, I and O channels in and out, C channels.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowmem_brats.errors import WeightsError
from lowmem_brats.networks.base import mismatches

Arrays = Mapping[str, npt.NDArray[np.float32]]
LEFT_OUT = ("head/", "pre_logits/", "cls")
"""What an encoder has no place for."""
FIRST, TABLE = "root.conv.weight", "embedding.table_1EHW"
_BLOCK = "MultiHeadDotProductAttention_1"
_LAYER = {
    "attention_norm": "LayerNorm_0",
    "ffn_norm": "LayerNorm_2",
    "query": f"{_BLOCK}/query",
    "key": f"{_BLOCK}/key",
    "value": f"{_BLOCK}/value",
    "out": f"{_BLOCK}/out",
    "fc1": "MlpBlock_3/Dense_0",
    "fc2": "MlpBlock_3/Dense_1",
}
_PLACES = {
    "root.conv": "conv_root",
    "root.gn": "gn_root",
    "embedding.patch_embeddings": "embedding",
    "widen.norm": "Transformer/encoder_norm",
}


def read_arrays(path: Path) -> Arrays:
    """Read the arrays of an .npz file by name, without running code from it.

    Raises WeightsError for anything that is no archive of arrays of numbers.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"cannot be read ({type(error).__name__})"
        raise WeightsError(path, problem, "an .npz file of arrays", "Download or copy it again.") from error


def encoder_weights(arrays: Arrays, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published arrays as tensors of the encoder; `wanted`: the encoder's own, name → tensor of the right shape.

    RGB weights are adapted to C channels: each gets the mean over R, G and B times 3/C. Raises WeightsError that lists
    every tensor that is missing, unexpected, of another shape or not finite.
    """
    places = {_published(name): name for name in wanted}
    found = {places.get(name, name): array for name, array in arrays.items() if not name.startswith(LEFT_OUT)}
    tensors = {name: _as_tensor(name, array, wanted) for name, array in found.items()}
    if problems := mismatches(tensors, wanted):
        expected = "the tensors of R50-ViT-B/16"
        raise WeightsError("encoder weights", "; ".join(problems), expected, "Use its own checkpoint.")
    return tensors


def _published(name: str) -> str:
    """The published name of an encoder's tensor."""
    if name == TABLE:
        return "Transformer/posembed_input/pos_embedding"
    place, _, kind = name.rpartition(".")
    if unit := re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)", place):
        part = {"downsample": "conv_proj"}.get(unit[3], unit[3])
        place = f"block{int(unit[1]) + 1}/unit{int(unit[2]) + 1:02d}/{part}"
    elif layer := re.fullmatch(r"layers\.(\d+)\.(\w+)", place):
        place = f"Transformer/encoderblock_{layer[1]}/{_LAYER[layer[2]]}"
    else:
        place = _PLACES[place]
    scale = "norm" in name or "gn" in name or "LayerNorm" in place
    return f"{place}/{'bias' if kind == 'bias' else 'scale' if scale else 'kernel'}"


def _as_tensor(name: str, array: npt.NDArray[np.float32], wanted: Mapping[str, Tensor]) -> Tensor:
    """A published array in the layout of the encoder's tensor; one that cannot be is returned as it is."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    shape = wanted[name].shape if name in wanted else tensor.shape
    if name == TABLE and tensor.shape[1:] == (1 + shape[2] * shape[3], shape[1]):  # the first place is the class's
        return tensor[:, 1:].transpose(1, 2).reshape(shape)
    if tensor.ndim == 4 and len(shape) == 4:  # HWIO → OIHW
        tensor = tensor.permute(3, 2, 0, 1)
        if name == FIRST and tensor.shape[1] == 3 != shape[1]:
            tensor = (tensor.mean(dim=1, keepdim=True) * 3 / shape[1]).expand(-1, shape[1], -1, -1)
        return tensor.contiguous()
    if len(shape) == 2 and tensor.numel() == shape.numel():  # heads are a dimension of their own in the files
        inputs = shape[1]
        return tensor.reshape(inputs, -1).T.contiguous()
    return tensor.reshape(shape) if tensor.numel() == shape.numel() and len(shape) == 1 else tensor

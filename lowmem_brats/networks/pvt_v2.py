"""The Pyramid Vision Transformer v2, EMCAD's encoder, and how its public ImageNet weights are read.

Source: Wang et al. 2022, "PVT v2: Improved Baselines with Pyramid Vision Transformer", section 3 and table 1. Written
from the paper; parameters are named as in the authors' checkpoints (github.com/whai362/PVT, Apache-2.0), so that they
can be loaded. Differences: branches are dropped at random only where it is asked for; no classification head.
Shape suffixes: N slices, C channels, H W in-plane, L = H·W. Inside, channels come last (NHWC) for the linear layers and
norms; convolutions see the same bytes as NCHW.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import MODALITIES
from lowmem_brats.errors import WeightsError
from lowmem_brats.networks.base import in_memory, mismatches
from lowmem_brats.networks.drop import StochasticDepth


class Layout(NamedTuple):
    """The size of a PVT v2: channels and number of blocks of each of its four stages."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


B0 = Layout((32, 64, 160, 256), (2, 2, 2, 2))
B2 = Layout((64, 128, 320, 512), (3, 4, 6, 3))
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSIONS = (8, 8, 4, 4)
FIRST = "patch_embed1.proj.weight"
"""The only parameter whose shape depends on the number of image channels."""


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension that computes in the format of its input, like `group_norm.GroupNorm`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """[..., C] → the same shape and format."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


def _convolve(layer: nn.Module, features_NHWC: Tensor) -> Tensor:
    return layer(features_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Overlapping patches, one per `stride`×`stride` pixels: [N, c_in, H, W] → [N, H/stride, W/stride, c_out]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2)
        self.norm = LayerNorm(c_out)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        return self.norm(self.proj(features_NCHW).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every position attends to the map, reduced `reduction` times in height and width; the shape is kept."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else nn.Identity()
        self.norm = LayerNorm(width) if reduction > 1 else nn.Identity()

    def forward(self, features_NHWC: Tensor) -> Tensor:
        """[N, H, W, C] → [N, H, W, C]; H and W multiples of `reduction`."""
        keys, values = self.kv(self.norm(_convolve(self.sr, features_NHWC))).chunk(2, dim=-1)
        queries = self._heads(self.q(features_NHWC))
        # This never builds the matrix of all attention weights; its result per head is [positions, C/heads].
        found = functional.scaled_dot_product_attention(queries, self._heads(keys), self._heads(values))
        return self.proj(found.transpose(1, 2).reshape(features_NHWC.shape))  # type: ignore[no-any-return]

    def _heads(self, features_NHWC: Tensor) -> Tensor:
        """[N, heads, H·W, C/heads]."""
        tokens_NLC = features_NHWC.flatten(1, 2)
        return tokens_NLC.reshape(*tokens_NLC.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a depthwise 3×3 convolution and a GELU between them; the shape is kept."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)))
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, features_NHWC: Tensor) -> Tensor:
        """[N, H, W, C] → [N, H, W, C]."""
        hidden_NHWC = _convolve(self.dwconv, self.fc1(features_NHWC))
        return self.fc2(functional.gelu(hidden_NHWC))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block: attention, then feed-forward. Each takes the normalised map and is added to the map."""

    def __init__(self, width: int, heads: int, reduction: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, expansion * width)
        self.drop1, self.drop2 = StochasticDepth(), StochasticDepth()

    def forward(self, features_NHWC: Tensor) -> Tensor:
        """[N, H, W, C] → [N, H, W, C]."""
        features_NHWC = features_NHWC + self.drop1(self.attn(self.norm1(features_NHWC)))
        return features_NHWC + self.drop2(self.mlp(self.norm2(features_NHWC)))  # type: ignore[no-any-return]


class EncoderStage(nn.Module):
    """Patch embedding, blocks, norm: [N, c_in, H, W] → [N, c_out, H/stride, W/stride]."""

    def __init__(self, patch_embed: PatchEmbed, block: nn.ModuleList, norm: LayerNorm) -> None:
        super().__init__()
        self.patch_embed, self.block, self.norm = patch_embed, block, norm

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        features_NHWC = self.patch_embed(features_NCHW)
        for block in self.block:
            features_NHWC = block(features_NHWC)
        return self.norm(features_NHWC).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class PVTv2(nn.Module):
    """The encoder: gives four maps, of 1/4, 1/8, 1/16 and 1/32 of the slice's height and width."""

    def __init__(self, layout: Layout, channels: int = len(MODALITIES)) -> None:
        super().__init__()
        self.stages: list[EncoderStage] = []
        for i, (width, depth) in enumerate(zip(*layout, strict=True)):
            stage = EncoderStage(
                PatchEmbed(layout.widths[i - 1] if i else channels, width, 3 if i else 7, 2 if i else 4),
                nn.ModuleList(Block(width, HEADS[i], REDUCTIONS[i], EXPANSIONS[i]) for _ in range(depth)),
                LayerNorm(width, eps=1e-6),
            )
            self.stages.append(stage)
            for name, part in stage.named_children():  # registered one by one: block1, … as in the checkpoints
                self.add_module(f"{name}{i + 1}", part)
        self.apply(_initialise)

    def forward(self, slices_NCHW: Tensor) -> list[Tensor]:
        """[N, C, H, W] → [N, width, H/4, W/4], … [N, width, H/32, W/32]; H and W multiples of 32."""
        features = [slices_NCHW]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def _initialise(layer: nn.Module) -> None:
    if any(parameter.is_meta for parameter in layer.parameters(recurse=False)):
        return  # torch is slow to draw what it will not keep
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    elif isinstance(layer, nn.Conv2d):
        fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
    if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


_FORMATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth file by name, on the CPU, without running code from it.

    Raises WeightsError for anything that is no checkpoint of named tensors.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict[str, Tensor](found)
        if tensors and all(isinstance(t, Tensor) and t.dtype in _FORMATS and in_memory(t) for t in tensors.values()):
            return tensors
        problem = "something else"
    except Exception as error:  # damaged bytes can make a pickle reader raise anything
        problem = f"cannot be read ({type(error).__name__})"
    raise WeightsError(path, problem, "a PyTorch checkpoint of named tensors", "Download or copy it again.")


def load_encoder(encoder: PVTv2, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a public checkpoint into the encoder, without the classification head.

    RGB weights are adapted to an encoder of C channels: each channel gets the mean over R, G and B times 3/C, so that
    C equal channels give what a grey image gave. Raises WeightsError listing every tensor that is missing, unexpected,
    of another shape or not finite; the encoder is then unchanged.
    """
    wanted = encoder.state_dict()
    found = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    channels = wanted[FIRST].shape[1]
    if channels != 3 and FIRST in found and found[FIRST].shape[1:2] == (3,):
        found[FIRST] = (found[FIRST].mean(dim=1, keepdim=True) * 3 / channels).repeat_interleave(channels, dim=1)
    if problems := mismatches(found, wanted):
        expected = "the tensors of this PVT v2 encoder"
        raise WeightsError("encoder weights", "; ".join(problems), expected, "Use its own checkpoint.")
    encoder.load_state_dict(found)

"""R50-ViT-B/16: a residual network whose deepest map is the input of a vision transformer, TransUNet's encoder.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3 and table 1 (the hybrid of ResNet-50 and
ViT-B/16); Kolesnikov et al. 2020, "Big Transfer (BiT)", for the residual network with standardised weights and group
norm; Qiao et al. 2019, "Weight Standardization", eq. 3 to 5. Written from the papers. Differences: branches are
dropped at random only where it is asked for; the position table is interpolated for slices of other sizes than 224 ×
224; the maximum after the first convolution is taken so that every map is exactly half as large as the one before it.
Shape suffixes: N slices, L positions, E channels of a position, C channels, H W in-plane.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.networks.drop import StochasticDepth
from lowmem_brats.networks.group_norm import GroupNorm
from lowmem_brats.networks.pvt_v2 import LayerNorm

ROOT = 64
"""Channels after the first convolution."""
UNITS = (3, 4, 9)
"""Bottlenecks of each block, which has 256, 512 and 1024 channels: ResNet-50's fourth block is shared by the third."""
EMBEDDING, HEADS, HIDDEN, LAYERS = 768, 12, 3072, 12
TABLE = 14
"""Positions along each side of the learned table: those of a slice of 224 × 224."""
STRIDE = 16
SKIPS = (512, 256, ROOT)
"""Channels of the maps of 1/8, 1/4 and 1/2 of the slice's size."""


class StandardisedConv(nn.Conv2d):
    """A convolution without bias, with a kernel whose weights have mean 0 and variance 1 for each output channel."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """[N, c_in, H, W] → [N, c_out, H/stride, W/stride]."""
        variance, mean = torch.var_mean(self.weight.float(), dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = ((self.weight - mean) / (variance + 1e-5).sqrt()).to(self.weight.dtype)
        return functional.conv2d(input, weight, None, self.stride, self.padding)


def _norm(channels: int, groups: int = 32) -> GroupNorm:
    return GroupNorm(groups, channels, eps=1e-6)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with norms, and the input added: [N, c_in, H, W] → [N, c_out, H/s, W/s]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        inner = c_out // 4
        self.conv1, self.gn1 = StandardisedConv(c_in, inner, 1), _norm(inner)
        self.conv2, self.gn2 = StandardisedConv(inner, inner, 3, stride), _norm(inner)
        self.conv3, self.gn3 = StandardisedConv(inner, c_out, 1), _norm(c_out)
        self.downsample = self.gn_proj = None
        if c_in != c_out or stride > 1:
            self.downsample = StandardisedConv(c_in, c_out, 1, stride)
            self.gn_proj = _norm(c_out, c_out)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        inner = functional.relu_(self.gn1(self.conv1(features_NCHW)))
        inner = self.gn3(self.conv3(functional.relu_(self.gn2(self.conv2(inner)))))
        if self.downsample is not None and self.gn_proj is not None:
            features_NCHW = self.gn_proj(self.downsample(features_NCHW))
        return functional.relu_(inner + features_NCHW)


class Root(nn.Module):
    """The first convolution, of 7×7: [N, C, H, W] → [N, 64, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.gn = StandardisedConv(channels, ROOT, 7, 2), _norm(ROOT)

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """See the class."""
        return functional.relu_(self.gn(self.conv(slices_NCHW)))


class ResidualStage(nn.Sequential):
    """One block of the residual network; the first takes the maximum of 3×3 pixels first and halves the size by it."""

    def __init__(self, number: int) -> None:
        c_out = 256 * 2**number
        c_in, stride = (c_out // 2, 2) if number else (ROOT, 1)
        super().__init__(
            *(Bottleneck(c_out if unit else c_in, c_out, 1 if unit else stride) for unit in range(UNITS[number]))
        )
        self.pooled = number == 0

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, c_in, H, W] → [N, c_out, H/2, W/2]."""
        if self.pooled:  # after a ReLU a padded 0 is never a larger maximum
            features_NCHW = functional.max_pool2d(functional.pad(features_NCHW, (0, 1, 0, 1)), 3, 2)
        return super().forward(features_NCHW)  # type: ignore[no-any-return, no-untyped-call]


def stretched(table_1EHW: Tensor, size_HW: torch.Size) -> Tensor:
    """A table of positions for a map of another size than it was learnt for."""
    if size_HW == table_1EHW.shape[2:]:
        return table_1EHW
    return functional.interpolate(table_1EHW, size_HW, mode="bilinear", align_corners=False)


class Embedding(nn.Module):
    """The deepest map as a sequence of positions, each with its place: [N, 1024, H, W] → [N, H·W, E]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(1024, EMBEDDING, 1)
        self.table_1EHW = nn.Parameter(torch.zeros(1, EMBEDDING, TABLE, TABLE))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        table_1EHW = stretched(self.table_1EHW, features_NCHW.shape[2:])
        embedded_NEHW = self.patch_embeddings(features_NCHW)
        return (embedded_NEHW + table_1EHW.to(embedded_NEHW.dtype)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention of every position to all, then two linear layers; each takes the normalised map and is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = LayerNorm(EMBEDDING, eps=1e-6), LayerNorm(EMBEDDING, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(EMBEDDING, EMBEDDING) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(EMBEDDING, HIDDEN), nn.Linear(HIDDEN, EMBEDDING)
        self.drop1, self.drop2 = StochasticDepth(), StochasticDepth()

    def forward(self, positions_NLE: Tensor) -> Tensor:
        """[N, L, E] → [N, L, E]."""
        normed_NLE = self.attention_norm(positions_NLE)
        parts = (
            part(normed_NLE).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = functional.scaled_dot_product_attention(*parts)
        positions_NLE = positions_NLE + self.drop1(self.out(found.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.fc1(self.ffn_norm(positions_NLE)))
        return positions_NLE + self.drop2(self.fc2(hidden))  # type: ignore[no-any-return]

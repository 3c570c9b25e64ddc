"""The modified 2D U-Net of Med-DANet: residual blocks and strided convolutions, three times halved.

Source: Wang et al. 2022, "Med-DANet: Dynamic Architecture Network for Efficient Medical Volumetric Segmentation",
section 3.2, and Wang et al. 2021, "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", whose encoder and
decoder it has in two dimensions. Widths 12 and 16 are the paper's. Written from the papers. Differences: channels
are dropped only where it is asked for, and never in evaluation; group norm unless batch norm is asked for; a logit per
region.
Shape suffixes: N slices, C channels, H W in-plane.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import NetworkConfig
from lowmem_brats.networks.base import PRIOR, SliceNetwork
from lowmem_brats.networks.drop import SpatialDropout
from lowmem_brats.networks.group_norm import norm_of

BLOCKS = (1, 2, 2, 4)
"""Residual blocks at each level of the encoder; the decoder has one at each."""


class FirstConv(nn.Conv2d):
    """The first convolution, after which training may drop channels: [N, c_in, H, W] → [N, c_out, H, W]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)
        self.drop = SpatialDropout(c_out)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """See the class."""
        return self.drop(super().forward(input))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Norm, ReLU and 3×3 convolution, twice, and the input added: [N, C, H, W] → [N, C, H, W]."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of(norm, channels), norm_of(norm, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        inner_NCHW = self.conv1(functional.relu_(self.norm1(features_NCHW)))
        return features_NCHW + self.conv2(functional.relu_(self.norm2(inner_NCHW)))  # type: ignore[no-any-return]


class Up(nn.Module):
    """Halves the channels, doubles the size, joins the encoder's map of that size, and has a residual block."""

    def __init__(self, c_out: int, norm: str) -> None:
        super().__init__()
        self.narrow, self.up = nn.Conv2d(2 * c_out, c_out, 1), nn.ConvTranspose2d(c_out, c_out, 2, stride=2)
        self.join, self.block = nn.Conv2d(2 * c_out, c_out, 1), ResidualBlock(c_out, norm)

    def forward(self, deep_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        """[N, 2c, H/2, W/2] and [N, c, H, W] → [N, c, H, W]."""
        features_NCHW = self.up(self.narrow(deep_NCHW))
        return self.block(self.join(torch.cat([skip_NCHW, features_NCHW], dim=1)))  # type: ignore[no-any-return]


class ResUNet2d(SliceNetwork):
    """Encoder of widths w, 2w, 4w and 8w, decoder back to w."""

    stride = 2 ** (len(BLOCKS) - 1)

    def __init__(self, config: NetworkConfig, width: int | None = None) -> None:
        """`width`: of the first level, by default the config's."""
        super().__init__()
        self.outputs, self.context = config.outputs, config.context
        width = width or config.width
        widths = [width * 2**level for level in range(len(BLOCKS))]
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, stride=2, padding=1) if level else FirstConv(c_in, c_out),
                *(ResidualBlock(c_out, config.norm) for _ in range(BLOCKS[level])),
            )
            for level, (c_in, c_out) in enumerate(zip([config.channels, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(Up(c_out, config.norm) for c_out in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, config.outputs, 1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def stages(self) -> dict[str, nn.Module]:
        """The encoder's levels from wide to deep, then the decoder's from deep to wide."""
        down = {f"down.{i}": stage for i, stage in enumerate(self.down)}
        return down | {f"up.{i}": stage for i, stage in enumerate(self.up)}

    def last_bias(self) -> nn.Parameter:
        """The bias of the head."""
        return self.head.bias  # type: ignore[return-value]

    def deepest(self, features_NCHW: Tensor) -> Tensor:
        """What becomes of the encoder's deepest map before the decoder: nothing here."""
        return features_NCHW

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, K, H, W]; H and W multiples of 8."""
        skips, features = list[Tensor](), slices_NCHW
        for stage in self.down:
            features = stage(features)
            skips.append(features)
        features = self.deepest(skips.pop())
        for stage in self.up:
            features = stage(features, skips.pop())
        return self.head(features)  # type: ignore[no-any-return]

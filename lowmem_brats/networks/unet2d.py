"""The classic 2D U-Net with one logit per region: three networks of one region each, or one network of three.

Source: Ronneberger, Fischer, Brox 2015 (U-Net); widths and use as three binary networks: Hashemi et al. 2022, "A
Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation", section II-B. Differences, to save
memory or to keep micro-batches exact: zero padding, because reflection needs 44 % more at the training peak; no norm,
as in Ronneberger's, or group norm, instead of batch norm; no bias if a norm follows; one logit instead of two channels,
without a ReLU before it. Training may drop channels where Ronneberger's drops, at the end of the encoder.
Written from the paper. Shape suffixes: N slices, C channels, H W in-plane.
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


def _conv(c_in: int, c_out: int, norm: str) -> list[nn.Module]:
    """A 3×3 convolution, its norm if it has one, and a ReLU."""
    norms = [] if norm == "none" else [norm_of(norm, c_out)]
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=norm == "none"), *norms, nn.ReLU(inplace=True)]


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each followed by its norm, if any, and a ReLU: [N, c_in, H, W] → [N, c_out, H, W].

    `pooled`: halve H and W first. The pooling is inside the block, so that recomputing it spares the pooling's indices.
    """

    def __init__(self, c_in: int, c_out: int, norm: str, pooled: bool = False) -> None:
        super().__init__(*_conv(c_in, c_out, norm), *_conv(c_out, c_out, norm))
        self.pooled = pooled

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, c_in, H, W] → [N, c_out, H, W], or half that H and W."""
        if self.pooled:
            features_NCHW = functional.max_pool2d(features_NCHW, 2)
        return super().forward(features_NCHW)  # type: ignore[no-any-return, no-untyped-call]


class Up(nn.Module):
    """Doubles the size, joins the result with the encoder's map of that size, and convolves both."""

    def __init__(self, c_out: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * c_out, c_out, 2, stride=2)
        self.conv = DoubleConv(2 * c_out, c_out, norm)

    def forward(self, deep_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        """[N, 2c, H/2, W/2] and [N, c, H, W] → [N, c, H, W]."""
        features_NCHW = torch.cat([self.up(deep_NCHW), skip_NCHW], dim=1)
        for layer in self.conv:  # not self.conv(features_NCHW), which would keep its argument alive to the end
            features_NCHW = layer(features_NCHW)
        return features_NCHW


class UNet2d(SliceNetwork):
    """U-Net with `depth` poolings and widths w, 2w, 4w, …; the paper has width 64 and depth 4."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stride, self.outputs, self.context = 2**config.depth, config.outputs, config.context
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(c_in, c_out, config.norm, pooled=level > 0)
            for level, (c_in, c_out) in enumerate(zip([config.channels, *widths], widths, strict=False))
        )
        self.drop = SpatialDropout(widths[-1])
        self.up = nn.ModuleList(Up(c_out, config.norm) for c_out in reversed(widths[:-1]))
        self.head = nn.Conv2d(config.width, config.outputs, 1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def stages(self) -> dict[str, nn.Module]:
        """Encoder blocks from wide to deep, then decoder blocks from deep to wide."""
        down = {f"down.{i}": block for i, block in enumerate(self.down)}
        return down | {f"up.{i}": block for i, block in enumerate(self.up)}

    def convolutions(self) -> list[nn.Conv2d]:
        """Those that a ReLU follows without a norm between, from input to output."""
        blocks = [*self.down, *(up.conv for up in self.up)]
        return [layer for block in blocks for layer in block if isinstance(layer, nn.Conv2d) and layer.bias is not None]

    def last_bias(self) -> nn.Parameter:
        """The bias of the head."""
        return self.head.bias  # type: ignore[return-value]

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, K, H, W]; H and W multiples of `stride`."""
        skips: list[Tensor] = []
        features = slices_NCHW
        for block in self.down:
            features = block(features)
            skips.append(features)
        features = self.drop(skips.pop())
        for block in self.up:
            features = block(features, skips.pop())
        return self.head(features)  # type: ignore[no-any-return]

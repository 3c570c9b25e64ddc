"""EMCAD: a light decoder of multi-scale depthwise convolutions and attention, on top of a PVT v2 encoder.

Source: Rahman, Munir, Marculescu 2024, "EMCAD: Efficient Multi-scale Convolutional Attention Decoding for Medical Image
Segmentation", section 3; on BraTS: Uzor et al., "Advanced Brain Tumor Segmentation Using EMCAD". Written from the
papers. Differences: four modalities enter the encoder directly; group norm instead of batch norm, so that
micro-batches are exact; no channel shuffle, because a dense 1×1 convolution follows, which does not depend on the order
of its inputs; the result is the sum of the four heads' logits, as for binary masks in the authors' earlier work
(Rahman, Marculescu 2023, "Medical Image Segmentation via Cascaded Attention Decoding"), and not the finest head alone.
Shape suffixes: N slices, C channels, K regions, H W in-plane.
"""

from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import NetworkConfig
from lowmem_brats.networks.base import PRIOR, SliceNetwork
from lowmem_brats.networks.group_norm import norm_of
from lowmem_brats.networks.pvt_v2 import B0, B2, PVTv2, load_encoder, read_checkpoint

ENCODERS = {"emcad-b0": B0, "emcad-b2": B2}
"""Config name → layout of the encoder; the decoder has the same widths. `config.width` and `depth` are not used."""
KERNELS = (1, 3, 5)
EXPANSION = 2


def _conv(c_in: int, c_out: int, kernel: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=bias)


class CAB(nn.Module):
    """Channel attention: multiplies each channel by a weight from 0 to 1, from its mean and maximum over the slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = _conv(channels, channels // 16)
        self.fc2 = _conv(channels // 16, channels)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        pooled = features_NCHW.mean((2, 3), keepdim=True), features_NCHW.amax((2, 3), keepdim=True)
        mean_NC11, max_NC11 = (self.fc2(functional.relu(self.fc1(each))) for each in pooled)
        return features_NCHW * torch.sigmoid(mean_NC11 + max_NC11)


class SAB(nn.Module):
    """Spatial attention: multiplies each pixel by a weight from 0 to 1, from channel means and maxima around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(2, 1, kernel=7)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        pooled_N2HW = torch.cat([features_NCHW.mean(1, keepdim=True), features_NCHW.amax(1, keepdim=True)], dim=1)
        return features_NCHW * torch.sigmoid(self.conv(pooled_N2HW))


class MSCB(nn.Module):
    """Multi-scale convolution block: widen, sum depthwise convolutions of several kernel sizes, narrow, add input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.expand = nn.Sequential(_conv(channels, wide), norm_of(norm, wide), nn.ReLU6(inplace=True))
        self.scales = nn.ModuleList(
            nn.Sequential(_conv(wide, wide, kernel, groups=wide), norm_of(norm, wide), nn.ReLU6(inplace=True))
            for kernel in KERNELS
        )
        self.project = nn.Sequential(_conv(wide, channels), norm_of(norm, channels))

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        wide_NCHW = self.expand(features_NCHW)
        small, middle, large = (scale(wide_NCHW) for scale in self.scales)
        return features_NCHW + self.project(small + middle + large)  # type: ignore[no-any-return]


class MSCAM(nn.Module):
    """Multi-scale convolutional attention: channel attention, then spatial attention, then multi-scale convolution."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.cab, self.mscb = CAB(channels), MSCB(channels, norm)

    def forward(self, features_NCHW: Tensor, sab: SAB) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]; `sab`: the network's one spatial attention, which all stages share."""
        return self.mscb(sab(self.cab(features_NCHW)))  # type: ignore[no-any-return]


class LGAG(nn.Module):
    """Large-kernel grouped attention gate: multiplies the skip's pixels by a weight from 0 to 1, from both maps."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        inner = channels // 2
        self.deep, self.skip = (
            nn.Sequential(_conv(channels, inner, 3, groups=inner, bias=True), norm_of(norm, inner)) for _ in range(2)
        )
        self.weight = nn.Sequential(_conv(inner, 1, bias=True), norm_of(norm, 1), nn.Sigmoid())

    def forward(self, deep_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] and [N, C, H, W] → [N, C, H, W]."""
        weight_N1HW: Tensor = self.weight(functional.relu(self.deep(deep_NCHW) + self.skip(skip_NCHW)))
        return skip_NCHW * weight_N1HW


class EUCB(nn.Sequential):
    """Efficient up-convolution block: [N, c_in, H, W] → [N, c_out, 2H, 2W]."""

    def __init__(self, c_in: int, c_out: int, norm: str) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2),
            _conv(c_in, c_in, 3, groups=c_in),
            norm_of(norm, c_in),
            nn.ReLU(inplace=True),
            _conv(c_in, c_out, bias=True),
        )


class DecoderStage(nn.Module):
    """Doubles the size, adds the encoder's map of that size through its gate, and refines the sum."""

    def __init__(self, c_in: int, c_out: int, norm: str) -> None:
        super().__init__()
        self.eucb, self.lgag, self.mscam = EUCB(c_in, c_out, norm), LGAG(c_out, norm), MSCAM(c_out, norm)

    def forward(self, deep_NCHW: Tensor, skip_NCHW: Tensor, sab: SAB) -> Tensor:
        """[N, c_in, H/2, W/2] and [N, c_out, H, W] → [N, c_out, H, W]."""
        deep_NCHW = self.eucb(deep_NCHW)
        return self.mscam(deep_NCHW + self.lgag(deep_NCHW, skip_NCHW), sab)  # type: ignore[no-any-return]


class EMCAD(SliceNetwork):
    """PVT v2 and the EMCAD decoder, with a head on each of the decoder's four stages."""

    stride = 32
    has_width = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs, self.context = config.outputs, config.context
        layout = ENCODERS[config.name]
        deep_first = layout.widths[::-1]
        self.deepest = MSCAM(deep_first[0], config.norm)
        self.up = nn.ModuleList(DecoderStage(c_in, c_out, config.norm) for c_in, c_out in pairwise(deep_first))
        self.sab = SAB()
        self.heads = nn.ModuleList(_conv(width, config.outputs, bias=True) for width in deep_first)
        self.apply(_initialise)
        for head in self.heads:  # a quarter of the log-odds each, because the heads are summed
            nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)) / len(self.heads))  # type: ignore[arg-type]
        self.encoder = PVTv2(layout, config.channels)  # after _initialise above, because it initialises itself

    def stages(self) -> dict[str, nn.Module]:
        """The encoder's stages from fine to deep, then the decoder's from deep to fine."""
        encoder = {f"encoder.{i}": stage for i, stage in enumerate(self.encoder.stages, start=1)}
        decoder = {f"decoder.{i}": stage for i, stage in zip((4, 3, 2, 1), (self.deepest, *self.up), strict=True)}
        return encoder | decoder

    def last_bias(self) -> nn.Parameter:
        """The bias of the finest head."""
        return self.heads[-1].bias  # type: ignore[return-value]

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, K, H, W]; H and W multiples of 32.

        In training mode, for deep supervision, the logits of each head: [N, 4·K, H, W], the finest head's K first. In
        evaluation mode the sum over the heads, in fp32.
        """
        skips = self.encoder(slices_NCHW)
        features = self.deepest(skips.pop(), self.sab)
        logits = [self.heads[0](features)]
        for stage, head in zip(self.up, self.heads[1:], strict=True):
            features = stage(features, skips.pop(), self.sab)
            logits.append(head(features))
        size_HW = slices_NCHW.shape[2:]
        # Contiguous, since the loss takes three times as long to read a few channels that come last; and in fp32 below,
        # since a CPU interpolates bf16 half as fast.
        maps = (each.contiguous() for each in reversed(logits))
        if self.training:
            return torch.cat([functional.interpolate(each, size_HW, mode="bilinear") for each in maps], dim=1)
        return reduce(torch.add, (functional.interpolate(each.float(), size_HW, mode="bilinear") for each in maps))

    def load_encoder(self, path: Path) -> None:
        """Load the encoder's public ImageNet weights; arguments and errors as `pvt_v2.load_encoder`."""
        load_encoder(self.encoder, read_checkpoint(path))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

"""TransUNet: a residual network and a vision transformer encode, a cascade of convolutions decodes.

Source: Chen et al. 2021, "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", section 3; on
BraTS beside the U-Net: "Comparative Analysis of U-Net and TransUNet". Written from the papers. Differences: as in
`hybrid_vit`; four modalities enter directly; the decoder has group norm too, unless the paper's batch norm is asked
for; a logit per region. Shape suffixes: N slices, C channels, K regions, H W in-plane.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import NetworkConfig
from lowmem_brats.networks.base import PRIOR, SliceNetwork
from lowmem_brats.networks.group_norm import norm_of
from lowmem_brats.networks.hybrid_vit import (
    EMBEDDING,
    LAYERS,
    SKIPS,
    STRIDE,
    UNITS,
    Embedding,
    Layer,
    ResidualStage,
    Root,
)
from lowmem_brats.networks.pvt_v2 import LayerNorm
from lowmem_brats.networks.vit_checkpoint import encoder_weights, read_arrays

WIDTHS = (512, 256, 128, 64, 16)
"""Channels of the decoder from deep to fine."""


def _convolution(c_in: int, c_out: int, norm: str) -> list[nn.Module]:
    return [
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        norm_of(norm, c_out),
        nn.ReLU(inplace=True),
    ]


class Widen(nn.Module):
    """The transformer's result as a map again, ready for the decoder: [N, L, E] → [N, 512, H, W]."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = LayerNorm(EMBEDDING, eps=1e-6)
        self.conv = nn.Sequential(*_convolution(EMBEDDING, WIDTHS[0], norm))

    def forward(self, positions_NLE: Tensor, size_HW: tuple[int, int]) -> Tensor:
        """See the class."""
        return self.conv(self.norm(positions_NLE).transpose(1, 2).unflatten(2, size_HW))  # type: ignore[no-any-return]


class Up(nn.Module):
    """Doubles the size, joins the encoder's map of that size, where there is one, and convolves twice."""

    def __init__(self, c_in: int, c_skip: int, c_out: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_convolution(c_in + c_skip, c_out, norm), *_convolution(c_out, c_out, norm))

    def forward(self, deep_NCHW: Tensor, skip_NCHW: Tensor | None = None) -> Tensor:
        """[N, c_in, H/2, W/2] and [N, c_skip, H, W] → [N, c_out, H, W]."""
        features_NCHW = functional.interpolate(deep_NCHW, scale_factor=2, mode="bilinear", align_corners=True)
        if skip_NCHW is not None:
            features_NCHW = torch.cat([features_NCHW, skip_NCHW], dim=1)
        return self.conv(features_NCHW)  # type: ignore[no-any-return]


class TransUNet(SliceNetwork):
    """R50-ViT-B/16 and the cascaded decoder."""

    stride = STRIDE
    has_width = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs, self.context = config.outputs, config.context
        self.root = Root(config.channels)
        self.blocks = nn.ModuleList(ResidualStage(number) for number in range(len(UNITS)))
        self.embedding = Embedding()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.widen = Widen(config.norm)
        self.up = nn.ModuleList(
            Up(c_in, c_skip, c_out, config.norm)
            for c_in, c_skip, c_out in zip(WIDTHS, (*SKIPS, 0), WIDTHS[1:], strict=False)
        )
        self.head = nn.Conv2d(WIDTHS[-1], config.outputs, 3, padding=1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def stages(self) -> dict[str, nn.Module]:
        """Residual network, embedding, the transformer's layers, decoder."""
        blocks = {f"block.{i}": stage for i, stage in enumerate(self.blocks, start=1)}
        layers = {f"layer.{i}": layer for i, layer in enumerate(self.layers)}
        up = {f"up.{i}": stage for i, stage in enumerate(self.up)}
        return {"root": self.root} | blocks | {"embedding": self.embedding} | layers | {"widen": self.widen} | up

    def last_bias(self) -> nn.Parameter:
        """The bias of the head."""
        return self.head.bias  # type: ignore[return-value]

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, K, H, W]; H and W multiples of 16."""
        skips = [self.root(slices_NCHW)]
        for stage in self.blocks:
            skips.append(stage(skips[-1]))
        height, width = skips[-1].shape[2:]
        positions = self.embedding(skips.pop())
        for layer in self.layers:
            positions = layer(positions)
        features = self.widen(positions, (height, width))
        del positions
        for stage in self.up:
            features = stage(features, skips.pop()) if skips else stage(features)
        return self.head(features)  # type: ignore[no-any-return]

    def load_encoder(self, path: Path) -> None:
        """Load the encoder's public weights; arguments and errors as `vit_checkpoint.encoder_weights`."""
        encoder = ("root.", "blocks.", "embedding.", "layers.", "widen.norm.")
        wanted = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(encoder)}
        self.load_state_dict(encoder_weights(read_arrays(path), wanted), strict=False)

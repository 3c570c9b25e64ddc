"""TransBTS in two dimensions: the residual U-Net with a transformer on its deepest map.

Source: Wang et al. 2021, "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", section 2; as members of a
bank of 2D networks, of one and of four layers: Wang et al. 2022, "Med-DANet", section 3.2. Written from the papers.
Differences: as in `resunet2d`; the position table is interpolated for slices of other sizes than 128 × 128.
Shape suffixes: N slices, L positions of the deepest map, E channels of a position, C channels, H W in-plane.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import NetworkConfig
from lowmem_brats.networks.drop import StochasticDepth
from lowmem_brats.networks.group_norm import norm_of
from lowmem_brats.networks.hybrid_vit import stretched
from lowmem_brats.networks.pvt_v2 import LayerNorm
from lowmem_brats.networks.resunet2d import BLOCKS, ResUNet2d

LAYERS = {"transbts2d-light": 1, "transbts2d": 4}
"""Config name → number of transformer layers; `config.width` is not used."""
WIDTH, EMBEDDING, HEADS, HIDDEN = 16, 512, 8, 2048
TABLE = 16
"""Positions along each side of the learned table: those of a slice of 128 × 128."""


class Layer(nn.Module):
    """Attention of every position to all, then two linear layers; each takes the normalised map and is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(EMBEDDING), LayerNorm(EMBEDDING)
        self.qkv, self.proj = nn.Linear(EMBEDDING, 3 * EMBEDDING, bias=False), nn.Linear(EMBEDDING, EMBEDDING)
        self.fc1, self.fc2 = nn.Linear(EMBEDDING, HIDDEN), nn.Linear(HIDDEN, EMBEDDING)
        self.drop1, self.drop2 = StochasticDepth(), StochasticDepth()

    def forward(self, positions_NLE: Tensor) -> Tensor:
        """[N, L, E] → [N, L, E]."""
        heads = self.qkv(self.norm1(positions_NLE)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(*heads)
        positions_NLE = positions_NLE + self.drop1(self.proj(found.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.fc1(self.norm2(positions_NLE)))
        return positions_NLE + self.drop2(self.fc2(hidden))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Widens the deepest map, lets its positions attend to each other, and narrows it: shape kept."""

    def __init__(self, channels: int, layers: int, norm: str) -> None:
        super().__init__()
        self.widen = nn.Sequential(
            norm_of(norm, channels), nn.ReLU(inplace=True), nn.Conv2d(channels, EMBEDDING, 3, padding=1)
        )
        self.table_1EHW = nn.Parameter(torch.zeros(1, EMBEDDING, TABLE, TABLE))
        self.layers = nn.Sequential(*(Layer() for _ in range(layers)))
        self.norm = LayerNorm(EMBEDDING)
        self.narrow, self.refine = _convolutions(EMBEDDING, channels, norm), _convolutions(channels, channels, norm)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """See the class."""
        wide_NEHW = self.widen(features_NCHW)
        wide_NEHW = wide_NEHW + stretched(self.table_1EHW, wide_NEHW.shape[2:]).to(wide_NEHW.dtype)
        positions_NLE = self.norm(self.layers(wide_NEHW.flatten(2).transpose(1, 2)))
        narrow_NCHW = self.narrow(positions_NLE.transpose(1, 2).unflatten(2, features_NCHW.shape[2:]))
        return narrow_NCHW + self.refine(narrow_NCHW)  # type: ignore[no-any-return]


def _convolutions(c_in: int, c_out: int, norm: str) -> nn.Sequential:
    """Two 3×3 convolutions, each with a norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1),
        norm_of(norm, c_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=1),
        norm_of(norm, c_out),
        nn.ReLU(inplace=True),
    )


class TransBTS2d(ResUNet2d):
    """The residual U-Net of width 16 with a transformer between encoder and decoder."""

    has_width = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, WIDTH)
        self.transformer = Transformer(WIDTH * 2 ** (len(BLOCKS) - 1), LAYERS[config.name], config.norm)

    def stages(self) -> dict[str, nn.Module]:
        """Encoder, transformer, decoder."""
        stages = super().stages()
        down = {name: stage for name, stage in stages.items() if name.startswith("down")}
        return down | {"transformer": self.transformer} | stages

    def deepest(self, features_NCHW: Tensor) -> Tensor:
        """Through the transformer."""
        return self.transformer(features_NCHW)  # type: ignore[no-any-return]

"""The decision network of a bank: a small ShuffleNet V2 that looks at a slice and says which member is to segment it.

Source: Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", figure 3c and 3d,
with the widths that Wang et al. 2022, "Med-DANet", chose for it. Written from the papers.
Shape suffixes: N slices, C channels, H W in-plane, S choices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GMAC_PER_MEGAPIXEL = 0.25524
"""10⁹ multiply-adds for a megapixel of slices."""
STEM, LAST = 12, 256
STAGES = ((24, 4), (48, 8), (96, 4))
"""Channels of each stage and its number of units, the first of which halves the size."""


def _convolution(c_in: int, c_out: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out))


class Unit(nn.Module):
    """Half of the channels go on as they are, half through three convolutions; then the channels are shuffled.

    Where the size is halved, both halves of the result are made of all channels.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.halves = stride == 1
        inner = half if self.halves else c_in
        self.kept = (
            nn.Identity()
            if self.halves
            else nn.Sequential(_convolution(c_in, c_in, 3, stride, c_in), _convolution(c_in, half), nn.ReLU(True))
        )
        self.changed = nn.Sequential(
            _convolution(inner, half),
            nn.ReLU(True),
            _convolution(half, half, 3, stride, half),
            _convolution(half, half),
            nn.ReLU(True),
        )

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """[N, c_in, H, W] → [N, c_out, H / stride, W / stride]."""
        first, second = features_NCHW.chunk(2, 1) if self.halves else (features_NCHW, features_NCHW)
        joined_NCHW = torch.cat([self.kept(first), self.changed(second)], 1)
        n, c, height, width = joined_NCHW.shape
        return joined_NCHW.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)


class DecisionNetwork(nn.Module):
    """`slices_NCHW` → `scores_NS`; choice 0 is to skip the slice, choice k to let member k segment it."""

    def __init__(self, channels: int, choices: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(channels, STEM, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        widths = [STEM, *(width for width, _ in STAGES)]
        self.stages = nn.Sequential(
            *(
                Unit(c_in if first else c_out, c_out, 2 if first else 1)
                for c_in, (c_out, units) in zip(widths, STAGES, strict=False)
                for first in (unit == 0 for unit in range(units))
            )
        )
        self.last = nn.Sequential(_convolution(widths[-1], LAST), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scores = nn.Linear(LAST, choices, bias=False)

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """See the class."""
        return self.scores(self.last(self.stages(self.stem(slices_NCHW))))  # type: ignore[no-any-return]

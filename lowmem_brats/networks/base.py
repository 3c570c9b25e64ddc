"""The contract that every network keeps, so that planning, weights and commands need no code per network.

Shape suffixes: N slices in a batch, C modalities, K regions, H W in-plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional


class SliceNetwork(nn.Module, ABC):
    """A 2D network: `slices_NCHW` in, a foreground logit per pixel and region `logits_NKHW` out, K = config.outputs."""

    stride: int
    """H and W must be multiples of it."""
    outputs: int = 1
    """How many regions K it segments."""

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The sub-modules that run one after another, by name, in order."""

    @abstractmethod
    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """Logits [N, K, H, W] of the foreground; probability = sigmoid. Of three regions: WT, TC, ET."""


class GroupNorm(nn.GroupNorm):
    """Group norm that computes in the format of its input, its sums in fp32 all the same.

    Under autocast, CUDA's own would copy half maps to fp32 and keep the copies for the backward pass: 10 bytes a value
    in place of 4. Half weights add rounding of the size that half maps have anyway (0.3 % of a gradient in bf16).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """[N, c, H, W] → the same shape and format."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)

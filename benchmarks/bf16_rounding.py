"""bf16 convolutions on a processor that has none: what hardware computes, at the speed of fp32.

Hardware multiplies numbers of bf16, adds in fp32 and rounds the sum to bf16. torch does the same without hardware, but
takes twenty times as long. Here the rounded numbers are multiplied in fp32, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Convolution(torch.autograd.Function):
    """A convolution of bf16 tensors, computed in fp32 and rounded to bf16, as is its gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.how, ctx.biased = how, bias is not None
        found = torch.convolution(images.float(), weight.float(), None if bias is None else bias.float(), *how)
        return found.bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        sizes, wanted = [len(weight)] if ctx.biased else None, ctx.needs_input_grad[:3]
        found = torch.ops.aten.convolution_backward(
            gradient.float(), images.float(), weight.float(), sizes, *ctx.how, wanted
        )
        return *(None if each is None else each.bfloat16() for each in found), *(None for _ in ctx.how)


class Bf16ByRounding(TorchFunctionMode):
    """Inside, the convolutions of autocast to bf16 are computed so; everything else is left as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See the class."""
        rounds = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if not (rounds and func in (functional.conv2d, functional.conv3d)):
            return func(*args, **(kwargs or {}))
        images, weight, bias, stride, padding, dilation, groups = args
        half = [None if each is None else each.bfloat16() for each in (images, weight, bias)]
        unmoved = [0] * len(stride)
        with torch.autocast("cpu", enabled=False):
            return _Convolution.apply(*half, stride, padding, dilation, False, unmoved, groups)

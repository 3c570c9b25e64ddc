"""Tensors without data: an operation on them gives results of the right shape, format and layout, but computes nothing.

torch has such tensors too (FakeTensorMode), but they take a second to import and up to ten milliseconds per operation,
because their shapes are computed in Python. Here torch's C++ does that: most operations are made of others, and are
taken apart until what is left allocates (that is answered here), makes a view (that needs no data) or writes into what
it was given (that is skipped). The kernels that are not made of others are listed in RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lowmem_brats.networks import group_norm

aten = torch.ops.aten
_CPU = torch.device("cpu")


class DatalessTensor(Tensor):
    """A tensor on the CPU whose storage has a size but no memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse: there is nothing to compute with."""
        raise RuntimeError(f"{func} on tensors without data, outside WithoutData")


class WithoutData(TorchDispatchMode):
    """Inside the `with` block tensors are made without data, and operations on such tensors compute nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would make torch import its compiler, which takes a second, to keep it away from here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The results of the operation `func`, without data."""
        return _answer(func)(*args, **(kwargs or {}))


_AGAIN = WithoutData()


@cache
def _answer(func: Any) -> Callable[..., Any]:
    """The function that stands in for the operation `func`."""
    if func in RULES:
        return RULES[func]
    kernels = [key for key in _MADE_OF_OTHERS if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key.name)]
    if kernels and kernels[0] == torch._C.DispatchKey.CompositeImplicitAutograd:
        return partial(_take_apart, func, kernels[0])
    shared = [result.alias_info for result in func._schema.returns]
    if func._schema.is_mutable and all(shared) and torch.Tag.inplace_view not in func.tags:
        return partial(_skip, _places_of(func))
    if any(shared):
        return partial(_view, func)
    return partial(_take_apart, func, kernels[0]) if kernels else partial(_ask_torch, func)


_MADE_OF_OTHERS = (
    torch._C.DispatchKey.CompositeImplicitAutograd,
    torch._C.DispatchKey.CompositeExplicitAutogradNonFunctional,
    torch._C.DispatchKey.CompositeExplicitAutograd,
)
"""torch's names for kernels that only call other operations, whatever the device."""


def _take_apart(func: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel that only calls other operations, which are answered in turn."""
    with _AGAIN:
        return func._op_dk(kernel, *args, **kwargs)


def _places_of(func: Any) -> list[tuple[int, str]]:
    """Position and name of the arguments that an operation returns."""
    places = {
        frozenset(argument.alias_info.before_set): (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info
    }
    return [places[frozenset(result.alias_info.before_set)] for result in func._schema.returns]


def _skip(places: Sequence[tuple[int, str]], *args: Any, **kwargs: Any) -> Any:
    """Return the arguments that an operation would write into and return."""
    written = tuple(args[i] if i < len(args) else kwargs[name] for i, name in places)
    return written if len(written) > 1 else written[0] if written else None


def _view(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation whose results share the storage of its argument, which takes no data."""
    with torch._C._DisableTorchDispatch():
        result = func(*args, **kwargs)
    return _dataless(result) if isinstance(result, Tensor) else [_dataless(view) for view in result]


def _dataless(view: Tensor) -> Tensor:
    return view if isinstance(view, DatalessTensor) else Tensor._make_subclass(DatalessTensor, view)


def _ask_torch(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Ask torch's meta device, which knows nearly every operation, but answers slowly."""

    def to_meta(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    def from_meta(value: Any) -> Any:
        return _empty_strided(value.shape, value.stride(), dtype=value.dtype) if isinstance(value, Tensor) else value

    args, kwargs = tree_map(to_meta, (args, kwargs))
    return tree_map(from_meta, func(*args, **kwargs))


def _empty_strided(shape: Sequence[int], stride: Sequence[int], *, dtype: Any = None, **_: Any) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    return Tensor._make_wrapper_subclass(DatalessTensor, shape, stride, dtype=dtype, device=_CPU)


def _empty(shape: Sequence[int], *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    dimensions = range(len(shape))
    channels_last = memory_format in (torch.channels_last, torch.channels_last_3d)
    return _in_order(shape, [0, *dimensions[2:], 1] if channels_last else dimensions, dtype)


def _in_order(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    """A tensor whose dimensions lie in memory in this order, without gaps."""
    stride, step = [0] * len(shape), 1
    for dimension in reversed(order):
        stride[dimension], step = step, step * max(shape[dimension], 1)
    return _empty_strided(shape, stride, dtype=dtype)


def _like(tensor: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    with _AGAIN:
        return torch.empty_like(tensor, memory_format=memory_format)


def _repeat(tensor: Tensor, times: Sequence[int]) -> Tensor:
    # torch's own kernel copies without asking again, so it cannot be taken apart.
    shape = [1] * (len(times) - tensor.ndim) + list(tensor.shape)
    return _empty([side * time for side, time in zip(shape, times, strict=True)], dtype=tensor.dtype)


def _convolution(maps: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    stride, padding, dilation, transposed, output_padding, groups = how
    sides = zip(maps.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True)
    if transposed:
        channels = weight.shape[1] * groups
        size = [(side - 1) * s - 2 * pad + d * (kernel - 1) + more + 1 for side, kernel, s, pad, d, more in sides]
    else:
        channels = weight.shape[0]
        size = [(side + 2 * pad - d * (kernel - 1) - 1) // s + 1 for side, kernel, s, pad, d, _ in sides]
    memory_format = _convolution_format(maps, weight, bias, *how, None)
    return _empty((len(maps), channels, *size), dtype=maps.dtype, memory_format=memory_format)


def _convolution_backward(grad: Tensor, maps: Tensor, weight: Tensor, bias_sizes: Any, *how: Any) -> list[Any]:
    *how, wanted = how  # type: ignore[assignment]
    memory_format = _convolution_format(maps, weight, None, *how, bias_sizes)
    results = (maps.shape, memory_format), (weight.shape, memory_format), (bias_sizes, None)
    return [
        _empty(shape, dtype=grad.dtype, memory_format=layout) if want else None
        for (shape, layout), want in zip(results, wanted, strict=True)
    ]


def _convolution_format(maps: Tensor, weight: Tensor, *how: Any) -> torch.memory_format:
    backend = torch._C._select_conv_backend(maps, weight, *how)
    return torch._C._conv_determine_backend_memory_format(maps, weight, backend)


def _group_norm(maps: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float) -> list[Tensor]:
    return [_like(maps), *_statistics((n, groups), maps, weight)]


def _batch_norm(
    maps: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any
) -> list[Tensor]:
    return [_like(maps), *_statistics((maps.shape[1],) if training else (0,), maps, weight)]


def _layer_norm(maps: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> list[Tensor]:
    apart = (*maps.shape[: maps.ndim - len(shape)], *(1 for _ in shape))
    return [_like(maps, torch.contiguous_format), *_statistics(apart, maps, weight)]


def _statistics(shape: Sequence[int], maps: Tensor, weight: Tensor | None) -> list[Tensor]:
    """Mean and deviation, in the format of the parameters."""
    dtype = maps.dtype if weight is None else weight.dtype
    return [_empty(shape, dtype=dtype) for _ in range(2)]


def _norm_backward(weight_at: int, layout: torch.memory_format, *args: Any) -> list[Tensor | None]:
    """Gradients of maps, weight and bias; `weight_at`: the weight's place among the arguments."""
    wanted, weight = args[-1], args[weight_at]
    results = (args[1], layout), (weight, torch.preserve_format), (weight, torch.preserve_format)
    return [_like(*result) if want else None for result, want in zip(results, wanted, strict=True)]


def _half_group_norm_backward(*args: Any) -> Any:
    with _AGAIN:
        return group_norm.half_backward_results(*args)


def _attention(query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    sums = _in_order(query.shape[:3], (0, 2, 1), torch.promote_types(query.dtype, torch.float32))
    return _like(query), sums


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> list[Tensor]:
    return [_in_order(each.shape, (0, 2, 1, 3), each.dtype) for each in (query, key, value)]


RULES: dict[Any, Callable[..., Any]] = {
    aten.empty.memory_format: _empty,
    aten.empty_strided.default: _empty_strided,
    aten.lift_fresh.default: _like,
    aten.repeat.default: _repeat,
    aten.relu.default: _like,
    aten.hardtanh.default: lambda maps, *_: _like(maps),
    aten.hardtanh_backward.default: lambda grad, maps, *_: _like(maps),
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: partial(_norm_backward, 4, torch.preserve_format),
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: partial(_norm_backward, 2, torch.preserve_format),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: partial(_norm_backward, 5, torch.contiguous_format),
    group_norm.HALF_BACKWARD: _half_group_norm_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
"""Operation → what it returns on the CPU, without data."""

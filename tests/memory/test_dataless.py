"""Operations without data against the same ones on real tensors: shape, format, layout and sharing of storages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.memory.dataless import DatalessTensor, WithoutData
from lowmem_brats.networks.group_norm import GroupNorm

CHANNELS, SIZE_HW = 8, (12, 10)
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def attention(maps_NCHW: Tensor) -> Tensor:
    tokens = maps_NCHW.flatten(2).transpose(1, 2).reshape(len(maps_NCHW), -1, 2, CHANNELS // 2).transpose(1, 2)
    return functional.scaled_dot_product_attention(tokens, tokens[:, :, ::2], tokens[:, :, ::2])


def written_into(maps_NCHW: Tensor) -> Tensor:
    return maps_NCHW.mul(2).add_(1).relu_()


def cut_apart(maps_NCHW: Tensor) -> Tensor:
    first, second = maps_NCHW.permute(0, 2, 3, 1).chunk(2, dim=-1)
    return torch.cat([first, second[:, 1:]], dim=1).unsqueeze(1).expand(-1, 3, -1, -1, -1).contiguous()


LAYERS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "convolution": lambda: nn.Conv2d(CHANNELS, 6, 3, padding=1),
    "strided convolution": lambda: nn.Conv2d(CHANNELS, 6, (3, 4), stride=(2, 3), padding=(0, 2), bias=False),
    "dilated convolution": lambda: nn.Conv2d(CHANNELS, 6, 3, dilation=2),
    "depthwise convolution": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "transposed convolution": lambda: nn.ConvTranspose2d(CHANNELS, 6, 3, stride=2, output_padding=1),
    "transposed in groups": lambda: nn.ConvTranspose2d(CHANNELS, 6, 2, stride=2, groups=2, bias=False),
    "group norm": lambda: nn.GroupNorm(4, CHANNELS),
    "our group norm": lambda: GroupNorm(4, CHANNELS),
    "batch norm": lambda: nn.BatchNorm2d(CHANNELS),
    "batch norm in use": lambda: nn.BatchNorm2d(CHANNELS).eval(),
    "layer norm": lambda: nn.LayerNorm([CHANNELS, *SIZE_HW]),
    "layer norm of views": lambda: nn.Sequential(nn.Flatten(2), nn.LayerNorm(SIZE_HW[0] * SIZE_HW[1])),
    "linear": lambda: nn.Linear(SIZE_HW[1], 5),
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "GELU": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "dropout": nn.Dropout2d,
    "pooling": lambda: nn.MaxPool2d(2),
    "interpolation": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "attention": lambda: attention,
    "written into": lambda: written_into,
    "cut apart": lambda: cut_apart,
}


def outlines(name: str, dtype: torch.dtype, layout: torch.memory_format) -> list[object]:
    """Shape, strides, format and bytes of the result of a layer and of its gradients, on what tensors there are."""
    layer = LAYERS[name]()
    maps_NCHW = torch.empty(2, CHANNELS, *SIZE_HW, dtype=dtype).to(memory_format=layout)
    maps_NCHW.requires_grad_()
    weights = []
    if isinstance(layer, nn.Module):
        layer.to(dtype, memory_format=layout)  # type: ignore[call-overload]
        weights = list(layer.parameters())
    result = layer(maps_NCHW)
    gradients = torch.autograd.grad(result.sum(), [maps_NCHW, *weights], allow_unused=True)
    return [
        (tuple(each.shape), each.stride(), each.dtype, each.untyped_storage().nbytes())
        for each in (result, *gradients)
        if each is not None
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_have_the_outlines_of_real_ones(
    name: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    with WithoutData():
        found = outlines(name, dtype, layout)
    assert found == outlines(name, dtype, layout)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("norm", [nn.GroupNorm(4, CHANNELS), nn.BatchNorm2d(CHANNELS)])
def test_statistics_of_half_precision_maps_have_the_format_of_the_weights(
    norm: nn.Module, weight_dtype: torch.dtype
) -> None:
    def statistics() -> list[torch.dtype]:
        maps_NCHW, weight_C = torch.ones(2, CHANNELS, 2, 2).bfloat16(), torch.ones(CHANNELS, dtype=weight_dtype)
        if isinstance(norm, nn.BatchNorm2d):
            results = torch.native_batch_norm(maps_NCHW, weight_C, weight_C, weight_C, weight_C, True, 0.1, 1e-5)
        else:
            results = torch.native_group_norm(maps_NCHW, weight_C, weight_C, 2, CHANNELS, 4, 4, 1e-5)
        return [each.dtype for each in results]

    with WithoutData():
        found = statistics()
    assert found == statistics() == [torch.bfloat16, weight_dtype, weight_dtype]


def test_any_size_takes_no_memory() -> None:
    with WithoutData():
        huge_NCHW = torch.zeros(1024, 1024, 1024, 1024) + 1
        assert huge_NCHW.untyped_storage().nbytes() == 4 * 1024**4
    assert isinstance(huge_NCHW, DatalessTensor)


def test_views_share_a_storage_and_results_do_not() -> None:
    with WithoutData():
        maps_NCHW = torch.ones(2, 3, 4, 4)
        storage = maps_NCHW.untyped_storage()._cdata
        same = maps_NCHW.flatten(2)[:, 1:], maps_NCHW.add_(1), maps_NCHW.detach(), *maps_NCHW.split(1)
        other = maps_NCHW + 1, maps_NCHW.clone(), maps_NCHW.transpose(1, 2).reshape(2, -1), maps_NCHW.half()
    assert {view.untyped_storage()._cdata for view in same} == {storage}
    assert storage not in {result.untyped_storage()._cdata for result in other}


def test_they_are_on_the_cpu_for_autocast_and_optimizers() -> None:
    with WithoutData(), torch.autocast("cpu", torch.bfloat16):
        maps_NCHW = torch.ones(1, 3, 4, 4)
        assert maps_NCHW.device.type == "cpu"
        assert functional.conv2d(maps_NCHW, torch.ones(2, 3, 3, 3)).dtype == torch.bfloat16


def test_a_value_cannot_be_read() -> None:
    with WithoutData(), pytest.raises(RuntimeError, match="cannot be called"):
        torch.ones(1).item()


def test_nothing_can_be_computed_outside() -> None:
    with WithoutData():
        maps_NCHW = torch.ones(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match=r"aten\.add.* outside WithoutData"):
        maps_NCHW + 1


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="torch 2.7 imports sympy by itself")
@pytest.mark.parametrize("network", ["'unet2d'", "'emcad-b0'"])
def test_a_plan_to_segment_imports_neither_torchs_compiler_nor_sympy(network: str) -> None:
    """Both take about a second."""
    program = f"""
import sys
from lowmem_brats.config import NetworkConfig
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.planner import plan_inference
plan_inference(NetworkConfig(name={network}), (32, 32), MemoryBudget(None), "cpu", "fp32")
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"

"""The format that the device computes fastest in is chosen, and one that it cannot compute in is refused."""

from __future__ import annotations

import pytest
import torch

from lowmem_brats import precision
from lowmem_brats.config import PRECISIONS
from lowmem_brats.errors import InputError
from lowmem_brats.precision import DTYPES, choose_precision, cpu_has_bf16

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
PASCAL, TURING, AMPERE, BLACKWELL = (6, 1), (7, 5), (8, 0), (12, 0)


@pytest.mark.parametrize(
    ("requested", "has_bf16", "chosen"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),  # never fp16: no processor is faster in it
        ("fp32", True, "fp32"),
        ("fp32", False, "fp32"),
        ("bf16", False, "bf16"),  # slow but right
        ("fp16", False, "fp16"),
        ("fp16", True, "fp16"),
    ],
)
def test_on_the_cpu(requested: str, has_bf16: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert choose_precision(requested, CPU) == chosen


@pytest.mark.parametrize(
    ("requested", "capability", "chosen"),
    [
        ("auto", PASCAL, "fp16"),
        ("auto", TURING, "fp16"),
        ("auto", AMPERE, "bf16"),
        ("auto", BLACKWELL, "bf16"),
        ("bf16", AMPERE, "bf16"),
        ("fp32", AMPERE, "fp32"),
        ("fp16", AMPERE, "fp16"),
        ("fp32", PASCAL, "fp32"),
    ],
)
def test_on_cuda(requested: str, capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(requested, CUDA) == chosen


def test_emulated_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: TURING)
    with pytest.raises(InputError, match=r"compute capability 8\.0 or more\. Use fp16\."):
        choose_precision("bf16", CUDA)


@pytest.mark.parametrize("requested", ["half", "", "FP16", "float16"])
def test_unknown_name(requested: str) -> None:
    with pytest.raises(InputError, match="--precision") as caught:
        choose_precision(requested, CPU)
    assert caught.value.found == repr(requested)
    assert all(name in caught.value.expected for name in PRECISIONS)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, False),
        ({"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}, False),
        ({"_is_avx512_bf16_supported": True, "_is_amx_tile_supported": False}, True),
        ({"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": True}, True),
        ({"_is_amx_tile_supported": True}, True),
    ],
)
def test_the_processor_is_asked_by_whatever_this_torch_offers(
    answers: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert cpu_has_bf16() is expected


def test_every_precision_but_auto_has_a_format() -> None:
    assert set(DTYPES) | {"auto"} == set(PRECISIONS)
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == {"fp32": 4, "fp16": 2, "bf16": 2}

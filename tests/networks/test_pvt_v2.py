"""PVT v2 is the published encoder, parameter for parameter and name for name, and its public weights load."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.errors import WeightsError
from lowmem_brats.networks.pvt_v2 import (
    B0,
    B2,
    EXPANSIONS,
    FIRST,
    HEADS,
    REDUCTIONS,
    Attention,
    LayerNorm,
    Layout,
    PVTv2,
    load_encoder,
    read_checkpoint,
)

TINY = Layout((4, 8, 20, 16), (1, 2, 1, 1))


def encoder_of(layout: Layout = TINY, channels: int = 4, seed: int = 0) -> PVTv2:
    """Return an encoder whose every parameter is drawn at random, biases and norms too."""
    torch.manual_seed(seed)
    encoder = PVTv2(layout, channels)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name and name.endswith("weight")))
    return encoder


def image(channels: int, height: int = 64, width: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# --- the published network ---


@pytest.mark.parametrize(
    ("layout", "channels", "parameters"),
    [
        (B0, 3, 3_409_760),  # the authors' count, without the classification head
        (B0, 4, 3_411_328),  # one more 7×7 kernel for each of 32 widths
        (B2, 3, 24_849_856),
        (B2, 4, 24_852_992),
    ],
)
def test_published_number_of_parameters(layout: Layout, channels: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(PVTv2(layout, channels)) == parameters


def test_published_number_of_parameters_part_by_part() -> None:
    with torch.device("meta"):
        stages = PVTv2(B0, channels=3).stages
    assert [count(stage.patch_embed) for stage in stages] == [4_800, 18_624, 92_640, 369_408]
    assert [count(stage.block) for stage in stages] == [178_432, 307_712, 837_120, 1_600_000]
    assert [count(stage.norm) for stage in stages] == [64, 128, 320, 512]
    assert [stage.block[0].attn.heads for stage in stages] == [1, 2, 5, 8], "of no parameters"


@pytest.mark.parametrize("layout", [B0, B2])
def test_names_are_those_of_the_public_checkpoints(layout: Layout) -> None:
    names = set[str]()
    for i, depth in enumerate(layout.depths, start=1):
        names |= {f"{layer}.{kind}" for layer in (f"norm{i}", f"patch_embed{i}.norm", f"patch_embed{i}.proj")
                  for kind in ("weight", "bias")}  # fmt: skip
        layers = ["norm1", "norm2", "attn.q", "attn.kv", "attn.proj", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
        layers += ["attn.sr", "attn.norm"] if i < 4 else []
        names |= {f"block{i}.{j}.{la}.{kind}" for j in range(depth) for la in layers for kind in ("weight", "bias")}
    with torch.device("meta"):
        assert set(PVTv2(layout).state_dict()) == names


@pytest.mark.parametrize("size_HW", [(64, 64), (96, 64), (32, 160)])
def test_four_maps_at_a_quarter_to_a_thirty_second(size_HW: tuple[int, int]) -> None:
    maps = PVTv2(B0)(image(4, *size_HW))
    height, width = size_HW
    assert [tuple(each.shape) for each in maps] == [
        (2, c, height // s, width // s) for c, s in zip((32, 64, 160, 256), (4, 8, 16, 32), strict=True)
    ]


def test_fresh_weights() -> None:
    torch.manual_seed(0)
    for name, layer in PVTv2(B0).named_modules():
        if isinstance(layer, nn.Linear):
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1), name
        elif isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] ** 2 * layer.out_channels / layer.groups
            assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        elif isinstance(layer, nn.LayerNorm):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight)), name
            in_block_or_last = ".norm1" in name or ".norm2" in name or name.startswith("norm")
            assert layer.eps == (1e-6 if in_block_or_last else 1e-5), name
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.LayerNorm):
            assert not layer.bias.any(), name  # type: ignore[union-attr]


# --- the mathematics, written once more with tokens [N, L, C] and explicit softmax ---


def plain_attention(state: Mapping[str, Tensor], tokens_NLC: Tensor, size_HW: tuple[int, int], i: int) -> Tensor:
    reduced_NLC, (n, _, c) = tokens_NLC, tokens_NLC.shape
    if REDUCTIONS[i] > 1:
        map_NCHW = tokens_NLC.transpose(1, 2).reshape(n, c, *size_HW)
        map_NCHW = functional.conv2d(map_NCHW, state["sr.weight"], state["sr.bias"], stride=REDUCTIONS[i])
        reduced_NLC = map_NCHW.flatten(2).transpose(1, 2)
        reduced_NLC = functional.layer_norm(reduced_NLC, (c,), state["norm.weight"], state["norm.bias"])
    query = tokens_NLC @ state["q.weight"].T + state["q.bias"]
    key = reduced_NLC @ state["kv.weight"][:c].T + state["kv.bias"][:c]
    value = reduced_NLC @ state["kv.weight"][c:].T + state["kv.bias"][c:]
    size, found = c // HEADS[i], []
    for head in range(HEADS[i]):
        own = slice(head * size, (head + 1) * size)
        weights = torch.exp(torch.einsum("nld,nmd->nlm", query[..., own], key[..., own]) / math.sqrt(size))
        found.append(torch.einsum("nlm,nmd->nld", weights / weights.sum(-1, keepdim=True), value[..., own]))
    return torch.cat(found, dim=-1) @ state["proj.weight"].T + state["proj.bias"]


def plain_stage(state: Mapping[str, Tensor], map_NCHW: Tensor, i: int, depth: int) -> Tensor:
    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}

    def norm(x_NLC: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        return functional.layer_norm(x_NLC, x_NLC.shape[2:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    embed = under(f"patch_embed{i + 1}.proj.")
    map_NCHW = functional.conv2d(map_NCHW, **embed, stride=2 if i else 4, padding=1 if i else 3)
    size_HW = (map_NCHW.shape[2], map_NCHW.shape[3])
    x_NLC = norm(map_NCHW.flatten(2).transpose(1, 2), f"patch_embed{i + 1}.norm", eps=1e-5)
    for j in range(depth):
        block = f"block{i + 1}.{j}"
        x_NLC = x_NLC + plain_attention(under(f"{block}.attn."), norm(x_NLC, f"{block}.norm1"), size_HW, i)
        mlp = under(f"{block}.mlp.")
        hidden = norm(x_NLC, f"{block}.norm2") @ mlp["fc1.weight"].T + mlp["fc1.bias"]
        hidden = hidden.transpose(1, 2).unflatten(2, size_HW)
        assert hidden.shape[1] == EXPANSIONS[i] * x_NLC.shape[2]
        hidden = functional.conv2d(
            hidden, mlp["dwconv.dwconv.weight"], mlp["dwconv.dwconv.bias"], padding=1, groups=hidden.shape[1]
        )
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
        x_NLC = x_NLC + hidden.flatten(2).transpose(1, 2) @ mlp["fc2.weight"].T + mlp["fc2.bias"]
    return norm(x_NLC, f"norm{i + 1}").transpose(1, 2).unflatten(2, size_HW)


def test_maps_are_those_of_the_plain_mathematics() -> None:
    encoder, expected = encoder_of().double(), image(4).double()
    maps = encoder(expected)
    for i, found in enumerate(maps):
        expected = plain_stage(encoder.state_dict(), expected, i, TINY.depths[i])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", range(4))
def test_attention_is_a_softmax(i: int) -> None:
    torch.manual_seed(i)
    width, size_HW = TINY.widths[i], (8, 16)
    attention = Attention(width, HEADS[i], REDUCTIONS[i]).double()
    features_NHWC = 3 * torch.randn(2, *size_HW, width, dtype=torch.float64)
    expected = plain_attention(attention.state_dict(), features_NHWC.flatten(1, 2), size_HW, i)
    torch.testing.assert_close(attention(features_NHWC).flatten(1, 2), expected, rtol=1e-9, atol=1e-9)


def test_layer_norm_keeps_the_format_under_autocast() -> None:
    features = image(4)
    layer = LayerNorm(features.shape[-1])
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(features.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(features), rtol=2**-7, atol=2**-6)


def test_stages_are_the_registered_parts_whatever_is_done_to_the_encoder() -> None:
    """They are not registered themselves, so that names stay the public ones."""
    original, other, batch = encoder_of(seed=0), encoder_of(seed=1), image(4)
    expected = [each.detach() for each in other(batch)]
    double = [each.detach() for each in encoder_of(seed=1).double()(batch.double())]
    twin = copy.deepcopy(original)
    twin.load_state_dict(other.state_dict(), assign=True)
    assert {id(p) for stage in twin.stages for p in stage.parameters()} == {id(p) for p in twin.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(twin(batch), expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(original(batch), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(twin.double()(batch.double()), double, strict=True))


# --- public weights ---


def public_checkpoint(encoder: PVTv2) -> dict[str, Tensor]:
    return dict(encoder.state_dict()) | {"head.weight": torch.ones(10, 16), "head.bias": torch.zeros(10)}


def test_rgb_checkpoint_answers_equal_modalities_as_a_grey_image(tmp_path: Path) -> None:
    rgb, four = encoder_of(channels=3, seed=2), encoder_of(channels=4, seed=3)
    torch.save(public_checkpoint(rgb), tmp_path / "pvt_v2.pth")
    load_encoder(four, read_checkpoint(tmp_path / "pvt_v2.pth"))
    grey_N1HW = image(1)
    for found, expected in zip(four(grey_N1HW.repeat(1, 4, 1, 1)), rgb(grey_N1HW.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    kernels = four.state_dict()[FIRST]
    assert all(torch.equal(kernels[:, 0], kernels[:, c]) for c in range(4))
    torch.testing.assert_close(kernels.sum(dim=1), rgb.state_dict()[FIRST].sum(dim=1))
    others = [key for key in rgb.state_dict() if key != FIRST]
    assert all(torch.equal(four.state_dict()[key], rgb.state_dict()[key]) for key in others)


@pytest.mark.parametrize("channels", [3, 4])
def test_weights_of_as_many_channels_are_taken_as_they_are(channels: int) -> None:
    source, target = encoder_of(channels=channels, seed=2), encoder_of(channels=channels, seed=3)
    load_encoder(target, public_checkpoint(source))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_half_weights_become_the_encoders_format() -> None:
    target = encoder_of(seed=3)
    load_encoder(target, {key: tensor.half() for key, tensor in encoder_of(seed=2).state_dict().items()})
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    torch.testing.assert_close(list(target.parameters()), list(encoder_of(seed=2).parameters()), rtol=1e-3, atol=1e-3)


def test_every_problem_is_named_and_nothing_is_loaded() -> None:
    encoder, weights = encoder_of(seed=3), public_checkpoint(encoder_of(channels=3, seed=2))
    del weights["norm4.bias"], weights["block1.0.attn.sr.weight"]
    weights |= {"block9.0.norm1.weight": torch.ones(4), "norm1.weight": torch.ones(5)}
    weights["norm2.weight"] = torch.full((8,), math.nan)
    weights[FIRST] = torch.ones(4, 3, 5, 5)
    with pytest.raises(WeightsError) as caught:
        load_encoder(encoder, weights)
    assert caught.value.where == "encoder weights"
    assert caught.value.found.split("; ") == [
        "block1.0.attn.sr.weight missing",
        "block9.0.norm1.weight unexpected",
        "norm1.weight (5,) instead of (4,)",
        "norm2.weight holds NaN or infinity",
        "norm4.bias missing",
        "patch_embed1.proj.weight (4, 4, 5, 5) instead of (4, 4, 7, 7)",
    ]
    fresh = encoder_of(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), fresh.parameters(), strict=True))


def test_another_variant_is_refused() -> None:
    with torch.device("meta"):
        larger = PVTv2(Layout(TINY.widths, (1, 2, 1, 2)))
    weights = {key: torch.zeros(tensor.shape) for key, tensor in larger.state_dict().items()}
    with pytest.raises(WeightsError, match=r"block4\.1\.attn\.kv\.bias unexpected"):
        load_encoder(encoder_of(), weights)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _truncated(path: Path) -> None:
    torch.save({"weight": torch.ones(500)}, path)
    path.write_bytes(path.read_bytes()[:-300])


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "FileNotFoundError"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.touch(), "EOFError"),
    "text": (lambda path: path.write_text("<html>404 Not Found</html>"), "cannot be read"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256)) * 9), "cannot be read"),
    "truncated": (_truncated, "cannot be read"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "cannot be read"),
    "code": (lambda path: torch.save({"a": Trap(path.with_name("trap"))}, path), "cannot be read"),
    "one tensor": (lambda path: torch.save(torch.ones(3), path), "cannot be read"),
    "list": (lambda path: torch.save([torch.ones(3)], path), "cannot be read"),
    "nested": (lambda path: torch.save({"state_dict": {"a": torch.ones(3)}}, path), "something else"),
    "integers": (lambda path: torch.save({"a": torch.ones(3, dtype=torch.long)}, path), "something else"),
    "nothing": (lambda path: torch.save({}, path), "something else"),
    "sparse": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "something else"),
    "without data": (lambda path: torch.save({"a": torch.ones(3, device="meta")}, path), "something else"),
    "eight bits": (lambda path: torch.save({"a": torch.ones(3).to(torch.float8_e5m2)}, path), "something else"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_checkpoint(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.pth"
    write, problem = UNREADABLE[kind]
    write(path)
    with pytest.raises(WeightsError, match=problem) as caught:
        read_checkpoint(path)
    assert caught.value.where == str(path)
    assert caught.value.advice == "Download or copy it again."
    assert not (tmp_path / "trap").exists()

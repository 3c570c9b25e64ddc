"""Every row of the table keeps the contract of `SliceNetwork`, and the U-Net is the one of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from each_network import EACH_NETWORK
from torch import nn

from lowmem_brats.config import MODALITIES, NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.networks import (
    SliceNetwork,
    adapted,
    build_network,
    has_width,
    mismatches,
    stride_of,
    title_of,
)

every_network = pytest.mark.parametrize("name", EACH_NETWORK)


def build(name: str, norm: str = "group", depth: int = 2, outputs: int = 1) -> SliceNetwork:
    """Return a tiny network where the size can be chosen, the same for the same arguments."""
    torch.manual_seed(0)
    return build_network(NetworkConfig(name=name, width=8, depth=depth, norm=norm, outputs=outputs))


def slices(n: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Return N slices of noise."""
    return torch.randn(n, len(MODALITIES), height, width, generator=torch.Generator().manual_seed(1))


@every_network
@pytest.mark.parametrize(("norm", "shape_HW"), [("group", (32, 96)), ("batch", (64, 64))])
def test_one_logit_per_pixel(name: str, norm: str, shape_HW: tuple[int, int]) -> None:
    network = build(name, norm).eval()
    logits_N1HW = network(slices(3, *shape_HW))
    assert logits_N1HW.shape == (3, 1, *shape_HW)
    assert logits_N1HW.dtype == torch.float32
    shifted = logits_N1HW - logits_N1HW.mean()
    assert shifted.min() < 0 < shifted.max()
    assert logits_N1HW.min() < 0, "logits, not the output of a ReLU or a sigmoid"
    assert 0.005 < torch.sigmoid(logits_N1HW).mean() < 0.2, "a fresh network expects little tumour"


@every_network
def test_three_outputs_share_all_but_the_head(name: str) -> None:
    one, three = build(name).eval(), build(name, outputs=3).eval()
    assert (one.outputs, three.outputs) == (1, 3)
    assert three(slices(2)).shape == (2, 3, 64, 64)
    count = [sum(p.numel() for p in network.parameters()) for network in (one, three)]
    head = sum(p.numel() for key, p in one.named_parameters() if key.startswith(("head", "layers.head")))
    assert count[1] - count[0] == 2 * head


@every_network
def test_norm_is_the_one_asked_for(name: str) -> None:
    for norm, there, absent in (("group", nn.GroupNorm, nn.BatchNorm2d), ("batch", nn.BatchNorm2d, nn.GroupNorm)):
        network = build(name, norm)
        assert any(isinstance(module, there) for module in network.modules())
        # TransUNet's encoder has group norm in every case.
        parts = [part for key, part in network.named_children() if key not in ("root", "blocks")]
        assert not any(isinstance(module, absent) for part in parts for module in part.modules())


@every_network
def test_stages_run_in_their_order_each_once(name: str) -> None:
    network, ran = build(name), []
    for stage, module in network.stages().items():
        module.register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    network(slices(1))
    assert ran == list(network.stages())


@every_network
@pytest.mark.parametrize("outputs", [1, 3])
def test_training_gives_maps_whose_sum_evaluation_gives(name: str, outputs: int) -> None:
    network, batch_NCHW = build(name, outputs=outputs), slices(2)
    maps, logits = network.train()(batch_NCHW), network.eval()(batch_NCHW)
    assert maps.shape[1] % outputs == 0
    together = maps.unflatten(1, (-1, outputs)).sum(dim=1)
    torch.testing.assert_close(together, logits, rtol=1e-4, atol=1e-4)


@every_network
def test_stages_hold_every_parameter_but_the_heads_and_what_stages_share(name: str) -> None:
    network = build(name)
    in_stages = [id(p) for stage in network.stages().values() for p in stage.parameters()]
    assert len(in_stages) == len(set(in_stages)), "a parameter belongs to two stages"
    assert set(in_stages) <= {id(p) for p in network.parameters()}
    outside = {key: p.numel() for key, p in network.named_parameters() if id(p) not in set(in_stages)}
    assert all("weight" in key or "bias" in key for key in outside)
    assert 0 < sum(outside.values()) < 0.01 * sum(p.numel() for p in network.parameters())


@every_network
def test_stride_is_enough_and_needed(name: str) -> None:
    network = build(name)
    stride = network.stride
    assert stride == stride_of(NetworkConfig(name=name, width=8, depth=2))
    # (1×, 3×) and not (1×, 1×): group norm wants more than one value in the lowest level.
    assert network.eval()(slices(1, stride, 3 * stride)).shape == (1, 1, stride, 3 * stride)
    with pytest.raises(RuntimeError):
        network(slices(1, 4 * stride, 4 * stride + stride // 2))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_unet_halves_as_often_as_it_is_deep(depth: int) -> None:
    assert build("unet2d", depth=depth).stride == 2**depth


@every_network
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradient_reaches_every_parameter(name: str, norm: str) -> None:
    network = build(name, norm)
    network(slices(2)).square().sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None]
    without = {key: p.numel() for key, p in network.named_parameters() if not p.grad.any()}  # type: ignore[union-attr]
    assert max(without.values(), default=0) <= 1, "only a bias that the norm after it takes off again"


@every_network
def test_a_slice_does_not_see_the_others(name: str) -> None:
    """Group norm: micro-batches give what the batch gives."""
    network, batch_NCHW = build(name).train(), slices(3)
    together = network(batch_NCHW)
    apart = torch.cat([network(one_1CHW) for one_1CHW in batch_NCHW.split(1)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    batch_NCHW[1:] *= 100
    torch.testing.assert_close(network(batch_NCHW)[0], together[0], rtol=1e-4, atol=1e-5)


@every_network
def test_permuted_slices_give_permuted_logits(name: str) -> None:
    network, batch_NCHW, order = build(name), slices(4), [2, 0, 3, 1]
    torch.testing.assert_close(network(batch_NCHW[order]), network(batch_NCHW)[order], rtol=1e-4, atol=1e-5)


@every_network
def test_every_modality_counts(name: str) -> None:
    network, batch_NCHW = build(name), slices(1)
    before = network(batch_NCHW)
    for channel in range(len(MODALITIES)):
        changed_NCHW = batch_NCHW.clone()
        changed_NCHW[:, channel] = changed_NCHW[:, channel].flip(-1)
        assert not torch.allclose(network(changed_NCHW), before), MODALITIES[channel]


@pytest.mark.parametrize("width", [32, 64])
def test_unet_has_the_papers_parameters(width: int) -> None:
    """Closed form for depth 4, w = width, level k of width 2^k·w (group norm: two per channel).

    encoder, first convolutions   9·4·w + 9·Σ_{k=1..4} 2^(2k−1)·w²  =   36 w + 1530 w²
    encoder, second ones                9·Σ_{k=0..4} 4^k·w²         =          3069 w²
    encoder, norms                      2·2·Σ_{k=0..4} 2^k·w        =  124 w
    decoder, up (4 taps, with bias)     Σ_{k=0..3} 8·4^k·w² + 2^k·w =   15 w +  680 w²
    decoder, convolutions               Σ_{k=0..3} (18 + 9)·4^k·w²  =          2295 w²
    decoder, norms                      2·2·Σ_{k=0..3} 2^k·w        =   60 w
    head                                w + 1
    """
    with torch.device("meta"):
        network = build_network(NetworkConfig(width=width))
    assert sum(p.numel() for p in network.parameters()) == 7574 * width**2 + 236 * width + 1


def test_unet_levels_double_and_skip() -> None:
    network, sizes = build("unet2d", depth=3), {}
    for stage, module in network.stages().items():
        module.register_forward_hook(lambda *io, stage=stage: sizes.update({stage: tuple(io[2].shape[1:])}))
    network(slices(1, 32, 48))
    assert sizes == {
        "down.0": (8, 32, 48),
        "down.1": (16, 16, 24),
        "down.2": (32, 8, 12),
        "down.3": (64, 4, 6),
        "up.0": (32, 8, 12),
        "up.1": (16, 16, 24),
        "up.2": (8, 32, 48),
    }


@pytest.mark.parametrize("name", [each for each in EACH_NETWORK if "transunet" not in str(each)])
def test_neighbours_count_from_where_training_goes_on(name: str) -> None:
    """A network that is widened gives what it gave, and its gradient reaches the neighbours' weights."""
    narrow, config = build(name), NetworkConfig(name=name, width=8, depth=2, context=2)
    wide = build_network(config).eval()
    assert (narrow.context, wide.context, config.channels) == (0, 2, 20)
    wide.load_state_dict(adapted(narrow.state_dict(), config))
    batch_NCHW = slices(2).repeat(1, 5, 1, 1)
    before = narrow.eval()(batch_NCHW[:, :4])
    torch.testing.assert_close(wide(batch_NCHW), before)
    (first,) = [w for w, n in zip(wide.parameters(), narrow.parameters(), strict=True) if w.shape != n.shape]
    assert not first[:, 4:].any()
    wide(batch_NCHW).sum().backward()
    assert all(first.grad[:, channel].any() for channel in range(20))


def test_transunet_sees_no_neighbours() -> None:
    with pytest.raises(InputError, match="--context: 1 for transunet"):
        NetworkConfig(name="transunet", context=1)


@pytest.mark.parametrize(
    ("name", "advice"), [("unet9", r"Did you mean 'unet2d' or 'nnunet'\?"), ("xyz", "Check the spelling")]
)
def test_unknown_name(name: str, advice: str) -> None:
    with pytest.raises(InputError, match=rf"network: '{name}'; expected one of unet2d.*{advice}"):
        build_network(NetworkConfig(name=name))


@every_network
def test_stride_of_allocates_nothing(name: str) -> None:
    deep = (
        8
        if name in ("resunet2d", "transbts2d-light", "transbts2d", "segresnet2d")
        else 16
        if name == "transunet"
        else 32
    )
    assert stride_of(NetworkConfig(name=name, width=2**17, depth=5)) == deep, "terabytes of it, where width has a say"
    assert not next(build(name).parameters()).is_meta, "and leaves torch's default device alone"


@every_network
def test_the_width_is_had_or_not(name: str) -> None:
    sizes = {sum(p.numel() for p in build_network(NetworkConfig(name=name, width=w)).parameters()) for w in (8, 16)}
    assert (len(sizes) == 2) == has_width(NetworkConfig(name=name))
    assert title_of(NetworkConfig(name=name, width=8)) == (f"{name} of width 8" if len(sizes) == 2 else name)


def test_a_network_without_a_public_encoder_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--encoder-weights: UNet2d"):
        build("unet2d").load_encoder(tmp_path / "pvt_v2_b0.pth")


def test_mismatches_are_all_named() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(1)}
    assert not mismatches(dict(wanted), wanted)
    found = {"a": torch.tensor([0.0, torch.inf]), "b": torch.zeros(3, 2), "d": torch.zeros(1)}
    expected = ["a holds NaN or infinity", "b (3, 2) instead of (2, 3)", "c missing", "d unexpected"]
    assert mismatches(found, wanted) == expected

"""A network without norms starts with standardised maps and sees no more than a pixel's surroundings."""

from __future__ import annotations

import torch
from torch import nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.networks import SliceNetwork, build_network, calibrate


def fresh(norm: str = "none", depth: int = 2) -> SliceNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig(width=8, depth=depth, norm=norm, outputs=3))


def slices(n: int = 6, side: int = 32) -> torch.Tensor:
    return 5 + 3 * torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(1))


def test_every_map_before_a_relu_is_standardised() -> None:
    network = fresh()
    calibrate(network, slices())
    seen = list[torch.Tensor]()
    for layer in network.convolutions():
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.clone()))
    network(slices())
    assert len(seen) == 2 * 5
    for output_NCHW in seen:
        deviation_C, mean_C = torch.std_mean(output_NCHW, dim=(0, 2, 3))
        torch.testing.assert_close(mean_C, torch.zeros_like(mean_C), atol=1e-4, rtol=0)
        torch.testing.assert_close(deviation_C, torch.ones_like(deviation_C), atol=1e-3, rtol=0)


def test_it_is_what_batch_norm_computes_of_the_same_slices() -> None:
    plain, normed = fresh(), fresh("batch").train()
    weights = [layer.weight.detach() for layer in plain.convolutions()]
    convolutions = [each for each in normed.modules() if isinstance(each, nn.Conv2d) and each.bias is None]
    for layer, weight in zip(convolutions, weights, strict=True):
        layer.weight = nn.Parameter(weight.clone())
    shared = {
        key: value for key, value in plain.state_dict().items() if ("up." in key and ".up." in key) or "head" in key
    }
    normed.load_state_dict(shared, strict=False)
    calibrate(plain, slices())
    torch.testing.assert_close(plain(slices()), normed(slices()), atol=1e-3, rtol=1e-3)


def test_a_constant_channel_stays_finite() -> None:
    network = fresh()
    first = network.convolutions()[0]
    with torch.no_grad():
        first.weight[0] = 0
    calibrate(network, slices())
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_networks_with_norms_are_left_as_they_are() -> None:
    network = fresh("group")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    calibrate(network, slices())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_part_of_a_slice_gives_what_the_whole_slice_gives() -> None:
    """Far enough from where it was cut: with two poolings no pixel sees further than 44 pixels."""
    network = fresh().eval()
    calibrate(network, slices())
    whole_1CHW = slices(1, 128)
    part = network(whole_1CHW[..., :64, :])
    torch.testing.assert_close(part[..., :16, :], network(whole_1CHW)[..., :16, :], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(part[..., 60:, :], network(whole_1CHW)[..., 60:64, :], atol=1e-4)

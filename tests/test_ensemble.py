"""Several networks as one: the mean of their logits, at the peak of one and the weights of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.memory.footprint import inference_footprint
from lowmem_brats.networks import Ensemble, SliceNetwork, build_network

CONFIG = NetworkConfig(width=8, depth=2, outputs=3, context=1)
CPU = torch.device("cpu")


def networks(count: int) -> list[SliceNetwork]:
    """Return networks of different weights."""
    torch.manual_seed(0)
    return [build_network(CONFIG).eval() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_logits_are_the_mean_of_the_members(count: int) -> None:
    members, slices_NCHW = networks(count), torch.randn(2, CONFIG.channels, 16, 24)
    with torch.inference_mode():
        found_NKHW = Ensemble(members)(slices_NCHW)
        wanted_NKHW = torch.stack([member(slices_NCHW) for member in members]).mean(dim=0)
    torch.testing.assert_close(found_NKHW, wanted_NKHW)
    assert count == 1 or not torch.allclose(found_NKHW, members[0](slices_NCHW), atol=0.01)


def test_it_is_built_from_its_configuration_like_its_members() -> None:
    built, alone = build_network(replace(CONFIG, members=2)), build_network(CONFIG)
    assert isinstance(built, Ensemble)
    for attribute in ("stride", "outputs", "context", "has_width"):
        assert getattr(built, attribute) == getattr(alone, attribute)
    assert [name.split()[0] for name in built.stages()] == ["0"] * len(alone.stages()) + ["1"] * len(alone.stages())
    parameters = sum(parameter.numel() for parameter in alone.parameters())
    assert sum(parameter.numel() for parameter in built.parameters()) == 2 * parameters


def test_a_further_member_needs_its_weights_and_one_more_map_of_logits() -> None:
    def count(members: int) -> tuple[int, int]:
        found = inference_footprint(replace(CONFIG, members=members), (64, 64), 2, torch.float32, CPU)
        return found.parameters, found.activations

    one, two, three = map(count, (1, 2, 3))
    assert (two[0], three[0]) == (2 * one[0], 3 * one[0])
    assert one[1] < two[1] == three[1] <= one[1] + 4 * 2 * 3 * 64 * 64


def test_members_are_trained_one_by_one() -> None:
    with pytest.raises(TypeError, match="not trained"):
        Ensemble(networks(2)).last_bias()
    with pytest.raises(InputError, match="network members: 0; expected 1 or more"):
        NetworkConfig(members=0)

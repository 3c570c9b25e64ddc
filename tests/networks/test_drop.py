"""What a network drops follows from each slice's seed, and nothing is dropped outside a training step."""

from __future__ import annotations

import pytest
import torch
from each_network import OF_PATCHES
from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.networks import NETWORKS, build_network
from lowmem_brats.networks.drop import Drop, SpatialDropout, StochasticDepth, dropping, set_rates


def dropped(place: Drop, rate: float, seeds: range | list[int], maps: Tensor | None = None) -> Tensor:
    """What one place makes of maps of 1."""
    place.rate = rate
    network = torch.nn.Sequential(place, torch.nn.Linear(1, 1))  # whose device is asked for
    with dropping(network) as draw:
        draw(seeds)
        return network[0](torch.ones(len(seeds), place.draws, 2, 3) if maps is None else maps)  # type: ignore[no-any-return]


def test_a_branch_is_left_out_of_whole_slices_and_what_is_kept_makes_up_for_it() -> None:
    maps = dropped(StochasticDepth(), 0.2, range(2000), torch.ones(2000, 5, 4))
    values = maps[:, 0, 0]
    assert torch.equal(maps, values[:, None, None].expand_as(maps))
    assert sorted(set(values.tolist())) == [0.0, 1.25]
    assert float((values == 0).float().mean()) == pytest.approx(0.2, abs=0.03)


def test_channels_are_left_out_of_a_slice_as_a_whole() -> None:
    maps = dropped(SpatialDropout(50), 0.5, range(40))
    values = maps[:, :, 0, 0]
    assert torch.equal(maps, values[:, :, None, None].expand_as(maps))
    assert sorted(set(values.flatten().tolist())) == [0.0, 2.0]
    assert float((values == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert len(torch.unique(values, dim=0)) == 40, "every slice loses others"


def test_what_a_slice_loses_follows_from_its_seed_alone() -> None:
    whole = dropped(SpatialDropout(20), 0.5, [7, 8, 9])
    assert torch.equal(
        torch.cat([dropped(SpatialDropout(20), 0.5, [7]), dropped(SpatialDropout(20), 0.5, [8, 9])]), whole
    )


def test_later_branches_are_left_out_more_often() -> None:
    network = build_network(NetworkConfig(name="emcad-b0"))
    set_rates(network, 0.16, 0.0)
    rates = [place.rate for place in network.modules() if isinstance(place, StochasticDepth)]
    assert rates == pytest.approx([0.01 * number for number in range(1, 17)])  # two branches in each of eight blocks


@pytest.mark.parametrize("name", ["unet2d", "emcad-b0", "resunet2d", "transbts2d-light"])
def test_evaluation_and_a_forward_pass_outside_a_step_drop_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(name=name, width=8)).train()
    slices_NCHW = torch.randn(2, 4, 64, 64)
    plain = network(slices_NCHW)
    rates = (0.0, 0.5) if name in ("unet2d", "resunet2d") else (0.5, 0.0)
    set_rates(network, *rates)
    assert torch.equal(network(slices_NCHW), plain)
    with dropping(network) as draw:
        draw([1, 2])
        assert not torch.equal(network(slices_NCHW), plain)
    assert torch.equal(network(slices_NCHW), plain)
    assert not [key for key in network.state_dict() if "drop" in key]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in OF_PATCHES])
def test_which_networks_have_a_place(name: str) -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(name=name))
    has = {
        "--stochastic-depth": name.startswith(("emcad", "trans")),
        "--spatial-dropout": name in ("unet2d", "resunet2d", "transbts2d", "transbts2d-light"),
    }
    for option, rates in (("--stochastic-depth", (0.1, 0.0)), ("--spatial-dropout", (0.0, 0.1))):
        if has[option]:
            set_rates(network, *rates)
            continue
        with pytest.raises(InputError, match=f"^{option}: 0.1 for .*, which has no place for it"):
            set_rates(network, *rates)

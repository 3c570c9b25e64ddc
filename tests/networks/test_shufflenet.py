"""The decision network has the parameters and operations of the paper's, and gives a score per choice at any size."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowmem_brats.networks.shufflenet import GMAC_PER_MEGAPIXEL, DecisionNetwork, Unit


def test_parameters_are_the_paper_s() -> None:
    for choices in (3, 5):
        network = DecisionNetwork(4, choices)
        assert sum(p.numel() for p in network.parameters()) == 64_940 + 256 * choices


@pytest.mark.parametrize(("side", "mmac"), [(128, 4.083), (240, 14.702)])
def test_operations_are_the_paper_s(side: int, mmac: float) -> None:
    network = DecisionNetwork(4, 5).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 4, side, side))
    assert counter.get_total_flops() / 2e6 == pytest.approx(mmac, abs=0.001)
    assert counter.get_total_flops() / 2e3 / side**2 == pytest.approx(GMAC_PER_MEGAPIXEL, rel=0.03)


def test_channels_are_shuffled() -> None:
    """Channels of the half that is kept are at the even places of the result."""
    unit = Unit(8, 8, 1).eval()
    features_NCHW = torch.arange(8.0)[None, :, None, None].expand(1, 8, 4, 4)
    assert unit(features_NCHW)[0, ::2, 0, 0].tolist() == [0, 1, 2, 3]
    assert Unit(8, 12, 2)(torch.zeros(1, 8, 6, 4)).shape == (1, 12, 3, 2)


@pytest.mark.parametrize("size_HW", [(17, 33), (32, 32), (160, 192)])
def test_any_size_gives_a_score_per_choice(size_HW: tuple[int, int]) -> None:
    assert DecisionNetwork(4, 3).eval()(torch.zeros(2, 4, *size_HW)).shape == (2, 3)

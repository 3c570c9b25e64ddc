"""The residual U-Net of Med-DANet and its transformers have the parameters and operations of the paper's members."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.networks import build_network
from lowmem_brats.networks.hybrid_vit import stretched
from lowmem_brats.networks.transbts2d import TABLE, Transformer

CLASSES = 4
"""Of the paper's head, where ours has a logit for each of three regions."""


@pytest.mark.parametrize(
    ("name", "width", "parameters", "gmac_128", "gmac_240"),
    [
        ("resunet2d", 12, 907_540, 0.574, 2.018),
        ("resunet2d", 16, 1_611_332, 1.017, 3.576),
        ("transbts2d-light", 16, 6_518_596, 2.305, 8.696),
        ("transbts2d", 16, 15_971_140, 4.922, 19.678),
    ],
)
def test_parameters_and_operations_are_those_of_the_paper_s_members(
    name: str, width: int, parameters: int, gmac_128: float, gmac_240: float
) -> None:
    with FakeTensorMode():
        network = build_network(NetworkConfig(name=name, width=width, norm="batch", outputs=3)).eval()
        assert sum(p.numel() for p in network.parameters()) + width + 1 == parameters
        for side, gmac in ((128, gmac_128), (240, gmac_240)):
            # In its plain form attention is two matrix products, which the counter knows.
            with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                network(torch.empty(1, 4, side, side))
            head = (CLASSES - 3) * width * side * side
            assert counter.get_total_flops() / 2e9 + head / 1e9 == pytest.approx(gmac, abs=0.0006)


def test_a_width_of_12_is_the_residual_u_net_s_only() -> None:
    assert build_network(NetworkConfig(name="resunet2d", width=12)).head.in_channels == 12
    with pytest.raises(InputError, match="multiple of 8"):
        NetworkConfig(width=12)
    with pytest.raises(InputError, match="multiple of 4"):
        NetworkConfig(name="resunet2d", width=10)


def test_the_position_table_is_stretched_over_other_sizes() -> None:
    transformer = Transformer(8, 1, "group")
    ramp_HW = torch.arange(TABLE, dtype=torch.float32).expand(TABLE, TABLE)
    with torch.no_grad():
        transformer.table_1EHW.copy_(ramp_HW.expand_as(transformer.table_1EHW))
    assert stretched(transformer.table_1EHW, torch.Size((TABLE, TABLE))) is transformer.table_1EHW
    wide_HW = stretched(transformer.table_1EHW, torch.Size((4, 2 * TABLE)))[0, 0]
    assert wide_HW.shape == (4, 2 * TABLE)
    torch.testing.assert_close(wide_HW[0, 1:-1], torch.arange(1, 2 * TABLE - 1) / 2 - 0.25)

"""Recomputing stages changes nothing but the memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from each_network import EACH_NETWORK
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.engine.recompute import recomputed
from lowmem_brats.networks import SliceNetwork, build_network


def network_of(name: str, norm: str, dtype: torch.dtype) -> SliceNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig(name=name, width=8, depth=2, norm=norm)).to(dtype).train()


def run(network: SliceNetwork, names: Sequence[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients and state after one forward and backward pass."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    slices = torch.randn(2, 4, 32, 64, generator=generator, dtype=dtype)
    target = (torch.rand(2, 1, 32, 64, generator=generator) < 0.3).to(dtype)
    with recomputed(network, names):
        find_loss("dice")(network(slices), target).backward()
    return [p.grad for p in network.parameters() if p.grad is not None], network.state_dict()


@pytest.mark.parametrize("name", EACH_NETWORK)
@pytest.mark.parametrize(("norm", "dtype"), [("group", torch.float32), ("batch", torch.float64)])
def test_gradients_and_running_statistics_are_the_plain_ones(name: str, norm: str, dtype: torch.dtype) -> None:
    stages = list(network_of(name, norm, dtype).stages())
    gradients, state = run(network_of(name, norm, dtype), ())
    for names in (stages, stages[1::2]):
        network = network_of(name, norm, dtype)
        found, found_state = run(network, names)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
        assert list(found_state) == list(state)
        assert all(torch.equal(found_state[key], state[key]) for key in state)


def test_running_statistics_do_move() -> None:
    """Else the test above could not fail."""
    network = network_of("unet2d", "batch", torch.float32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    _, after = run(network, list(network.stages()))
    norms = [key for key in before if "running" in key or "tracked" in key]
    assert norms
    assert not any(torch.equal(before[key], after[key]) for key in norms)


def test_stages_are_run_again_and_only_in_the_block() -> None:
    network = network_of("unet2d", "group", torch.float32)
    runs: list[str] = []
    for name, stage in network.stages().items():
        first = next(module for module in stage.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda *_, name=name: runs.append(name))
    run(network, ["down.0"])
    assert runs.count("down.0") == 2
    assert len(runs) == len(network.stages()) + 1
    runs.clear()
    run(network, ())
    assert runs == list(network.stages())


def test_nothing_is_left_behind() -> None:
    network = network_of("unet2d", "group", torch.float32)
    with pytest.raises(RuntimeError, match="stop"), recomputed(network, list(network.stages())):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in network.modules())


def test_dropout_draws_the_same_again() -> None:
    class Dropping(SliceNetwork):
        stride = 1

        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 1, 1))

        def stages(self) -> dict[str, nn.Module]:
            return {"stage": self.stage}

        def last_bias(self) -> nn.Parameter:
            return self.stage[-1].bias  # type: ignore[return-value]

        def forward(self, slices_NCHW: Tensor) -> Tensor:
            return self.stage(slices_NCHW)  # type: ignore[no-any-return]

    found = []
    for names in ((), ("stage",)):
        torch.manual_seed(0)
        found.append(run(Dropping(), names)[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_unknown_stage() -> None:
    with (
        pytest.raises(KeyError, match="sideways"),
        recomputed(network_of("unet2d", "group", torch.float32), ["sideways"]),
    ):
        pass

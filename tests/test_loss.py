"""Batch Dice against eq. 2 written out, and the exactness of its form over micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.loss import SMOOTH, backward_batch_dice, batch_dice, dice_sums
from lowmem_brats.networks import build_network

SLICES = 7


def by_the_paper(probability: Tensor, target: Tensor) -> float:
    """Eq. 2a–2c over the two channels, one term at a time."""
    loss = 0.0
    for p, g in ((probability, target), (1 - probability, 1 - target)):
        weight = 1 - float(g.sum()) / g.numel()
        loss += weight * (1 - (2 * float((p * g).sum()) + SMOOTH) / (float(p.sum()) + float(g.sum()) + SMOOTH))
    return loss


def random_batch(size: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Slices whose share of foreground differs from one to the next, the last without any."""
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(SLICES, 4, size, size, generator=generator, dtype=dtype)
    share = torch.linspace(0.6, 0, SLICES, dtype=dtype)[:, None, None, None]
    return slices, (torch.rand(SLICES, 1, size, size, generator=generator, dtype=dtype) < share).to(dtype)


def small_network(norm: str = "group") -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkConfig(width=8, depth=1, norm=norm)).double()


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def gradient_of(
    network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], factor: float = 1.0
) -> tuple[Tensor, float]:
    network.zero_grad()
    loss = backward_batch_dice(network, batches, lambda value: value * factor)
    return gradient(network), float(loss)


def micro_batches(slices: Tensor, target: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(slices.split(size), target.split(size), strict=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_batch_dice_is_the_papers() -> None:
    _, target = random_batch()
    logits = torch.randn(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(batch_dice(logits, target)) == pytest.approx(by_the_paper(torch.sigmoid(logits), target), rel=1e-12)


def test_perfect_prediction_costs_nothing_and_a_wrong_one_everything() -> None:
    _, target = random_batch()
    certain = (target * 2 - 1) * 1e3
    assert float(batch_dice(certain, target)) == pytest.approx(0, abs=1e-6)
    assert float(batch_dice(-certain, target)) == pytest.approx(1, abs=1e-3)


def test_half_logits_of_many_pixels_do_not_overflow() -> None:
    """Two 240×240 planes hold more pixels than fp16 can count."""
    logits = torch.full((2, 1, 240, 240), 20, dtype=torch.float16)
    target = torch.ones(2, 1, 240, 240)
    assert dice_sums(logits, target).tolist() == [115200, 115200, 115200]


@pytest.mark.parametrize("size", [1, 2, 3, 5, SLICES])
def test_micro_batches_give_the_full_batch_s_loss_and_gradient(size: int) -> None:
    slices, target = random_batch()
    network = small_network()
    network.zero_grad()
    loss = batch_dice(network(slices), target)
    loss.backward()
    expected = gradient(network)
    found, found_loss = gradient_of(network, micro_batches(slices, target, size))
    assert found_loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert relative_error(found, expected) < 1e-12


def test_naive_accumulation_is_wrong() -> None:
    """Averaging each micro-batch's own Dice is what the two passes are there to avoid."""
    slices, target = random_batch()
    network = small_network()
    expected, _ = gradient_of(network, [(slices, target)])
    network.zero_grad()
    for part, wanted in micro_batches(slices, target, 1):
        (batch_dice(network(part), wanted) / SLICES).backward()
    assert relative_error(gradient(network), expected) > 0.01


def test_batch_norm_is_not_exact() -> None:
    """The stated limit of the two passes; the planner gives such networks no micro-batches."""
    slices, target = random_batch()
    network = small_network("batch")
    expected, _ = gradient_of(network, [(slices, target)])
    found, _ = gradient_of(network, micro_batches(slices, target, 2))
    assert relative_error(found, expected) > 0.01


@pytest.mark.parametrize("size", [2, SLICES])
def test_the_scale_multiplies_the_gradient_and_not_the_loss(size: int) -> None:
    batches = micro_batches(*random_batch(), size)
    network = small_network()
    plain, loss = gradient_of(network, batches)
    scaled, scaled_loss = gradient_of(network, batches, 1024.0)
    assert scaled_loss == loss
    assert torch.equal(scaled, plain * 1024)


def test_autocast_gives_the_full_batch_s_gradient_up_to_its_rounding() -> None:
    slices, target = random_batch(dtype=torch.float32)
    network = small_network().float()

    def logits_of(part: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return network(part)  # type: ignore[no-any-return]

    found = []
    for size in (SLICES, 2):
        network.zero_grad()
        backward_batch_dice(logits_of, micro_batches(slices, target, size))
        found.append(gradient(network))
    assert relative_error(found[1], found[0]) < 0.02

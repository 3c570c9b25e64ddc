"""Every loss against its equations written out, and its exactness however a batch is cut or spread over processes."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import LOSSES, SMOOTH, backward_loss, find_loss, supervised_sets
from lowmem_brats.engine.step import split_batch
from lowmem_brats.errors import InputError
from lowmem_brats.networks import build_network

SLICES = 7
NAMES = (*LOSSES, "dice+ce")
BETA = 0.99999
THIRD = 1 / (1 + BETA + BETA**2)

every_loss = pytest.mark.parametrize("name", NAMES)
one_region_or_three = pytest.mark.parametrize("regions", [1, 3])


def pairs(p: Tensor, g: Tensor) -> list[tuple[float, float]]:
    return list(zip(p.flatten().tolist(), g.flatten().tolist(), strict=True))


def weighted_dice(p_NKHW: Tensor, g_NKHW: Tensor) -> float:
    """Eq. 2 term by term, and eq. 1 of one slice, of a region and its background; the mean over regions."""
    losses = []
    for k in range(p_NKHW.shape[1]):
        region = pairs(p_NKHW[:, k], g_NKHW[:, k])
        loss = 0.0
        for channel in (region, [(1 - p, 1 - g) for p, g in region]):
            overlap = sum(p * g for p, g in channel)
            predicted, own = map(sum, zip(*channel, strict=True))
            loss += (1 - own / len(channel)) * (1 - (2 * overlap + SMOOTH) / (predicted + own + SMOOTH))
        losses.append(loss)
    return fmean(losses)


def right(p_NKHW: Tensor, g_NKHW: Tensor) -> list[float]:
    """The probability of each pixel's right class."""
    return [p if g else 1 - p for p, g in pairs(p_NKHW, g_NKHW)]


def class_balanced(p_NKHW: Tensor, g_NKHW: Tensor) -> float:
    """Cui et al., eq. 2 with eq. 3's 1/E_n, per region: the mean over pixels that weigh α of their class."""
    losses = []
    for k in range(p_NKHW.shape[1]):
        pixels = pairs(p_NKHW[:, k], g_NKHW[:, k])
        costs = [[-log(p) for p, g in pixels if g], [-log(1 - p) for p, g in pixels if not g]]
        alpha = [(1 - BETA) / (1 - BETA ** max(len(own), 1)) for own in costs]
        weight = sum(a * len(own) for a, own in zip(alpha, costs, strict=True))
        losses.append(sum(a * sum(own) for a, own in zip(alpha, costs, strict=True)) / weight)
    return fmean(losses)


def squared_dice(p_NKHW: Tensor, g_NKHW: Tensor) -> float:
    """The mean over slices and regions of 1 − 2·Σ p·g / (Σ p² + Σ g² + 1e-5)."""
    losses = []
    for p_HW, g_HW in zip(p_NKHW.flatten(0, 1), g_NKHW.flatten(0, 1), strict=True):
        pixels = pairs(p_HW, g_HW)
        losses.append(1 - 2 * sum(p * g for p, g in pixels) / (sum(p * p + g * g for p, g in pixels) + 1e-5))
    return fmean(losses)


EQUATIONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "dice": weighted_dice,
    "slice-dice": lambda p_NKHW, g_NKHW: fmean(map(weighted_dice, p_NKHW.split(1), g_NKHW.split(1))),
    "squared-dice": squared_dice,
    "ce": lambda p_NKHW, g_NKHW: fmean(-log(r) for r in right(p_NKHW, g_NKHW)),
    "balanced-ce": class_balanced,
    "focal": lambda p_NKHW, g_NKHW: fmean(-((1 - r) ** 2) * log(r) for r in right(p_NKHW, g_NKHW)),
    "focal1": lambda p_NKHW, g_NKHW: fmean(-(1 - r) * log(r) for r in right(p_NKHW, g_NKHW)),
}


def random_batch(regions: int = 1) -> tuple[Tensor, Tensor]:
    """Slices whose share of foreground differs from one to the next and between regions; the last is without any."""
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(SLICES, 4, 16, 16, generator=generator, dtype=torch.float64)
    share = torch.linspace(0.6, 0, SLICES)[:, None, None, None] / torch.arange(1, regions + 1)[:, None, None]
    return slices, (torch.rand(SLICES, regions, 16, 16, generator=generator) < share).double()


def random_logits(regions: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SLICES, regions, 16, 16, generator=generator, dtype=torch.float64)


def small_network(regions: int = 1, norm: str = "group") -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkConfig(width=8, depth=1, norm=norm, outputs=regions)).double()


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def gradient_of(
    network: nn.Module, name: str, parts: list[tuple[Tensor, Tensor]], factor: int = 1
) -> tuple[Tensor, float]:
    network.zero_grad()
    loss = backward_loss(find_loss(name), network, parts, lambda value: value * factor)
    return gradient(network), float(loss)


def plain_gradient(network: nn.Module, name: str, slices: Tensor, target: Tensor) -> tuple[Tensor, float]:
    network.zero_grad()
    loss = find_loss(name)(network(slices), target)
    loss.backward()
    return gradient(network), float(loss.detach())


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of the batch, foreground: I 0.8, P 2, G 1; background: I 1.8, P 2, G 3.
        ("dice", 0.75 * (1 - 1.6001 / 3.0001) + 0.25 * (1 - 3.6001 / 5.0001)),
        # The first slice: I 0.8, P 1.3, G 1 and I 0.5, P 0.7, G 1; the second has no foreground, whose weight is 1.
        ("slice-dice", (0.5 * (1 - 1.6001 / 2.3001) + 0.5 * (1 - 1.0001 / 1.7001) + 1 - 0.0001 / 0.7001) / 2),
        ("ce", -(log(0.8) + log(0.5)) / 2),
        ("focal", -(0.04 * log(0.8) + 0.25 * log(0.5)) / 2),
        ("focal1", -(0.2 * log(0.8) + 0.5 * log(0.5)) / 2),
        # α is 1 of the one pixel and (1−β) / (1−β³) = 1 / (1+β+β²), about a third, of the other three.
        ("balanced-ce", -(log(0.8) + THIRD * (2 * log(0.5) + log(0.8))) / (1 + 3 * THIRD)),
    ],
)
def test_four_pixels_by_hand(name: str, expected: float) -> None:
    """Two slices of two pixels, one of the four in the region."""
    probability, target = torch.tensor([0.8, 0.5, 0.2, 0.5], dtype=torch.float64), torch.tensor([1, 0, 0, 0])
    loss = find_loss(name)(torch.logit(probability).reshape(2, 1, 1, 2), target.reshape(2, 1, 1, 2))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_three_regions_by_hand() -> None:
    """Regions of 3, 2 and 1 of 4 pixels, each with its background; p = 1/2 everywhere."""
    target = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).reshape(1, 3, 2, 2)
    costs = {pixels: 1 - (pixels + 0.0001) / (2 + pixels + 0.0001) for pixels in (1, 2, 3)}
    expected = (costs[3] / 4 + 3 * costs[1] / 4 + costs[2] + 3 * costs[1] / 4 + costs[3] / 4) / 3
    for name in ("dice", "slice-dice"):
        assert float(find_loss(name)(torch.zeros(1, 3, 2, 2).double(), target)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@one_region_or_three
@pytest.mark.parametrize("kind", ["some", "none", "all"])
def test_each_loss_is_its_equation(name: str, regions: int, kind: str) -> None:
    """Also with no foreground at all, and with nothing else; the gradient is then finite too."""
    target = random_batch(regions)[1]
    if kind != "some":
        target = torch.full_like(target, kind == "all")
    logits = random_logits(regions).requires_grad_()
    loss = find_loss(name)(logits, target)
    expected = EQUATIONS[name](torch.sigmoid(logits.detach()), target)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any() == (name != "squared-dice" or kind != "none")


@pytest.mark.parametrize("name", NAMES)
def test_a_crop_of_a_volume_counts_as_its_voxels_laid_out_in_a_plane(name: str) -> None:
    logits, target = random_logits(3), random_batch(3)[1]
    volume = SLICES, 3, 4, 8, 8
    expected = float(find_loss(name)(logits, target))
    assert float(find_loss(name)(logits.reshape(volume), target.reshape(volume))) == pytest.approx(expected, rel=1e-14)


def test_squared_dice_is_monais() -> None:
    losses = pytest.importorskip("monai.losses")
    theirs = losses.DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)
    logits, target = random_logits(3).reshape(SLICES, 3, 4, 8, 8), random_batch(3)[1].reshape(SLICES, 3, 4, 8, 8)
    assert float(find_loss("squared-dice")(logits, target)) == pytest.approx(float(theirs(logits, target)), rel=1e-12)


@one_region_or_three
def test_joined_losses_add_up(regions: int) -> None:
    logits, target = random_logits(regions), random_batch(regions)[1]
    parts = {name: float(find_loss(name)(logits, target)) for name in LOSSES}
    assert float(find_loss("+".join(LOSSES))(logits, target)) == pytest.approx(sum(parts.values()), rel=1e-14)
    assert float(find_loss("dice+ce")(logits, target)) == pytest.approx(parts["dice"] + parts["ce"], rel=1e-14)


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("tversky", "'tversky'"),
        ("dice+tversky", "'tversky'"),
        ("x+y", "'x'"),
        ("Dice", "'Dice'"),
        ("dice+", "''"),
        ("", "''"),
    ],
)
def test_an_unknown_loss_is_named_and_the_known_ones_listed(name: str, unknown: str) -> None:
    with pytest.raises(InputError, match=f"^--loss: {unknown}; expected {', '.join(LOSSES)}"):
        find_loss(name)


@one_region_or_three
@pytest.mark.parametrize(("name", "worst"), [("dice", None), ("slice-dice", None), ("ce", 1e3), ("focal", 1e3)])
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_most(name: str, regions: int, worst: float | None) -> None:
    """Of Dice 1, the sum of the weights of a region and its background; of the others the logit."""
    target = random_batch(regions)[1][:-1]  # each slice with some foreground
    certain = (target * 2 - 1) * 1e3
    assert float(find_loss(name)(certain, target)) == pytest.approx(0, abs=1e-12)
    assert float(find_loss(name)(-certain, target)) == pytest.approx(worst or 1, abs=1e-3)


@every_loss
@one_region_or_three
def test_the_order_of_the_slices_does_not_matter(name: str, regions: int) -> None:
    target, order = random_batch(regions)[1], torch.tensor([3, 6, 0, 5, 1, 4, 2])
    plain, mixed = random_logits(regions).requires_grad_(), random_logits(regions)[order].requires_grad_()
    losses = find_loss(name)(plain, target), find_loss(name)(mixed, target[order])
    torch.stack(losses).sum().backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-14)
    assert relative_error(mixed.grad, plain.grad[order]) < 1e-14


@every_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_a_target_may_have_any_format(name: str, dtype: torch.dtype) -> None:
    logits, target = random_logits(3), random_batch(3)[1]
    assert torch.equal(find_loss(name)(logits, target.to(dtype)), find_loss(name)(logits, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_of_many_pixels_do_not_overflow(dtype: torch.dtype) -> None:
    """Two 240×240 planes hold more pixels than fp16 can count, and more than bf16 can tell apart."""
    logits, target = torch.full((2, 1, 240, 240), 20, dtype=dtype), torch.ones(2, 1, 240, 240)
    (sums,) = find_loss("dice").terms(logits, target)
    assert sums.flatten().tolist() == [115200] * 4
    assert find_loss("balanced-ce").terms(-logits, target)[0].flatten().tolist() == [20 * 115200, 0, 115200, 0]
    for name in ("ce", "focal"):
        assert find_loss(name).terms(-logits, target)[0].tolist() == [20 * 115200, 115200]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    """All right, all wrong, or either at random."""
    target = random_batch(3)[1].float()
    for signs in (target * 2 - 1, 1 - target * 2, random_logits(3).sign()):
        logits = (signs * 1e3).to(dtype).requires_grad_()
        loss = find_loss(name)(logits, target)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


@every_loss
@one_region_or_three
def test_micro_batches_give_the_full_batch_s_loss_and_gradient(name: str, regions: int) -> None:
    """Slices one by one, in unequal parts, and all at once."""
    slices, target = random_batch(regions)
    network = small_network(regions)
    expected, loss = plain_gradient(network, name, slices, target)
    for size in (1, 5, SLICES):
        found, found_loss = gradient_of(network, name, split_batch(slices, target, size))
        assert found_loss == pytest.approx(loss, rel=1e-12)
        assert relative_error(found, expected) < 1e-12


@every_loss
@one_region_or_three
def test_two_processes_give_the_full_batch_s_loss_and_gradient(name: str, regions: int) -> None:
    """One has three slices in two micro-batches, the other four in one; `add_up` brings the other one's totals."""
    slices, target = random_batch(regions)
    network, loss = small_network(regions), find_loss(name)
    expected, expected_loss = plain_gradient(network, name, slices, target)
    shares = [split_batch(slices[:3], target[:3], 2), split_batch(slices[3:], target[3:], 4)]
    totals: list[list[Tensor]] = [[], []]
    for share, own in zip(shares, totals, strict=True):
        backward_loss(loss, network, share, add_up=lambda total, own=own: own.append(total.clone()))
    network.zero_grad()
    for share, others in zip(shares, map(iter, reversed(totals)), strict=True):
        value = backward_loss(loss, network, share, add_up=lambda total, others=others: total.add_(next(others)))
        assert float(value) == pytest.approx(expected_loss, rel=1e-12)
    assert relative_error(gradient(network), expected) < 1e-12


@one_region_or_three
def test_naive_accumulation_is_wrong(regions: int) -> None:
    """Averaging each micro-batch's own Dice is what the two passes are there to avoid."""
    slices, target = random_batch(regions)
    network = small_network(regions)
    expected, _ = plain_gradient(network, "dice", slices, target)
    network.zero_grad()
    for part, wanted in split_batch(slices, target, 1):
        (find_loss("dice")(network(part), wanted) / SLICES).backward()
    assert relative_error(gradient(network), expected) > 0.01


def test_batch_norm_is_not_exact() -> None:
    """The stated limit of the two passes; the planner gives such networks no micro-batches."""
    slices, target = random_batch()
    network = small_network(norm="batch")
    expected, _ = plain_gradient(network, "dice", slices, target)
    found, _ = gradient_of(network, "dice", split_batch(slices, target, 2))
    assert relative_error(found, expected) > 0.01


@every_loss
@pytest.mark.parametrize("size", [2, SLICES])
def test_the_scale_multiplies_the_gradient_and_not_the_loss(name: str, size: int) -> None:
    batches = split_batch(*random_batch(), size)
    network = small_network()
    plain, loss = gradient_of(network, name, batches)
    scaled, scaled_loss = gradient_of(network, name, batches, 1024)
    assert scaled_loss == loss
    assert torch.equal(scaled, plain * 1024)


def test_autocast_gives_the_full_batch_s_gradient_up_to_its_rounding() -> None:
    slices, target = (tensor.float() for tensor in random_batch())
    network = small_network().float()
    logits_of = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)(network.forward)
    found = []
    for size in (SLICES, 2):
        network.zero_grad()
        backward_loss(find_loss("dice"), logits_of, split_batch(slices, target, size))
        found.append(gradient(network))
    assert relative_error(found[1], found[0]) < 0.02


@pytest.mark.parametrize(
    ("maps", "regions", "sets"),
    [
        (1, 1, [(0,)]),
        (1, 3, [(0,)]),
        (4, 1, [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]),
        (2, 3, [(0,), (1,), (0, 1)]),
        (3, 2, [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]),
    ],
)
def test_sets_of_maps(maps: int, regions: int, sets: list[tuple[int, ...]]) -> None:
    assert supervised_sets(maps, regions) == sets


def test_of_four_maps_of_several_regions_every_set_is_judged() -> None:
    sets = supervised_sets(4, 3)
    assert len(sets) == len(set(sets)) == 15
    assert all(sum(m in chosen for chosen in sets) == 8 for m in range(4))


@every_loss
@one_region_or_three
def test_several_maps_cost_the_mean_over_their_sets(name: str, regions: int) -> None:
    target = random_batch(regions)[1]
    logits = random_logits(4 * regions).requires_grad_()
    loss = find_loss(name)
    found = loss(logits, target)
    maps = logits.unflatten(1, (4, regions))
    sets = supervised_sets(4, regions)
    expected = torch.stack([loss(maps[:, chosen].sum(dim=1), target) for chosen in sets]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(each, logits)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["dice", "dice+ce"])
@one_region_or_three
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_are_exact_with_several_maps(name: str, regions: int, size: int) -> None:
    slices, target = random_batch(regions)
    head = nn.Conv2d(4, 4 * regions, 3, padding=1).double()
    expected, value = plain_gradient(head, name, slices, target)
    found, loss = gradient_of(head, name, split_batch(slices, target, size))
    assert relative_error(found, expected) < 1e-12
    assert loss == pytest.approx(value, rel=1e-12)

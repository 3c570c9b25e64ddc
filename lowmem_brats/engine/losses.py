"""Losses that stay exact when a batch is cut into micro-batches or spread over processes.

Every loss here is a function of sums over the slices of a batch: `terms` computes the sums, which can be added up over
micro-batches, and `value` computes the loss from their totals. What is said of slices holds for crops of volumes too,
which have one axis more. If a network gives several maps of a region in training, the loss is taken of sums of these
maps. Sources: batch Dice and per-slice Dice, Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal
MRI-based Brain Tumor Segmentation", eq. 2 and 1, smoothing 1e-4; Dice with squared denominator, Milletari et al. 2016,
"V-Net", section 3, smoothed as by MONAI's recipe for SegResNet; class-balanced weights, Cui et al. 2019,
"Class-Balanced Loss Based on Effective Number of Samples", eq. 2; focal loss, Lin et al. 2017, eq. 4; several maps,
Rahman et al. 2024, "EMCAD", section 3. Shape suffixes: N slices in a batch, C modalities, K regions, M maps of each,
H W in-plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations, cycle
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lowmem_brats.errors import InputError, did_you_mean

SMOOTH = 1e-4
SMOOTH_SQUARED = 1e-5
BETA = 0.99999
"""β of the effective number of samples, where a sample is a pixel: counts far above 1 / (1 − β) no longer differ."""
GAMMA = 2.0
"""γ of the focal loss: the larger, the less do pixels count that are right already. With 1 it is `focal1`."""


def _weighted_dice(sums_4K: Tensor) -> Tensor:
    """Mean over regions of Σ w·(1 − Dice) over region and background: [4, ..., K] → [...].

    `sums_4K`: I = Σ p·g, P = Σ p, G = Σ g and the number of pixels. There are two channels, p and 1−p, as in the
    paper's U-Net 2C. Each is weighted by 1 − its share of the pixels, so the rarer one counts more (eq. 1a, 2a). All
    regions count alike: they overlap, so there is no common foreground that could be divided among them.
    """
    intersection, predicted, present, pixels = sums_4K
    missed = pixels - predicted - present + intersection
    loss = torch.zeros_like(present)
    for hit, found, wanted in ((intersection, predicted, present), (missed, pixels - predicted, pixels - present)):
        loss = loss + (1 - wanted / pixels) * (1 - (2 * hit + SMOOTH) / (found + wanted + SMOOTH))
    return loss.mean(dim=-1)


def _pixels(maps_NKHW: Tensor) -> tuple[int, ...]:
    """The axes of a slice, or of a crop of a volume."""
    return tuple(range(2, maps_NKHW.ndim))


def _sums(logits_NKHW: Tensor, target_NKHW: Tensor, over: tuple[int, ...]) -> Tensor:
    probability = torch.sigmoid(logits_NKHW)
    intersection = (probability * target_NKHW).sum(dim=over)
    pixels = torch.full_like(intersection, target_NKHW.numel() // intersection.numel())
    return torch.stack([intersection, probability.sum(dim=over), target_NKHW.sum(dim=over), pixels])


def dice_terms(logits_NKHW: Tensor, target_NKHW: Tensor) -> Tensor:
    """I = Σ p·g, P = Σ p, G = Σ g and the number of pixels, per region: [4, K]."""
    return _sums(logits_NKHW, target_NKHW, (0, *_pixels(logits_NKHW)))


def dice_value(totals_4K: Tensor) -> Tensor:
    """Batch Dice loss (eq. 2c), with all slices taken as one volume; 0 is perfect."""
    return _weighted_dice(totals_4K)


def slice_dice_terms(logits_NKHW: Tensor, target_NKHW: Tensor) -> Tensor:
    """Sum over slices of each slice's own Dice loss, and the number of slices: [2]."""
    losses_N = _weighted_dice(_sums(logits_NKHW, target_NKHW, _pixels(logits_NKHW)))
    return torch.stack([losses_N.sum(), losses_N.new_tensor(len(losses_N))])


def squared_dice_terms(logits_NKHW: Tensor, target_NKHW: Tensor) -> Tensor:
    """Sum over slices and regions of 1 − 2·Σ p·g / (Σ p² + Σ g²), and the number of terms: [2].

    A slice without a region has no part in the gradient of that region.
    """
    over = _pixels(logits_NKHW)
    probability = torch.sigmoid(logits_NKHW)
    intersection_NK = (probability * target_NKHW).sum(dim=over)
    squares_NK = probability.square().sum(dim=over) + target_NKHW.square().sum(dim=over)
    losses_NK = 1 - 2 * intersection_NK / (squares_NK + SMOOTH_SQUARED)
    return torch.stack([losses_NK.sum(), losses_NK.new_tensor(losses_NK.numel())])


def cross_entropy_terms(logits_NKHW: Tensor, target_NKHW: Tensor) -> Tensor:
    """Sum of −log(probability of the right class) over pixels and regions, and the number of terms: [2]."""
    total = functional.binary_cross_entropy_with_logits(logits_NKHW, target_NKHW, reduction="sum")
    return torch.stack([total, total.new_tensor(target_NKHW.numel())])


def focal_terms(logits_NKHW: Tensor, target_NKHW: Tensor, gamma: float = GAMMA) -> Tensor:
    """Sum of cross-entropy weighted by (1 − probability of the right class)^γ, and the number of terms: [2]."""
    towards_right = torch.where(target_NKHW > 0.5, logits_NKHW, -logits_NKHW)
    total = (torch.sigmoid(-towards_right) ** gamma * functional.softplus(-towards_right)).sum()
    return torch.stack([total, total.new_tensor(target_NKHW.numel())])


def mean_value(totals_2: Tensor) -> Tensor:
    """Mean: the sum divided by the number of terms."""
    return totals_2[0] / totals_2[1]


def balanced_terms(logits_NKHW: Tensor, target_NKHW: Tensor) -> Tensor:
    """Per region, cross-entropy summed over foreground and over background, and the pixel count of each: [4, K]."""
    background = 1 - target_NKHW
    parts = (
        functional.softplus(-logits_NKHW) * target_NKHW,
        functional.softplus(logits_NKHW) * background,
        target_NKHW,
        background,
    )
    return torch.stack([part.sum(dim=(0, *_pixels(part))) for part in parts])


def balanced_value(totals_4K: Tensor) -> Tensor:
    """Mean cross-entropy with pixels weighted by α = (1−β)/(1−β^n), n being the pixels of their class in the batch."""
    losses_2K, counts_2K = totals_4K[:2], totals_4K[2:]
    alpha_2K = (1 - BETA) / -torch.expm1(counts_2K.clamp_min(1) * math.log(BETA))
    return ((alpha_2K * losses_2K).sum(dim=0) / (alpha_2K * counts_2K).sum(dim=0)).mean()


Input = TypeVar("Input")
Terms = Callable[[Tensor, Tensor], Tensor]
Value = Callable[[Tensor], Tensor]
LOSSES: dict[str, tuple[Terms, Value]] = {
    "dice": (dice_terms, dice_value),
    "slice-dice": (slice_dice_terms, mean_value),
    "squared-dice": (squared_dice_terms, mean_value),
    "ce": (cross_entropy_terms, mean_value),
    "balanced-ce": (balanced_terms, balanced_value),
    "focal": (focal_terms, mean_value),
    "focal1": (partial(focal_terms, gamma=1.0), mean_value),
}


def supervised_sets(maps: int, regions: int) -> list[tuple[int, ...]]:
    """The sets of maps whose sums the loss is taken of, for M maps of each of K regions.

    For several regions: every non-empty set (MUTATION: 15 sets of 4 maps). For one region: each map alone, and all.
    """
    sizes = range(1, maps + 1) if regions > 1 else sorted({1, maps})
    return [chosen for size in sizes for chosen in combinations(range(maps), size)]


@dataclass(frozen=True)
class Loss:
    """A sum of losses from LOSSES, averaged over the sets of maps from `supervised_sets`."""

    parts: tuple[tuple[Terms, Value], ...]

    def terms(self, logits_NmHW: Tensor, target_NKHW: Tensor) -> list[Tensor]:
        """The sums that add up over slices: for every set of maps, one tensor per part of the loss.

        `logits_NmHW`: m = M·K maps, beginning with the first map of each region, in any float format; `target_NKHW`: 0
        or 1, on any device. The result is at least fp32, because sums over two 240×240 slices overflow fp16.
        """
        regions = target_NKHW.shape[1]
        if logits_NmHW.shape[1] == regions:
            return self._terms_of_sum(target_NKHW, logits_NmHW)
        maps = torch.split(logits_NmHW, regions, dim=1)
        # Recomputed, because what all sets keep for the backward pass would outweigh the network's own maps.
        again = partial(checkpoint, self._terms_of_sum, target_NKHW, use_reentrant=False, preserve_rng_state=False)
        return [term for chosen in supervised_sets(len(maps), regions) for term in again(*(maps[m] for m in chosen))]

    def _terms_of_sum(self, target_NKHW: Tensor, *maps_NKHW: Tensor) -> list[Tensor]:
        dtype = torch.promote_types(maps_NKHW[0].dtype, torch.float32)
        logits_NKHW = reduce(torch.add, (each.to(dtype) for each in maps_NKHW))
        target_NKHW = target_NKHW.to(logits_NKHW)
        return [terms(logits_NKHW, target_NKHW) for terms, _ in self.parts]

    def value(self, totals: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, from the totals of what `terms` returned."""
        values = [value(total) for (_, value), total in zip(cycle(self.parts), totals, strict=False)]
        return torch.stack(values).sum() * (len(self.parts) / len(values))

    def __call__(self, logits_NmHW: Tensor, target_NKHW: Tensor) -> Tensor:
        """The loss of one batch: a differentiable scalar."""
        return self.value(self.terms(logits_NmHW, target_NKHW))


def find_loss(name: str) -> Loss:
    """The loss called `name`: keys of LOSSES joined by `+`, such as `dice+ce`. Raises InputError for an unknown key."""
    unknown = [key for key in name.split("+") if key not in LOSSES]
    if unknown:
        expected = f"{', '.join(LOSSES)}, or several joined by +"
        advice = did_you_mean(unknown[0], LOSSES, "Use dice, as the paper does.")
        raise InputError("--loss", repr(unknown[0]), expected, advice)
    return Loss(tuple(LOSSES[key] for key in name.split("+")))


def backward_loss(
    loss: Loss,
    logits_of: Callable[[Input], Tensor],
    micro_batches: Sequence[tuple[Input, Tensor]],
    scale: Callable[[Tensor], Tensor] = lambda value: value,
    add_up: Callable[[Tensor], object] = lambda total: None,
) -> Tensor:
    """Compute the loss of all micro-batches as one batch, and add its exact gradient to the parameters' `grad`.

    `logits_of`: a network, slices_NCHW or another input → logits_NKHW; `micro_batches`: pairs of such an input and
    target_NKHW; `scale`: multiplies the loss before the gradient is taken (`GradScaler.scale`); `add_up`: adds the
    totals of other processes in place (the caller then has to add up the gradients too). Returns the loss, detached.

    Dice does not add up over micro-batches, but it is a function of sums that do. So the sums are added up first,
    without gradients. The derivative of the loss by these totals is the same for every micro-batch, and each
    micro-batch propagates it back through its own sums. This costs a second forward pass (none if there is only one
    micro-batch) and the memory of one micro-batch. It is exact for networks that give a slice the same logits in both
    passes and in which slices do not influence each other, so not with batch norm.
    """
    alone = len(micro_batches) == 1
    terms, totals = list[Tensor](), list[Tensor]()
    with torch.set_grad_enabled(alone):
        for inputs, target_NKHW in micro_batches:
            terms = loss.terms(logits_of(inputs), target_NKHW)
            totals = totals or [torch.zeros_like(term) for term in terms]
            for total, term in zip(totals, terms, strict=True):
                total += term.detach()
    for total in totals:
        add_up(total)
    value = loss.value([total.requires_grad_() for total in totals])
    slopes = torch.autograd.grad(scale(value), totals)
    if alone:
        torch.autograd.backward(terms, slopes)
        return value.detach()
    for inputs, target_NKHW in micro_batches:
        torch.autograd.backward(loss.terms(logits_of(inputs), target_NKHW), slopes)
    return value.detach()

"""Batch Dice: the Dice of all slices of a batch taken as one volume, exact however the batch is cut.

Source: Hashemi et al. 2022, "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation",
eq. 2a–2c, for the two channels p (foreground) and 1−p (background); smoothing 1e-4. The form over micro-batches is this
project's. Shape suffixes: N slices in a batch, C modalities, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMOOTH = 1e-4


def dice_sums(logits_N1HW: Tensor, target_N1HW: Tensor) -> Tensor:
    """The three sums that batch Dice is made of: I = Σ p·g, P = Σ p, G = Σ g, as one tensor [3].

    `logits_N1HW`: any float format; `target_N1HW`: 0 or 1. Summed in fp32 at least: two 240×240 slices overflow fp16.
    """
    wide = torch.promote_types(logits_N1HW.dtype, torch.float32)
    probability = torch.sigmoid(logits_N1HW.to(wide))
    target = target_N1HW.to(wide)
    return torch.stack([(probability * target).sum(), probability.sum(), target.sum()])


def batch_dice_of_sums(sums: Tensor, pixels: int) -> Tensor:
    """Batch Dice loss from `dice_sums` over `pixels` pixels in all; a scalar from 0 (perfect) to 1.

    Each channel weighs 1 − its share of the pixels (eq. 2a), so the rarer one counts more; the weights sum to 1.
    """
    intersection, predicted, present = sums
    foreground = (2 * intersection + SMOOTH) / (predicted + present + SMOOTH)
    missed = pixels - predicted - present + intersection
    background = (2 * missed + SMOOTH) / (2 * pixels - predicted - present + SMOOTH)
    share = present / pixels
    loss: Tensor = (1 - share) * (1 - foreground) + share * (1 - background)
    return loss


def batch_dice(logits_N1HW: Tensor, target_N1HW: Tensor) -> Tensor:
    """Batch Dice loss of one batch (eq. 2c): a differentiable scalar, fp32 or wider."""
    return batch_dice_of_sums(dice_sums(logits_N1HW, target_N1HW), target_N1HW.numel())


def backward_batch_dice(
    logits_of: Callable[[Tensor], Tensor],
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    scale: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """Batch Dice loss of all micro-batches taken as one batch; adds its exact gradient to the parameters.

    `logits_of`: a network, slices_NCHW → logits_N1HW; `micro_batches`: pairs of slices_NCHW and target_N1HW; `scale`:
    what the loss is multiplied by before the gradient is taken (`GradScaler.scale`). Returns the loss, detached.

    Dice does not add up over micro-batches, but it is a function of sums that do. So the sums are added up first,
    without gradients; the slope of the loss at the totals is then the same for every micro-batch, and each one
    back-propagates it through its own sums. That costs one more forward pass, at the memory of one micro-batch. It is
    exact for networks that treat slices apart and draw nothing at random: not with batch norm or dropout.
    """
    if len(micro_batches) == 1:
        slices_NCHW, target_N1HW = micro_batches[0]
        loss = batch_dice(logits_of(slices_NCHW), target_N1HW)
        scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    with torch.no_grad():
        totals = torch.stack([dice_sums(logits_of(slices), target) for slices, target in micro_batches]).sum(dim=0)
    totals.requires_grad_()
    loss = batch_dice_of_sums(totals, sum(target.numel() for _, target in micro_batches))
    (slope,) = torch.autograd.grad(scale(loss), totals)
    for slices_NCHW, target_N1HW in micro_batches:
        dice_sums(logits_of(slices_NCHW), target_N1HW).backward(slope)  # type: ignore[no-untyped-call]
    return loss.detach()

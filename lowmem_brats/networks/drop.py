"""Places where training drops parts of a network's maps at random. In evaluation, and by default, they do nothing.

Sources: Huang et al. 2016, "Deep Networks with Stochastic Depth" (whole branches of a slice, the later ones more
often); Tompson et al. 2015, "Efficient Object Localization Using Convolutional Networks" (whole channels of a slice).
What is kept is scaled so that its expectation stays the same.

What is dropped from a slice follows from a seed of that slice alone. So it is the same in every micro-batch, in both
passes over micro-batches, and when a stage is recomputed. Shape suffixes: N slices, C channels, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lowmem_brats.errors import InputError


class Drop(nn.Module):
    """One such place. It has no parameters, so that networks with and without it have the same weights."""

    def __init__(self, draws: int = 1) -> None:
        """`draws`: random numbers per slice."""
        super().__init__()
        self.draws, self.rate = draws, 0.0
        self.factors: Tensor | None = None
        """By what the maps are multiplied, [N, draws]; None outside a training step."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of N slices, in any shape that begins with [N, C] or, for a branch as a whole, with [N]."""
        if self.factors is None:
            return maps
        shape = self.factors.shape[:1] if self.draws == 1 else self.factors.shape
        return maps * self.factors.to(maps.dtype).reshape(*shape, *[1] * (maps.ndim - len(shape)))


class StochasticDepth(Drop):
    """Leaves out the branch of a residual block."""


class SpatialDropout(Drop):
    """Leaves out channels."""


def set_rates(network: nn.Module, stochastic_depth: float, spatial_dropout: float) -> None:
    """Set how often a network drops: `spatial_dropout` of the channels, and branches.

    Branch k of K is dropped in the share `stochastic_depth` · k / K of the slices. Raises InputError if a rate is more
    than 0 and the network has no such place.
    """
    kinds: tuple[type[Drop], ...] = (StochasticDepth, SpatialDropout)
    options = ("--stochastic-depth", "--spatial-dropout")
    for kind, option, rate in zip(kinds, options, (stochastic_depth, spatial_dropout), strict=True):
        places = [module for module in network.modules() if isinstance(module, kind)]
        if rate and not places:
            found = f"{rate} for {type(network).__name__}, which has no place for it"
            raise InputError(option, found, "0, or another network", "Leave the option out.")
        for number, place in enumerate(places, start=1):
            place.rate = rate * number / len(places) if kind is StochasticDepth else rate


@contextmanager
def dropping(network: nn.Module) -> Iterator[Callable[[Sequence[int]], None]]:
    """Inside the `with` block the network drops at random.

    The block's value must be called with the seeds of the slices before each forward pass; what follows from them holds
    for the backward pass too.
    """
    places = [module for module in network.modules() if isinstance(module, Drop) and module.rate]
    device = next(network.parameters()).device
    ends = np.cumsum([place.draws for place in places])

    def draw(seeds: Sequence[int]) -> None:
        drawn_ND = np.stack([np.random.default_rng(seed).random(ends[-1]) for seed in seeds])
        for place, end in zip(places, ends, strict=True):
            kept_ND = drawn_ND[:, end - place.draws : end] >= place.rate
            place.factors = torch.from_numpy(kept_ND / (1 - place.rate)).to(device, torch.float32)

    try:
        yield draw if places else lambda seeds: None
    finally:
        for place in places:
            place.factors = None

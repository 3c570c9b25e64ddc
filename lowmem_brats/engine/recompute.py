"""Recompute stages of a network in the backward pass instead of keeping their intermediate results.

This is done from outside: the network's own code needs no change, and its state dict stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lowmem_brats.networks import Network


@contextmanager
def recomputed(network: Network, names: Collection[str]) -> Iterator[None]:
    """Inside the `with` block, keep only the inputs of the stages called `names` and recompute the rest.

    The block must hold the forward and the backward pass. Gradients and batch norm's running statistics are those of
    the plain network. Raises KeyError for an unknown name.
    """
    stages = network.stages()
    chosen = [stages[name] for name in names]
    for stage in chosen:
        stage.forward = _recomputing(stage, stage.forward)
    try:
        yield
    finally:
        for stage in chosen:
            del stage.forward  # uncovers the method of the class


def _recomputing(stage: nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
    statistics = _FrozenStatistics(stage)
    draws = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in stage.modules())

    def forward(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        return checkpoint(
            plain,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=draws,
            context_fn=lambda: (nullcontext(), statistics),
        )

    return forward


class _FrozenStatistics:
    """Inside the `with` block batch norm normalises as usual but does not update its running statistics."""

    def __init__(self, stage: nn.Module) -> None:
        self._norms = [module for module in stage.modules() if isinstance(module, _BatchNorm)]
        self._kept: list[tuple[float | None, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        self._kept = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for norm, (momentum, batches) in zip(self._norms, self._kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches

"""How a network will run: the plan that is made before any image is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InferencePlan:
    """How slices go through a network."""

    device: str
    """As torch names it."""
    precision: str
    """`fp32`, `fp16` or `bf16`."""
    batch: int
    """Slices per forward pass."""

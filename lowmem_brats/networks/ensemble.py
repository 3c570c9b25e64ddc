"""Several networks of one kind used as one: their logits are averaged.

Source: Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
section 2.4; here logits are averaged instead of probabilities, as over views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lowmem_brats.networks.base import SliceNetwork


class Ensemble(SliceNetwork):
    """Networks that were trained separately and run one after another.

    In memory their weights add up, but their maps do not.
    """

    def __init__(self, members: Sequence[SliceNetwork]) -> None:
        super().__init__()
        first = members[0]
        self.stride, self.outputs = first.stride, first.outputs
        self.has_width, self.context = first.has_width, first.context
        self.members = nn.ModuleList(members)

    def stages(self) -> dict[str, nn.Module]:
        """The stages of all members, in order."""
        return {f"{n} {name}": stage for n, each in enumerate(self._members) for name, stage in each.stages().items()}

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """Mean logits [N, K, H, W]."""
        first, *others = self._members
        logits_NKHW: Tensor = first(slices_NCHW)
        for member in others:
            logits_NKHW = logits_NKHW + member(slices_NCHW)
        return logits_NKHW / len(self.members)

    def last_bias(self) -> nn.Parameter:
        """Raises TypeError: an ensemble has no bias of its own."""
        raise TypeError("an ensemble is not trained: its members are")

    @property
    def _members(self) -> list[SliceNetwork]:
        return [cast(SliceNetwork, member) for member in self.members]

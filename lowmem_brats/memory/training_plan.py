"""The ways in which a training step can be taken: what each concedes, and the crops of networks of patches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import InputError
from lowmem_brats.memory.concessions import stages_to_recompute, training_rows
from lowmem_brats.memory.footprint import treats_slices_apart
from lowmem_brats.memory.tiles import crops
from lowmem_brats.networks import PatchNetwork, patches_of


@dataclass(frozen=True)
class TrainPlan:
    """How a training step runs; its gradient is that of the whole batch in every plan, of the crops in this plan."""

    device: str
    """As torch names it."""
    precision: str
    """`fp32`, `fp16` or `bf16`; parameters stay fp32."""
    batch: int
    """Slices or crops per optimisation step."""
    micro_batch: int
    """Slices or crops on the device at once."""
    recompute: str = "none"
    """A key of RECOMPUTING."""
    stages: tuple[str, ...] = ()
    """The names of the stages that `recompute` stands for."""
    state_on_host: bool = False
    """Whether the optimizer's state lies in host memory."""
    relative_time: float = 1.0
    """Estimated time of a step, relative to a step without any limit; of crops, for as many voxels."""
    predicted_bytes: int = 0
    """Peak bytes of tensors; 0: not planned."""
    components: dict[str, int] = field(default_factory=dict)
    """Those bytes by kind: parameters, gradients, optimizer, activations."""
    reserve_bytes: int = 0
    """Bytes that are kept free for CUDA in addition."""
    crop_ZHW: tuple[int, ...] = ()
    """Voxels of a crop; empty: the network sees slices."""
    wanted_ZHW: tuple[int, ...] = ()
    """Those of the crop without any limit."""

    @property
    def smaller_crop(self) -> str:
        """In words, what a crop was wanted but did not fit; empty for none. It changes what is learnt."""
        crop, wanted = (" × ".join(map(str, sides)) for sides in (self.crop_ZHW, self.wanted_ZHW))
        return f"crops of {crop} voxels in place of {wanted}" if crop != wanted else ""

    @property
    def conceded(self) -> str:
        """In words, what has been conceded; empty for nothing."""
        what = "crops" if self.crop_ZHW else "slices"
        conceded = [self.smaller_crop] if self.smaller_crop else []
        conceded += [f"{self.micro_batch} of {self.batch} {what} at once"] if self.micro_batch < self.batch else []
        conceded += [f"recomputing {self.recompute} stages"] if self.recompute != "none" else []
        conceded += ["the optimizer's state in host memory"] if self.state_on_host else []
        return ", ".join(conceded)


def training_plans(
    network: NetworkConfig, size: tuple[int, ...], batch: int, device: str, precision: str
) -> list[TrainPlan]:
    """All ways, in the order in which to try them; arguments as `planner.plan_train`.

    Of slices the fastest first; of patches the largest crop first, and of one crop the fastest. What does not change
    what is learnt is so conceded before the crop. Raises InputError for a network that is not trained here.
    """
    where, dtype, patches = torch.device(device), DTYPES[precision], patches_of(network)
    rows = training_rows(batch, treats_slices_apart(network))
    sizes = [size]
    if patches:
        sizes = _crops(network, patches, size)
        rows = [row for row in rows if not row.state_on_host]  # beside a crop's maps, the state is small
    return [
        TrainPlan(
            device,
            precision,
            batch,
            row.micro_batch,
            row.recompute,
            stages_to_recompute(network, each, row.recompute, dtype, where),
            row.state_on_host,
            row.relative_time,
            crop_ZHW=each if patches else (),
            wanted_ZHW=sizes[0] if patches else (),
        )
        for each in sizes
        for row in rows
    ]


def _crops(network: NetworkConfig, patches: PatchNetwork, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The crops to try, from the largest down; of a network whose patch is set, this alone."""
    found = crops(patches, size)
    if not network.patch:
        return [*found]
    sides = sides_of(network.patch)
    if any(side % stride for side, stride in zip(sides, patches.stride_ZHW, strict=True)):
        expected = f"sides that are multiples of {' × '.join(map(str, patches.stride_ZHW))}"
        raise InputError("network patch", network.patch, expected, "Choose such a patch.")
    return [sides]

"""Run a network of patches over a volume and put its predictions together.

Patches overlap by half and count by a Gaussian around their middle, as in nnU-Net; a voxel that one patch alone saw has
that patch's logits. All is added up on the host in fp32, so the device holds one batch of patches.
Shape suffixes: C modalities, K regions or tissues, Z H W axial slices, rows and columns, n patches in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from lowmem_brats.data.slices import SliceStack, occupied
from lowmem_brats.data.whole import Box, box_of
from lowmem_brats.engine import step
from lowmem_brats.memory.device import PeakMeter, out_of_memory
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.memory.tiles import starts
from lowmem_brats.networks import PatchNetwork
from lowmem_brats.segment.stack import NotFinite, OnProgress, Prediction, empty_cache

SHARPNESS = 8
"""Sides of a patch in a standard deviation of the Gaussian; nnU-Net's."""

Floats = npt.NDArray[np.float32]


def predict_volume(
    network: PatchNetwork,
    stack: SliceStack,
    plan: InferencePlan,
    on_progress: OnProgress = lambda done, total: None,
) -> Prediction:
    """Segment a whole volume with a network that `segment.stack.place` has put where the plan wants it.

    `stack`: as `prepare_whole` makes it, or as `prepare` for a network trained here; `plan`: of patches. The logits are
    0 outside what the plan looks at. Raises BudgetError if a single patch does not fit, and NotFinite at the first
    batch with logits that are NaN or infinite.
    """
    field = box_of(stack.brain_ZHW) if plan.cropped else (slice(None), slice(None), slice(None))
    images_CZHW = stack.slices_ZCHW.swapaxes(0, 1)[(slice(None), *field)].astype(np.float32, copy=False)
    found = _Volume(network, images_CZHW, plan, on_progress)
    found.run()
    sum_KZHW = np.zeros((len(found.logits_KZHW), *stack.brain_ZHW.shape), np.float32)
    sum_KZHW[(slice(None), *field)] = found.logits_KZHW
    return Prediction(sum_KZHW, found.peak_bytes, found.plan.batch, occupied(stack.brain_ZHW, 1), found.voxels)


def gaussian(patch_ZHW: Sequence[int]) -> Floats:
    """What each voxel of a patch counts, [Z, H, W]: 1 in the middle, more than 0 everywhere."""
    along = [_bell(side) if side > 1 else np.ones(1) for side in patch_ZHW]
    weight_ZHW: Floats = np.einsum("z,h,w->zhw", *along).astype(np.float32)
    return np.maximum(weight_ZHW, np.finfo(np.float32).tiny)


def _bell(side: int) -> npt.NDArray[np.float64]:
    distance = np.arange(side) - side // 2
    return np.asarray(np.exp(-0.5 * (distance / (side / SHARPNESS)) ** 2))


class _Volume:
    """A volume while a network runs over it, and the logits added up so far."""

    def __init__(
        self, network: PatchNetwork, images_CZHW: Floats, plan: InferencePlan, on_progress: OnProgress
    ) -> None:
        self.plan, self.voxels, self.peak_bytes = plan, 0, 0
        self._network, self._on_progress = network, on_progress
        size_ZHW, patch_ZHW = images_CZHW.shape[1:], plan.patch_ZHW
        # Where the volume is smaller than a patch it lies in the patch's middle.
        missing = [max(patch - size, 0) for patch, size in zip(patch_ZHW, size_ZHW, strict=True)]
        self._images_CZHW: Floats = np.pad(images_CZHW, [(0, 0), *((each // 2, each - each // 2) for each in missing)])
        self._inside = tuple(slice(each // 2, each // 2 + size) for each, size in zip(missing, size_ZHW, strict=True))
        padded_ZHW = self._images_CZHW.shape[1:]
        self._corners = list(product(*map(starts, padded_ZHW, patch_ZHW)))
        maps = network.last_bias().numel()
        self._sum_KZHW, self._counted_ZHW = np.zeros((maps, *padded_ZHW), np.float32), np.zeros(padded_ZHW, np.float32)
        self._counts_ZHW = gaussian(patch_ZHW) if len(self._corners) > 1 else np.ones(padded_ZHW, np.float32)

    @property
    def logits_KZHW(self) -> Floats:
        """The mean logits of the volume."""
        return np.asarray(self._sum_KZHW[(slice(None), *self._inside)] / self._counted_ZHW[self._inside], np.float32)

    def run(self) -> None:
        """Run all patches."""
        meter = PeakMeter(torch.device(self.plan.device), *self._network.parameters(), *self._network.buffers())
        done = 0
        while done < len(self._corners):
            chosen = self._corners[done : done + self.plan.batch]
            try:
                # Measuring slows a pass. All batches have one shape, but for the last, which may be smaller.
                with meter if done == 0 else nullcontext():
                    self._add([self._place(corner) for corner in chosen])
                done += len(chosen)
                self._on_progress(done, len(self._corners))
                continue
            except torch.OutOfMemoryError as error:
                if self.plan.batch == 1:
                    raise out_of_memory(self.plan.device) from error
            # Only here, outside the except block, has the failed pass let go of its tensors.
            self.plan = replace(self.plan, batch=self.plan.batch // 2)
            empty_cache()
        self.peak_bytes = meter.peak_bytes

    def _place(self, corner_ZHW: Sequence[int]) -> Box:
        z, h, w = (slice(start, start + side) for start, side in zip(corner_ZHW, self.plan.patch_ZHW, strict=True))
        return z, h, w

    def _add(self, places: Sequence[Box]) -> None:
        """Run one batch of patches and add its logits."""
        order = tuple("ZHW".index(axis) for axis in self._network.axes)
        turn = (0, *(1 + axis for axis in order))
        back = (0, *(1 + order.index(axis) for axis in range(3)))
        patches = np.stack([self._images_CZHW[(slice(None), *place)].transpose(turn) for place in places])
        # In the network's format already, so that no fp32 copy stays beside its maps while it runs.
        given = torch.from_numpy(patches).to(next(self._network.parameters()).dtype)
        logits_n = step.predict_patches(self._network, given)
        if not logits_n.sum().isfinite():  # the sum of any NaN or infinity is one
            raise NotFinite
        for place, logits in zip(places, logits_n.numpy(), strict=True):
            self._sum_KZHW[(slice(None), *place)] += logits.transpose(back) * self._counts_ZHW
            self._counted_ZHW[place] += self._counts_ZHW
        self.voxels += patches[:, 0].size

"""How good each region of a result is likely to be, told from what the networks say of themselves.

Shape suffixes: Z slices of a case, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lowmem_brats.data.labels import Mask, Region
from lowmem_brats.weights.expected import DiceModel, Expected, log_odds

LOW = 0.7
"""Below this expected Dice a warning asks to look at the region."""


def features_of(logit_ZHW: npt.NDArray[np.float32], mask_ZHW: Mask, parent: int, voxel_mm3: float) -> dict[str, float]:
    """What tells the Dice of a region, by the names of `weights.expected.FEATURES`.

    agreement: log-odds of the Dice that the mask would have if the networks' probabilities were right,
    2·Σ p·m / (Σ p + Σ m); volume: its common logarithm, in mL; share: the common logarithm of the region's part of its
    parent, which holds `parent` voxels (of WT: of the brain). `logit_ZHW`: averaged over the views, 0 where none has
    looked; `mask_ZHW`: not empty.
    """
    seen_ZHW = logit_ZHW != 0
    p_n = 1 / (1 + np.exp(-logit_ZHW[seen_ZHW].astype(np.float64)))
    voxels = int(mask_ZHW.sum())
    agreement = 2 * float(p_n[mask_ZHW[seen_ZHW]].sum()) / (float(p_n.sum()) + voxels)
    return {
        "agreement": log_odds(agreement),
        "volume": float(np.log10(voxels * voxel_mm3 / 1000)),
        "share": float(np.log10(voxels / max(parent, 1))),
    }


def expect(
    models: Mapping[Region, DiceModel],
    logit_ZHW: Mapping[Region, npt.NDArray[np.float32]],
    masks: Mapping[Region, Mask],
    brain: int,
    voxel_mm3: float,
) -> dict[Region, Expected]:
    """The expected Dice of each region that was found; arguments as `features_of`.

    `masks`: region → mask, not nested yet; `brain`: its voxels.
    """
    found = {}
    mask_ZHW, parent = masks[Region.WT], brain
    for region in Region:
        mask_ZHW = mask_ZHW & masks[region]
        if region in models and mask_ZHW.any():
            found[region] = models[region].expect(features_of(logit_ZHW[region], mask_ZHW, parent, voxel_mm3))
        parent = int(mask_ZHW.sum())
    return found


def warnings_of(expected: Mapping[Region, Expected], models: Mapping[Region, DiceModel]) -> list[str]:
    """A sentence on each region that a person should look at."""
    texts = []
    for region in models:
        name = region.name
        if region not in expected:
            texts.append(f"{name}: nothing found, so nothing tells how sure that is: look for it")
            continue
        estimate = expected[region]
        if estimate.dice < LOW:
            between = f"{estimate.low:.2f} to {estimate.high:.2f} in four cases of five"
            texts.append(f"{name}: expected Dice {estimate.dice:.2f} ({between}): look at it")
        if estimate.strange:
            texts.append(f"{name}: {' and '.join(estimate.strange)} unlike any that the estimate was fitted on")
    return texts

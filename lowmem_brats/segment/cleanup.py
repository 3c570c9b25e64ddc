"""Remove findings that are doubtful.

Shape suffixes: Z slices of a case, H W in-plane.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lowmem_brats.data.labels import TOUCHING, Mask, Region


def drop_doubtful(
    logit_ZHW: Mapping[Region, npt.NDArray[np.float32]], least: float
) -> tuple[dict[Region, Mask], dict[Region, int]]:
    """Make masks of the three regions, without findings that are much more doubtful than the main tumour.

    The measure is the mean logit. A finding is doubtful if its mean logit is below `least` times that of the main
    tumour, the largest component of WT. Doubtful components of WT are removed. ET is removed as a whole if it is
    doubtful inside TC and WT; after fusion it then counts as core.
    `logit_ZHW`: region → logits, positive where the region was found, on one scale for all regions (such as sums over
    the same number of views); `least`: 0 to 1, 0 keeps everything.
    Returns new masks, and the number of voxels removed from WT and from ET. The rule is this project's own.
    """
    masks = {region: logit_ZHW[region] > 0 for region in Region}
    gone = {Region.WT: 0, Region.ET: 0}
    whole_ZHW = masks[Region.WT]
    if not least or not whole_ZHW.any():
        return masks, gone
    masks[Region.WT], needed = sure_islands(logit_ZHW[Region.WT], least)
    gone[Region.WT] = int(whole_ZHW.sum() - masks[Region.WT].sum())
    enhancing_ZHW = masks[Region.ET] & masks[Region.TC] & masks[Region.WT]
    if enhancing_ZHW.any() and logit_ZHW[Region.ET][enhancing_ZHW].mean(dtype=np.float64) < needed:
        masks[Region.ET][:] = False
        gone[Region.ET] = int(enhancing_ZHW.sum())
    return masks, gone


def sure_islands(logit_ZHW: npt.NDArray[np.float32], least: float) -> tuple[Mask, float]:
    """The components of positive logits whose mean logit is at least `least` times that of the largest one.

    Returns their mask, and the mean logit that was needed; 0 if no logit is positive.
    """
    found_ZHW = logit_ZHW > 0
    if not found_ZHW.any():
        return found_ZHW, 0.0
    component, voxels = _components(found_ZHW)
    mean_logit = np.bincount(component, logit_ZHW[found_ZHW]) / np.maximum(voxels, 1)
    needed = float(least * mean_logit[voxels.argmax()])
    sure_ZHW = found_ZHW.copy()
    sure_ZHW[found_ZHW] = (mean_logit >= needed)[component]
    return sure_ZHW, needed


def _components(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """For each voxel of the mask, the number of its component (from 1); for each number, its count of voxels."""
    # Counted over the mask only, because a copy of the whole volume in 64-bit integers would take 70 MB.
    component: npt.NDArray[np.int32] = ndimage.label(mask, TOUCHING)[0][mask]
    return component, np.bincount(component)

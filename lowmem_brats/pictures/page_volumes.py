"""The volumes of a case page: bytes in place of intensities, compressed, as text that stands in HTML.

Array axes are LPS, as `X` `Y` `Z`. A browser unpacks the text with its own DecompressionStream.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowmem_brats.pictures.curves import Bytes

EXTREMES = (0.1, 99.9)
"""Percentiles of the brain's intensities that get the bytes 1 and 255; a few bright vessels would take most steps."""
WINDOW = (1, 99)
"""Percentiles that are shown black and white at first."""
GZIP = 31
"""zlib's code for a gzip header around the largest window."""


@dataclass(frozen=True)
class Scale:
    """What bytes stand for: 0 background, 1 `low` or less, 255 `high` or more, even steps between."""

    low: float
    high: float
    """In the unit of the image."""
    window: tuple[float, float]
    """Intensities to show black and white at first."""


def scale_of(image_XYZ: npt.NDArray[np.float32]) -> Scale | None:
    """The scale that suits an image whose background is 0; None for one that is 0 everywhere."""
    values = image_XYZ[image_XYZ != 0]
    if not values.size:
        return None
    low, dark, bright, high = map(float, np.percentile(values, (EXTREMES[0], *WINDOW, EXTREMES[1])))
    if high <= low:  # a brain of one intensity
        low, high = low - 0.5, low + 0.5
    return Scale(low, high, (dark, bright) if dark < bright else (low, high))


def to_bytes(image_XYZ: npt.NDArray[np.float32], scale: Scale) -> Bytes:
    """Round intensities to the nearest of the scale's bytes."""
    steps_XYZ = (image_XYZ - np.float32(scale.low)) * np.float32(254 / (scale.high - scale.low))
    np.clip(steps_XYZ, 0, 254, out=steps_XYZ)
    steps_XYZ += 1.5  # from 1, and cutting off the rest then rounds
    steps_XYZ *= image_XYZ != 0
    return steps_XYZ.astype(np.uint8)


def pack(volume_XYZ: Bytes) -> str:
    """Compress a volume, X fastest, and write it in base64."""
    # Noise has few repeated strings but runs of zeros around it: RLE packs it as tightly as a search, sooner.
    packer = zlib.compressobj(wbits=GZIP, strategy=zlib.Z_RLE)
    packed = packer.compress(volume_XYZ.tobytes(order="F")) + packer.flush()
    return base64.b64encode(packed).decode()

"""lowmem-brats: brain tumour segmentation in BraTS MRI inside a memory budget. Importing it never imports torch.

The names in `__all__` are promised and described in docs/python.md; no other name of the package is.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lowmem_brats.api import (
        LowmemError,
        NetworkConfig,
        Segmentation,
        SegmentConfig,
        measure_label_map,
        plan_segmenting,
        plan_training,
        score_label_map,
        segment_tumour,
    )

__all__ = [
    "LowmemError",
    "NetworkConfig",
    "SegmentConfig",
    "Segmentation",
    "__version__",
    "measure_label_map",
    "plan_segmenting",
    "plan_training",
    "score_label_map",
    "segment_tumour",
]


def __getattr__(name: str) -> Any:
    """Import a promised name when it is first asked for. Raises AttributeError for any other."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lowmem_brats import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The promised names, also those that are not imported yet, so that editors complete them."""
    return sorted({*globals(), *__all__})

"""What a user or a weights file can set. Each setting stands in one place, with its option, help, default and check."""

from lowmem_brats.config.cohort import CohortConfig
from lowmem_brats.config.names import (
    BRAIN_SHAPE,
    BRATS_SHAPE,
    FUSIONS,
    LABELS,
    MODALITIES,
    NETWORKS,
    PRECISIONS,
    PREPROCESSING,
    PREPROCESSINGS,
)
from lowmem_brats.config.network import NetworkConfig
from lowmem_brats.config.prepare import PrepareConfig
from lowmem_brats.config.segment import SegmentConfig
from lowmem_brats.config.train import DICE, PRESETS, Objective, Preset, TrainConfig, without_former

__all__ = [
    "BRAIN_SHAPE",
    "BRATS_SHAPE",
    "DICE",
    "FUSIONS",
    "LABELS",
    "MODALITIES",
    "NETWORKS",
    "PRECISIONS",
    "PREPROCESSING",
    "PREPROCESSINGS",
    "PRESETS",
    "CohortConfig",
    "NetworkConfig",
    "Objective",
    "PrepareConfig",
    "Preset",
    "SegmentConfig",
    "TrainConfig",
    "without_former",
]

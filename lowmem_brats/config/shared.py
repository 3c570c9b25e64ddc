"""What several configurations say alike: headings of the help, checks, and settings of both `segment` and `train`."""

from __future__ import annotations

from lowmem_brats.config.names import LABELS, PRECISIONS
from lowmem_brats.config.setting import Check, Setting, words

MAIN = "Main options"
INPUT, RESULT, RESOURCES, MANY = "Input", "Result", "Resources", "Many cases"
"""Further headings in the help of `segment`."""
NETWORKS, OPTIMISATION, DATA, EXPERT = "Networks", "Optimisation", "Data and split", "Expert"
"""Further headings in the help of `train`."""

FROM_0 = Check("0 or more", lambda value: value >= 0)
FROM_1 = Check("1 or more", lambda value: value >= 1)
POSITIVE = Check("more than 0", lambda value: value > 0)
SHARE = Check("0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = Check("0 or more and less than 1", lambda value: 0 <= value < 1)

DEVICE = Setting(
    "--device",
    "Where to compute. auto: a usable CUDA card, else the CPU.",
    RESOURCES,
    metavar="auto|cpu|cuda[:N]",
)
PRECISION = Setting(
    "--precision",
    "Floating-point format. auto: a half format if the device has hardware for it, else fp32.",
    RESOURCES,
    choices=words(*PRECISIONS),
)
VRAM = Setting(
    "--vram",
    "Memory budget; G means GiB. On a card it includes CUDA; on the CPU it is for live tensors only.",
    RESOURCES,
    metavar="2G|1536M|75%|max",
)
LABEL_CONVENTION = Setting(
    "--labels",
    "Label convention: ET is 4 in brats2020 and 3 in brats2023; msd is brats2023 with 1 and 2 swapped.",
    RESULT,
    choices=words(*LABELS),
)

"""What a user or a weights file can set: frozen dataclasses, defaults written once and read by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_brats.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The channels C of every array and network, in this order."""

PREPROCESSING = "zscore-brain"
"""Name of the intensity scheme: z-score per modality over its non-zero voxels, background 0 (stored with weights)."""

BRATS_SHAPE = (240, 240, 155)
"""Voxels X, Y, Z of a BraTS volume, 1 mm each."""

FORMER: dict[str, object] = {"members": 1, "transplant": 0.0}
"""Settings that weights and trainings of earlier versions hold, with the only value that still has a meaning."""

PRESETS: dict[str, dict[str, object]] = {
    "three-views": {"mode": "one-network", "width": 24, "views": 3, "loss": "dice+ce"},
    "emcad": {
        "network": "emcad-b0",
        "loss": "dice+ce",
        "batch": 6,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
    },
}
"""Options of `train` set together: network and loss of the shipped weights; the recipe of Uzor et al. for EMCAD."""

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
SCHEDULES = ("cosine", "plateau")


def without_former(settings: Mapping[str, object]) -> dict[str, Any]:
    """Stored settings without those of FORMER that have no effect; any other stays, for the class to refuse."""
    return {key: value for key, value in dict(settings).items() if key not in FORMER or value != FORMER[key]}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything needed to build a network; stored in the header of its weights file."""

    name: str = "unet2d"
    """A row of `networks.NETWORKS`."""
    width: int = 32
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Number of 2×2 poolings; H and W must be multiples of 2^depth."""
    norm: str = "group"
    """`group` (8 groups), `none` (the U-Net only, started by `networks.calibrate`) or `batch` (as in the paper)."""
    outputs: int = 1
    """Logit maps: 1 for one region's network; 3 for one network of WT, TC and ET (the paper's U-Net 3C)."""
    views: int = 1
    """From how many sides it sees a volume, one after another: 1 axial; 2 coronal too; 3 sagittal too."""
    context: int = 0
    """How many slices before each and as many after it are further channels of the network's input."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise InputError("network width", str(self.width), "a positive multiple of 8", "Use 16, 24 or 32.")
        if not 1 <= self.depth <= 5:
            raise InputError("network depth", str(self.depth), "1 to 5 poolings", "Use 4, as the paper does.")
        if self.norm not in ("group", "none", "batch") or (self.norm == "none" and self.name != "unet2d"):
            expected = "'group', 'batch', or 'none' for a U-Net"
            raise InputError("network norm", f"{self.norm!r} for {self.name}", expected, "Use 'group'.")
        if self.outputs not in (1, 3):
            raise InputError("network outputs", str(self.outputs), "1 region or 3", "Use 1.")
        if not 1 <= self.views <= 3:
            raise InputError("network views", str(self.views), "1 to 3", "Use 1, axial slices only.")
        if not 0 <= self.context <= 3:
            raise InputError("network context", str(self.context), "0 to 3 slices", "Use 0, each slice alone.")

    @property
    def channels(self) -> int:
        """Of the network's input: those of a slice, then those of its neighbours."""
        return len(MODALITIES) * (1 + 2 * self.context)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How to segment a case."""

    weights: str | Sequence[str] = ()
    """A shipped set's name, a folder with an index.json, or several, which share the views; none: the shipped ones."""
    device: str = "auto"
    """`auto` (CUDA when usable, else CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: str = "auto"
    """One of PRECISIONS."""
    vram: str = "max"
    """Memory budget such as 2G, 512M, 75% or max: for everything on a card, for live tensors on the CPU."""
    labels: str = "brats2020"
    """Label convention of the result, a key of `labels.CONVENTIONS`."""
    min_confidence: float | None = None
    """Of islands and of enhancing tumour, as a share of the main tumour's mean logit (`drop_doubtful`); 0: keep all.
    None: as the weights say."""
    tta: bool = False
    """Segment axial and coronal slices mirrored left to right too and average: five passes in place of three."""
    fast: bool = False
    """See axial slices only, by the first set, whatever the network can see."""
    narrow: bool = True
    """Run coarsely first, then only around what was found (`routing`)."""

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InputError("--min-confidence", str(self.min_confidence), "0 to 1", "Use 0 to keep everything.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train the networks of a set; together with the data it decides every weight."""

    network: NetworkConfig = NetworkConfig()
    """The architecture of each region's network; with three `outputs` there is one network for all regions."""
    regions: tuple[str, ...] = ("wt", "tc", "et")
    """Which regions' networks to train."""
    loss: str = "dice"
    """Keys of `loss.LOSSES` joined by `+`: the sum of them."""
    balance: bool = True
    """Draw small cases and slices with tumour more often than their share of the slices."""
    augment: bool = True
    """Warp the training slices and change their contrast at random."""
    modality_dropout: float = 0.1
    """Share of training slices that lose one or two modalities, so that a missing one is survivable; with `augment`."""
    epochs: int = 80
    """Passes over the training slices per network (80 in the paper)."""
    max_seconds: float | None = None
    """Time limit for all networks together; the learning rate still decays. None: no limit."""
    patience: int | None = None
    """Stop a network after so many epochs without a better validation Dice. None: never."""
    batch: int = 10
    """Slices per optimisation step (10 in the paper)."""
    window: int = 0
    """Side in pixels of the windows that a step sees of its slices, mostly around the tumour; 0: whole slices."""
    learning_rate: float = 1e-3
    """Largest step size."""
    schedule: str = "cosine"
    """`cosine`: to zero along a half cosine; `plateau`: halved after 5 epochs without a better validation Dice."""
    warmup: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """Of AdamW; 0 is Adam."""
    clip_norm: float = 12.0
    """Longer gradients are shortened to it."""
    finetune: str | None = None
    """A weights set to start from, a shipped one's name or a folder. None: fresh weights."""
    encoder_weights: str | None = None
    """A public checkpoint of the network's encoder to start that from. None: fresh weights."""
    average: float = 0.99
    """Decay of the weights' moving average, which is validated and kept, per 10 steps; 0: no average."""
    validation: float = 0.1
    """Fraction of patients held out to choose the best epoch; 0: none, the last epoch is kept."""
    test: float = 0.1
    """Fraction of patients held out to be scored once at the end; 0: none."""
    fold: tuple[int, int] | None = None
    """(k, n): validate on fold k, from 1, of n folds of the patients that are not held out for the test."""
    allow_missing: tuple[str, ...] = ()
    """Modalities that a case may lack; zeros take their place. A case that lacks another is left out."""
    strict: bool = False
    """Refuse to train where a case cannot be read, instead of leaving it out."""
    precision: str = "auto"
    """`auto`: the device's half format, with fp32 while training is unstable; else one format throughout."""
    device: str = "auto"
    """As in SegmentConfig."""
    vram: str = "max"
    """As in SegmentConfig; any plan gives the gradient of the whole batch."""
    labels: str = "brats2020"
    """Label convention of the training cases."""
    seed: int = 0
    """Split, initial weights, order and augmentation follow from it."""

    def __post_init__(self) -> None:
        where = {
            "--epochs": (self.epochs, self.epochs >= 1, "1 or more"),
            "--batch": (self.batch, self.batch >= 1, "1 or more"),
            "--window": (self.window, self.window % 16 == 0 and self.window >= 0, "a multiple of 16, or 0"),
            "--max-time": (self.max_seconds, self.max_seconds is None or self.max_seconds > 0, "more than 0"),
            "--patience": (self.patience, self.patience is None or self.patience >= 1, "1 or more"),
            "--learning-rate": (self.learning_rate, self.learning_rate > 0, "more than 0"),
            "--schedule": (self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "--warmup": (self.warmup, self.warmup >= 0, "0 or more"),
            "--weight-decay": (self.weight_decay, self.weight_decay >= 0, "0 or more"),
            "--clip": (self.clip_norm, self.clip_norm > 0, "more than 0"),
            "--average": (self.average, 0 <= self.average < 1, "0 or more and less than 1"),
            "--modality-dropout": (self.modality_dropout, 0 <= self.modality_dropout <= 1, "0 to 1"),
            "--validation": (self.validation, 0 <= self.validation < 1, "0 or more and less than 1"),
            "--test": (self.test, 0 <= self.test < 1, "0 or more and less than 1"),
            "--fold": (
                self.fold and f"{self.fold[0]}/{self.fold[1]}",
                self.fold is None or 1 <= self.fold[0] <= self.fold[1] >= 2,
                "K/N, as in 1/5, with N at least 2 and K from 1 to N",
            ),
            "--seed": (self.seed, self.seed >= 0, "0 or more"),
            "--allow-missing": (
                self.allow_missing,
                set(self.allow_missing) <= set(MODALITIES),
                f"of {', '.join(MODALITIES)}",
            ),
            "--region": (self.regions, bool(self.regions) and set(self.regions) <= {"wt", "tc", "et"}, "wt, tc or et"),
        }
        for option, (found, valid, expected) in where.items():
            if not valid:
                raise InputError(option, str(found), expected, "Leave the option out for the default.")
        if self.finetune and self.encoder_weights:
            raise InputError("--encoder-weights", "--finetune beside it", "one of them", "Leave one of them out.")
        watched = self.patience is not None or self.schedule == "plateau"
        if watched and self.validation == 0 and self.fold is None:
            found = "--patience or --schedule plateau with --validation 0"
            raise InputError("--validation", found, "patients to validate on", "Leave one of them out.")
        if self.network.outputs > len(self.regions):
            raise InputError("--region", " ".join(self.regions), "all three in one network", "Leave the option out.")
        if self.validation + self.test >= 1:
            found = f"--validation {self.validation} and --test {self.test}"
            raise InputError("split", found, "some patients left to train on", "Lower them.")

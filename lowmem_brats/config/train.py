"""How to train the networks of a set, and recipes that are known by a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lowmem_brats.config.bank import BANK_HELP, BANKS
from lowmem_brats.config.names import MODALITIES, REGIONS
from lowmem_brats.config.network import NetworkConfig
from lowmem_brats.config.setting import FOLD, TIME, Check, Setting, check_settings, words
from lowmem_brats.config.shared import (
    BELOW_1,
    DATA,
    DEVICE,
    EXPERT,
    FROM_0,
    FROM_1,
    LABEL_CONVENTION,
    MAIN,
    NETWORKS,
    OPTIMISATION,
    POSITIVE,
    PRECISION,
    SHARE,
    VRAM,
)
from lowmem_brats.errors import InputError

FORMER: dict[str, object] = {"members": 1, "transplant": 0.0}
"""Settings that weights and trainings of earlier versions hold, with the only value that still has a meaning."""


def without_former(settings: Mapping[str, object]) -> dict[str, Any]:
    """Stored settings without those of FORMER that have no effect; any other stays, for the class to refuse."""
    return {key: value for key, value in dict(settings).items() if key not in FORMER or value != FORMER[key]}


@dataclass(frozen=True)
class Objective:
    """What a training step minimises."""

    loss: str = "dice"
    """As `engine.losses.find_loss` knows it."""
    stochastic_depth: float = 0.0
    """Share of slices that lose the last branch at random; see `networks.drop`."""
    spatial_dropout: float = 0.0
    """Share of channels that are lost at random."""


DICE = Objective()
"""Batch Dice, and nothing is lost."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train the networks of a set; together with the data it decides every weight."""

    network: NetworkConfig = field(default=NetworkConfig())
    """The architecture of each region's network; with three `outputs` there is one network for all regions."""
    bank: str | None = Setting(
        "--bank",
        "Train several networks of all three regions, and one that chooses among them for each slice. "
        f"{BANK_HELP}. Default: no bank.",
        MAIN,
        choices=words(*BANKS),
    ).default(None)
    regions: tuple[str, ...] = Setting(
        "--region",
        "Train the network of this region only; repeatable.",
        NETWORKS,
        Check("at least one region", bool),
        words(*REGIONS),
    ).default(REGIONS)
    loss: str = Setting(
        "--loss",
        "dice, slice-dice, squared-dice, ce, balanced-ce, focal, focal1, or a sum such as dice+ce.",
        OPTIMISATION,
    ).default("dice")
    stochastic_depth: float = Setting(
        "--stochastic-depth",
        "Share of slices for which a transformer's last branch is left out; earlier branches are less often.",
        OPTIMISATION,
        BELOW_1,
    ).default(0.0)
    spatial_dropout: float = Setting(
        "--spatial-dropout",
        "Share of channels that are left out: of the first map of resunet2d and transbts2d, of the U-Net's deepest.",
        OPTIMISATION,
        BELOW_1,
    ).default(0.0)
    balance: bool = Setting(
        "--balance/--no-balance",
        "Draw small cases, and slices with tumour, more often than their share of the slices.",
        DATA,
    ).default(True)
    augment: bool = Setting(
        "--augment/--no-augment", "Warp the training slices and change their contrast at random.", DATA
    ).default(True)
    modality_dropout: float = Setting(
        "--modality-dropout",
        "Share of training slices that lose one or two modalities, so that a case may lack one; with --augment.",
        DATA,
        SHARE,
    ).default(0.1)
    epochs: int = Setting("--epochs", "Passes over the training slices or crops, per network.", MAIN, FROM_1).default(
        80
    )
    max_seconds: float | None = Setting(
        "--max-time",
        "Time limit for all networks together; the learning rate still decays. Default: none.",
        MAIN,
        POSITIVE,
        metavar="8h|90m|1h30m",
        form=TIME,
    ).default(None)
    patience: int | None = Setting(
        "--patience",
        "Stop a network after so many epochs without a better validation Dice. Default: never.",
        OPTIMISATION,
        FROM_1,
    ).default(None)
    batch: int = Setting("--batch", "Slices, or crops of volumes, per training step.", OPTIMISATION, FROM_1).default(10)
    window: int = Setting(
        "--window",
        "Side in pixels of the windows that a step sees of its slices, mostly around the tumour; 0: whole slices.",
        OPTIMISATION,
        Check("a multiple of 16, or 0", lambda window: window >= 0 and window % 16 == 0),
    ).default(0)
    learning_rate: float = Setting("--learning-rate", "Largest step size.", OPTIMISATION, POSITIVE).default(1e-3)
    schedule: str = Setting(
        "--schedule",
        "How the learning rate falls. cosine: to zero along a half cosine; restarts: three times so, each time over "
        "twice as many steps; plateau: halved after 5 epochs without a better validation Dice.",
        OPTIMISATION,
        choices=words("cosine", "restarts", "plateau"),
    ).default("cosine")
    warmup: int = Setting(
        "--warmup", "Steps over which the learning rate rises from zero.", OPTIMISATION, FROM_0
    ).default(100)
    optimizer: str = Setting(
        "--optimizer",
        "adam; radam: Adam that steps less far while it has seen few gradients.",
        OPTIMISATION,
        choices=words("adam", "radam"),
    ).default("adam")
    weight_decay: float = Setting(
        "--weight-decay", "Apart from the gradient, as in AdamW; 0: none.", OPTIMISATION, FROM_0
    ).default(0.0)
    clip_norm: float = Setting(
        "--clip", "Longest gradient norm; longer gradients are shortened to it.", OPTIMISATION, POSITIVE
    ).default(12.0)
    finetune: str | None = Setting(
        "--finetune",
        "Start from these weights: a shipped set's name, or a folder written by `train`. Default: fresh weights.",
        MAIN,
        metavar="SET",
    ).default(None)
    encoder_weights: str | None = Setting(
        "--encoder-weights",
        "Start the encoder from a public checkpoint: EMCAD's PVT v2 (.pth), or TransUNet's R50-ViT-B/16 (.npz).",
        NETWORKS,
        metavar="FILE",
    ).default(None)
    average: float = Setting(
        "--average",
        "Decay per 10 steps of the weights' moving average, which is validated and kept; 0: no average.",
        OPTIMISATION,
        BELOW_1,
    ).default(0.99)
    validation: float = Setting(
        "--validation", "Share of patients to choose the best epoch by; 0: none, the last is kept.", DATA, BELOW_1
    ).default(0.1)
    test: float = Setting("--test", "Share of patients to score once at the end; 0: none.", DATA, BELOW_1).default(0.1)
    fold: tuple[int, int] | None = Setting(
        "--fold",
        "Instead of --validation: validate on fold K, from 1, of N folds of the patients that are not for the test.",
        DATA,
        Check("N at least 2 and K from 1 to N", lambda fold: 1 <= fold[0] <= fold[1] >= 2),
        metavar="K/N",
        form=FOLD,
    ).default(None)
    allow_missing: tuple[str, ...] = Setting(
        "--allow-missing",
        "Go on without this modality where it is missing, with zeros in its place; repeatable, two must be there. "
        "Without t1ce no enhancing tumour is found.",
        DATA,
        choices=words(*MODALITIES),
    ).default(())
    """A case that lacks another is left out."""
    strict: bool = Setting("--strict", "Stop at a case that cannot be read, instead of leaving it out.", DATA).default(
        False
    )
    precision: str = replace(
        PRECISION,
        help="Floating-point format. auto: the device's half format, and fp32 while training is unstable.",
        section=EXPERT,
    ).default("auto")
    device: str = replace(DEVICE, section=MAIN).default("auto")
    vram: str = replace(VRAM, section=MAIN).default("max")
    """Any plan gives the gradient of the whole batch."""
    labels: str = replace(LABEL_CONVENTION, section=DATA).default("brats2020")
    seed: int = Setting(
        "--seed", "Split, initial weights, order and augmentation follow from it.", EXPERT, FROM_0
    ).default(0)

    @property
    def objective(self) -> Objective:
        """What a step minimises."""
        return Objective(self.loss, self.stochastic_depth, self.spatial_dropout)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.finetune and self.encoder_weights:
            raise InputError("--encoder-weights", "--finetune beside it", "one of them", "Leave one of them out.")
        started = [
            option
            for option, value in (("--finetune", self.finetune), ("--encoder-weights", self.encoder_weights))
            if value
        ]
        if self.bank and (started or len(self.regions) < len(REGIONS)):
            found = f"{' and '.join(started) or '--region'} beside it"
            raise InputError("--bank", found, "fresh networks of all three regions", "Leave it out.")
        watched = self.patience is not None or self.schedule == "plateau"
        if watched and self.validation == 0 and self.fold is None:
            found = "--patience or --schedule plateau with --validation 0"
            raise InputError("--validation", found, "patients to validate on", "Leave one of them out.")
        if self.network.outputs > len(self.regions):
            raise InputError("--region", " ".join(self.regions), "all three in one network", "Leave the option out.")
        if self.validation + self.test >= 1:
            found = f"--validation {self.validation} and --test {self.test}"
            raise InputError("split", found, "some patients left to train on", "Lower them.")


@dataclass(frozen=True)
class Preset:
    """Settings of a training that are known by one name."""

    help: str
    network: Mapping[str, Any]
    """Field of NetworkConfig → value."""
    training: Mapping[str, Any]
    """Field of TrainConfig → value."""


PRESETS = {
    "shipped": Preset(
        "one network for all three regions, as the shipped ones began",
        {"outputs": 3, "norm": "none", "width": 16, "views": 3},
        {"loss": "dice+ce", "window": 112, "batch": 16, "weight_decay": 1e-4},
    ),
    "emcad": Preset(
        "the recipe of Uzor et al. for EMCAD",
        {"name": "emcad-b0"},
        {"loss": "dice+ce", "batch": 6, "learning_rate": 1e-4, "weight_decay": 1e-4},
    ),
    "segresnet": Preset(
        "the recipe of MONAI and of Pandya et al. for SegResNet in three dimensions",
        {"name": "segresnet", "outputs": 3, "width": 16},
        {"loss": "squared-dice", "batch": 1, "learning_rate": 1e-4, "weight_decay": 1e-5, "epochs": 300},
    ),
}
"""What `--preset` means."""

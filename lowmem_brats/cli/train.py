"""`lowmem-brats train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.parameter_types import Duration, Fold
from lowmem_brats.cli.signals import end_at_once_under_torchrun
from lowmem_brats.config import PRECISIONS, PRESETS, SCHEDULES, NetworkConfig, TrainConfig
from lowmem_brats.errors import InputError

if TYPE_CHECKING:
    from lowmem_brats.evaluate.pairs import PatientScores
    from lowmem_brats.train.loop import Epoch
    from lowmem_brats.train.report import TrainReport

_option = partial(options.setting, of=TrainConfig)
MODES = {"three-networks": 1, "one-network": 3}
NETWORK_OPTIONS = {
    "network": "name",
    "width": "width",
    "norm": "norm",
    "views": "views",
    "context": "context",
    "mode": "outputs",
}
"""Option → field of NetworkConfig."""


def _use_preset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Make the preset's options the defaults: what the user names wins."""
    if value:
        ctx.default_map = PRESETS[value]
    return value


def _as_options(preset: Mapping[str, object]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in preset.items())


@click.command()
@click.argument("data", type=options.FILE, required=False)
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    help="Run folder; becomes a weights set too. Default: a new one, runs/DATE-1 and so on, in the current folder.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the training in OUTPUT, with its recipe and DATA. Default: the last one in runs/.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
    callback=_use_preset,
    help="; ".join(f"{name}: {_as_options(preset)}" for name, preset in PRESETS.items()) + ". Other options change it.",
)
@options.network
@options.setting("--width", "width", "Channels of the U-Net's first level.", of=NetworkConfig)
@options.setting(
    "--norm",
    "norm",
    "Norms of the U-Net: group, none (calibrated once at the start), or batch as in the paper.",
    of=NetworkConfig,
    type=click.Choice(("group", "none", "batch")),
)
@options.setting(
    "--views",
    "views",
    "1: axial slices; 2: coronal ones too; 3: and sagittal ones; averaged.",
    of=NetworkConfig,
    type=click.IntRange(1, 3),
)
@options.setting(
    "--context",
    "context",
    "How many slices before and after each the network sees beside it.",
    of=NetworkConfig,
    type=click.IntRange(0, 3),
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="three-networks",
    show_default=True,
    help="A binary network per region (the paper's U-Net 2C), or one of three outputs (its U-Net 3C).",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    type=click.Choice(TrainConfig.regions),
    help="Train only this region; repeatable.",
)
@click.option("--finetune", metavar="WEIGHTS", help="Start from a shipped set's name, or a folder written by `train`.")
@_option(
    "--encoder-weights",
    "encoder_weights",
    "Start EMCAD's encoder from a public PVT v2 checkpoint (.pth).",
    type=click.Path(),
    metavar="FILE",
)
@_option("--epochs", "epochs", "Passes over the slices, per network.")
@_option(
    "--max-time",
    "max_seconds",
    "Time limit for all networks; the learning rate still decays.",
    type=Duration(),
    metavar="8h|90m|1h30m",
)
@_option("--patience", "patience", "Stop a network after so many epochs without a better validation Dice.", type=int)
@_option("--loss", "loss", "dice, slice-dice, ce, balanced-ce, focal, or a sum such as dice+ce.")
@_option("--batch", "batch", "Slices per step.")
@_option("--window", "window", "Side in pixels of the windows that a step sees of its slices; 0: whole slices.")
@_option("--learning-rate", "learning_rate", "Largest step size.")
@_option("--schedule", "schedule", "How the learning rate falls.", type=click.Choice(SCHEDULES))
@_option("--warmup", "warmup", "Steps over which the learning rate rises.")
@_option("--weight-decay", "weight_decay", "Of AdamW; 0 is Adam.")
@_option("--clip", "clip_norm", "Longest gradient norm; longer gradients are scaled down.")
@_option("--average", "average", "Decay per 10 steps of the weights' moving average, which is kept; 0: none.")
@_option("--balance/--no-balance", "balance", "Draw small cases, and slices with tumour, more often.")
@_option("--augment/--no-augment", "augment", "Warp the slices and change their contrast.")
@_option("--modality-dropout", "modality_dropout", "Share of slices that lose a modality or two.")
@_option("--validation", "validation", "Share of patients to choose the best epoch by; 0: none.")
@_option("--test", "test", "Share of patients to score once at the end; 0: none.")
@_option("--fold", "fold", "Validate on fold K of N instead.", type=Fold())
@options.device
@options.vram
@_option(
    "--precision",
    "precision",
    "auto: the device's half format, and fp32 while training is unstable.",
    type=click.Choice(PRECISIONS),
)
@options.labels
@options.allow_missing
@_option("--seed", "seed", "Of split, weights, order and augmentation.")
@click.option("--strict", is_flag=True, help="Stop at a case that cannot be read, instead of leaving it out.")
@click.option("--cache", type=options.FILE, help="Folder for the prepared slices. Default: OUTPUT/cache.")
@options.overwrite
@options.quiet
@click.pass_context
def train(
    ctx: click.Context,
    /,
    data: Path | None,
    output: Path | None,
    resume: bool,
    cache: Path | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train the WT, TC and ET networks on DATA: a folder of case folders with label maps, or a CSV or JSON list.

    DATA is the current folder by default. OUTPUT becomes a run folder (metrics.csv, curves.png, checkpoints) and a
    weights set: lowmem-brats segment --weights OUTPUT. With torchrun it trains on several devices.
    """
    if not settings.pop("overwrite") and not resume and output and (output / "run.json").exists():
        advice = "Pass --resume to go on with it, --overwrite to start anew, or another -o."
        raise InputError(output, "holds a training already", "a new folder", advice)
    named = options.named(ctx) & settings.keys()
    if resume and settings.pop("preset"):
        raise InputError("--resume", "--preset beside it", "the recipe of the run", "Leave one of them out.")
    chosen = output is None
    if resume:
        output, data, config = _resumed(output, data, settings, named)
    else:
        config = _config(settings, named)
    from lowmem_brats.train.networks import TrainListener
    from lowmem_brats.train.run import train_set

    folders = list[Path]()

    def on_folder(folder: Path) -> None:
        folders.append(folder)
        if chosen or not quiet:
            console.err.print(f"{'going on in' if resume else 'run folder':<13}{folder}")

    end_at_once_under_torchrun()
    with console.progress(quiet) as on_progress:
        tell = TrainListener(on_progress, on_folder, on_note=console.warn)
        if not quiet:
            tell = replace(
                tell, on_data=_show_data, on_plan=console.show_plan, on_epoch=_show_epoch, on_test=_show_test
            )
        report = train_set(data or Path(), output, config, tell, resume, cache)
    if report is None or quiet:
        return
    for plan in report.plans:
        peaks = [network.peak_bytes.get(plan.precision, 0) for network in report.networks.values()]
        if any(peaks) or plan is report.plans[0]:
            console.show_peak(max(peaks), plan, report.cuda_peak)
    for region, (threshold, dice) in [row for each in report.networks.values() for row in each.thresholds.items()]:
        console.out.print(f"{region.upper()} masks   where the logit was above {threshold}: validation Dice {dice:.3f}")
    (folder,) = folders
    use = f"segment with --weights {folder}" if (folder / "index.json").exists() else "no set to segment with yet"
    console.out.print(f"wrote        {folder}: metrics.csv, curves.png; {use}")


def _config(settings: dict[str, Any], named: set[str]) -> TrainConfig:
    """The recipe that the options say."""
    network = NetworkConfig(**_of_network(settings, set(settings)))
    if settings["finetune"]:
        from lowmem_brats.weights.store import open_set

        if given := sorted(named & {"network", "width", "norm", "preset"}):
            found = " and ".join(f"--{key}" for key in given) + " beside it"
            raise InputError("--finetune", found, "the set's own network", "Leave it out.")
        network = replace(
            open_set(settings["finetune"]).network, **_of_network(settings, named & {"views", "context", "mode"})
        )
    options.check_width(network, named)
    settings = {key: value for key, value in settings.items() if key not in {*NETWORK_OPTIONS, "preset"}}
    regions = tuple(dict.fromkeys(settings.pop("regions"))) or TrainConfig.regions
    return TrainConfig(network=network, regions=regions, **settings)


def _resumed(
    output: Path | None, data: Path | None, settings: dict[str, Any], named: set[str]
) -> tuple[Path, Path, TrainConfig]:
    """The run folder to go on with, its cases, and its recipe with the options that the user named.

    What must not change, the training refuses.
    """
    from lowmem_brats.train.folder import newest_run
    from lowmem_brats.train.report import read_run

    output = output or newest_run()
    stored = read_run(output)
    network = replace(stored.config.network, **_of_network(settings, named))
    changed = {key: settings[key] for key in named - NETWORK_OPTIONS.keys()}
    return output, data or Path(stored.data), replace(stored.config, network=network, **changed)


def _of_network(settings: dict[str, Any], named: set[str]) -> dict[str, Any]:
    """The fields of NetworkConfig that the named options set."""
    values = settings | {"mode": MODES[settings["mode"]]}
    return {field: values[option] for option, field in NETWORK_OPTIONS.items() if option in named}


def _show_data(report: TrainReport) -> None:
    parts = report.training_cases, report.validation_cases, report.test_cases
    patients, uses = len(set(report.patients.values())), ("to train on", "to validate", "for the test")
    counts = [f"{len(part)} {use}" for part, use in zip(parts, uses, strict=True)]
    console.err.print(f"cases        {sum(map(len, parts))} of {patients} patients: {', '.join(counts)}")


def _show_epoch(epoch: Epoch) -> None:
    validated = " ".join(f"{dice:.3f}" for dice in epoch.region_dice.values())
    console.out.print(
        f"{epoch.network.upper()} epoch {epoch.number:3d}  step {epoch.steps:6d}  loss {epoch.loss:.3f}  "
        + (f"validation Dice {validated}  " if validated else "")
        + f"{epoch.slices_per_second:.1f} slices/s  {epoch.seconds:.0f} s"
        + (f"  {epoch.skipped_steps} steps left out: gradient not finite" if epoch.skipped_steps else "")
        + (f"  {epoch.fallback_steps} steps in the safer format" if epoch.fallback_steps else "")
    )


def _show_test(scores: list[PatientScores]) -> None:
    from lowmem_brats.evaluate.pairs import summarise

    console.out.print(f"{len(scores)} patients held out for the test:")
    console.show_scores(scores, summarise(scores))

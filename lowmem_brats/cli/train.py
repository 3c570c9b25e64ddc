"""`lowmem-brats train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowmem_brats.cli import console, options
from lowmem_brats.cli.sections import SectionedCommand
from lowmem_brats.cli.signals import end_at_once_under_torchrun
from lowmem_brats.config import PRESETS, NetworkConfig, Preset, TrainConfig
from lowmem_brats.config.setting import settings_of
from lowmem_brats.config.shared import DATA, MAIN
from lowmem_brats.errors import InputError

if TYPE_CHECKING:
    from lowmem_brats.evaluate.pairs import PatientScores
    from lowmem_brats.train.report import TrainReport
    from lowmem_brats.train.state import Epoch

OF_NETWORK, OF_TRAINING = options.fields_of(NetworkConfig), options.fields_of(TrainConfig)


def _use_preset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Make the preset's options the defaults: what the user names wins."""
    if value:
        ctx.default_map = {name: word for name, (_, word) in _options_of(PRESETS[value]).items()}
    return value


def _options_of(preset: Preset) -> dict[str, tuple[str, str]]:
    """Field → option and value, as a user writes them."""
    described = settings_of(NetworkConfig) | settings_of(TrainConfig)
    values = {**preset.network, **preset.training}
    return {name: (described[name].option, described[name].written(value)) for name, value in values.items()}


def _words_of(preset: Preset) -> str:
    return f"{preset.help} ({' '.join(f'{option} {word}' for option, word in _options_of(preset).values())})"


@click.command(cls=SectionedCommand)
@click.argument("data", type=options.FILE, required=False)
@options.option(
    "-o",
    "--output",
    type=options.FILE,
    help="Run folder; becomes a weights set too. Default: a new one, runs/DATE-1 and so on, in the current folder.",
    section=MAIN,
)
@options.option(
    "--resume",
    is_flag=True,
    help="Go on with the training in OUTPUT, with its recipe and DATA. Default: the last one in runs/.",
    section=MAIN,
)
@options.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
    callback=_use_preset,
    help="; ".join(f"{name}: {_words_of(preset)}" for name, preset in PRESETS.items()) + ". Other options change it.",
    section=MAIN,
)
@options.of(NetworkConfig)
@options.of(TrainConfig)
@options.option(
    "--cache", type=options.FILE, help="Folder for the prepared slices. Default: OUTPUT/cache.", section=DATA
)
@options.overwrite
@options.quiet
@options.gather("settings", (*OF_NETWORK, *OF_TRAINING))
def train(
    data: Path | None,
    output: Path | None,
    resume: bool,
    preset: str | None,
    cache: Path | None,
    overwrite: bool,
    quiet: bool,
    settings: dict[str, Any],
) -> None:
    """Train the WT, TC and ET networks on DATA: a folder of case folders with label maps, or a CSV or JSON list.

    DATA is the current folder by default. OUTPUT becomes a run folder (metrics.csv, curves.png, checkpoints) and a
    weights set: lowmem-brats segment --weights OUTPUT. With torchrun it trains on several devices.
    """
    if not overwrite and not resume and output and (output / "run.json").exists():
        advice = "Pass --resume to go on with it, --overwrite to start anew, or another -o."
        raise InputError(output, "holds a training already", "a new folder", advice)
    if resume and preset:
        raise InputError("--resume", "--preset beside it", "the recipe of the run", "Leave one of them out.")
    chosen = output is None
    if resume:
        output, data, config = _resumed(output, data, settings)
    else:
        config = _config(settings)
    from lowmem_brats.pictures.training import draw_curves, draw_examples
    from lowmem_brats.train.bank import train_bank
    from lowmem_brats.train.networks import TrainListener
    from lowmem_brats.train.run import train_set

    folders = list[Path]()

    def on_folder(folder: Path) -> None:
        folders.append(folder)
        if chosen or not quiet:
            console.err.print(f"{'going on in' if resume else 'run folder':<13}{folder}")

    end_at_once_under_torchrun()
    with console.progress(quiet) as on_progress:
        tell = TrainListener(on_progress, on_folder, on_note=console.warn, on_fact=_show_fact(quiet))
        tell = replace(tell, draw_curves=draw_curves, draw_examples=draw_examples)
        if not quiet:
            tell = replace(
                tell, on_data=_show_data, on_plan=console.show_plan, on_epoch=_show_epoch(config), on_test=_show_test
            )
        train_any = train_bank if config.bank else train_set
        report = train_any(data or Path(), output, config, tell, resume, cache)
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
    written = f"members in {folder / 'members'}" if config.bank else "metrics.csv, curves.png"
    console.out.print(f"wrote        {folder}: {written}; {use}")


def _config(settings: dict[str, Any]) -> TrainConfig:
    """The recipe that the options say."""
    network = NetworkConfig(**{key: settings[key] for key in OF_NETWORK})
    if settings["bank"]:
        named, described = options.named(), settings_of(NetworkConfig)
        given = [described[key].option for key in ("name", "width", "outputs") if key in named]
        if not given and settings["name"] != NetworkConfig.name:
            given = ["--preset with a network"]
        if given:
            raise InputError("--bank", f"{' and '.join(given)} beside it", "the members' own", "Leave it out.")
    if settings["finetune"]:
        from lowmem_brats.weights.store import open_set

        named, described = options.named(), settings_of(NetworkConfig)
        fixed = {key: described[key].option for key in ("name", "width", "norm")} | {"preset": "--preset"}
        if given := [option for key, option in fixed.items() if key in named]:
            found = f"{' and '.join(given)} beside it"
            raise InputError("--finetune", found, "the set's own network", "Leave it out.")
        network = open_set(settings["finetune"]).network
        network = replace(network, **{key: settings[key] for key in OF_NETWORK if key in named})
    options.check_width(network)
    if "outputs" not in options.named():
        network = options.in_its_usual_mode(network)
    return TrainConfig(network=network, **{key: settings[key] for key in OF_TRAINING})


def _resumed(output: Path | None, data: Path | None, settings: dict[str, Any]) -> tuple[Path, Path, TrainConfig]:
    """The run folder to go on with, its cases, and its recipe with the options that the user named.

    What must not change, the training refuses.
    """
    from lowmem_brats.train.folder import newest_run
    from lowmem_brats.train.report import read_run

    output = output or newest_run()
    stored = read_run(output)
    named = options.named()
    network = replace(stored.config.network, **{key: settings[key] for key in OF_NETWORK if key in named})
    changed = {key: settings[key] for key in OF_TRAINING if key in named}
    return output, data or Path(stored.data), replace(stored.config, network=network, **changed)


def _show_fact(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else console.err.print(text)


def _show_data(report: TrainReport) -> None:
    parts = report.training_cases, report.validation_cases, report.test_cases
    patients, uses = len(set(report.patients.values())), ("to train on", "to validate", "for the test")
    counts = [f"{len(part)} {use}" for part, use in zip(parts, uses, strict=True)]
    console.err.print(f"cases        {sum(map(len, parts))} of {patients} patients: {', '.join(counts)}")


def _show_epoch(config: TrainConfig) -> Callable[[Epoch], None]:
    """Shows an epoch, in slices or in crops a second."""
    from lowmem_brats.networks import patches_of

    what = "crops" if patches_of(config.network) else "slices"

    def show(epoch: Epoch) -> None:
        validated = " ".join(f"{dice:.3f}" for dice in epoch.region_dice.values())
        console.out.print(
            f"{epoch.network.upper()} epoch {epoch.number:3d}  step {epoch.steps:6d}  loss {epoch.loss:.3f}  "
            + (f"validation Dice {validated}  " if validated else "")
            + f"{epoch.slices_per_second:.{1 if what == 'slices' else 3}f} {what}/s  {epoch.seconds:.0f} s"
            + (f"  {epoch.skipped_steps} steps left out: gradient not finite" if epoch.skipped_steps else "")
            + (f"  {epoch.fallback_steps} steps in the safer format" if epoch.fallback_steps else "")
        )

    return show


def _show_test(scores: list[PatientScores]) -> None:
    from lowmem_brats.evaluate.pairs import summarise

    console.out.print(f"{len(scores)} patients held out for the test:")
    console.show_scores(scores, summarise(scores))

"""Train the networks of a set, one after another, and score the set on patients that were held out.

Each network learns from the slices that it will see (WT from all brain slices, TC from slices with WT, ET from slices
with TC) and starts from its parent's weights, or from those of a set to fine-tune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lowmem_brats import parallel
from lowmem_brats.case_files import CaseFiles
from lowmem_brats.case_list import read_cases
from lowmem_brats.config import TrainConfig
from lowmem_brats.dataset import Split, frame_of, split_cases
from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.evaluate import PatientScores, summarise
from lowmem_brats.fit import Epoch, Listener, NetworkTraining
from lowmem_brats.held_out import score_held_out
from lowmem_brats.labels import CONVENTIONS, Region, names_of
from lowmem_brats.loss import find_loss
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import choose_device, open_budget, out_of_memory_told
from lowmem_brats.memory.planner import TrainPlan, plan_train
from lowmem_brats.memory.step import place
from lowmem_brats.networks import SliceNetwork, build_network, stride_of, widened
from lowmem_brats.precision import choose_precision
from lowmem_brats.predict import sound_precision
from lowmem_brats.run_folder import NetworkReport, RunFolder, TrainReport, check_resumable, read_run, revision
from lowmem_brats.slice_cache import CachedCase, build_cache
from lowmem_brats.validate import Validation
from lowmem_brats.weights import WeightsFile, load_network, open_set, save_network, versions

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainListener:
    """Who is told of what happens."""

    on_progress: OnProgress = lambda stage, done, total: None
    on_plan: Callable[[TrainPlan], None] = lambda plan: None
    on_note: Callable[[str], None] = lambda note: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_test: Callable[[list[PatientScores]], None] = lambda scores: None


@dataclass
class _Run:
    """One training under way."""

    folder: RunFolder
    report: TrainReport
    tell: TrainListener
    training: list[CachedCase] = field(default_factory=list)
    validation: list[CachedCase] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Put a note in the report and on the screen."""
        self.report.notes.append(text)
        self.tell.on_note(text)

    def write(self) -> None:
        """Write the report, once for all processes."""
        if parallel.rank() == 0:
            self.folder.write_report(self.report)


def train_set(
    data: Path,
    out: Path,
    config: TrainConfig,
    tell: TrainListener = TrainListener(),
    resume: bool = False,
    cache: Path | None = None,
    tensorboard: bool = False,
) -> TrainReport | None:
    """Train on labelled cases; `out` becomes a run folder and a weights set for `segment`.

    `data`: a folder of case folders, or a list of cases; `resume`: go on with what `out` holds; `cache`: where prepared
    slices are kept, by default in `out`. With several processes only the first writes, tells and returns a report, the
    others None. Raises InputError for unusable cases or options, BudgetError where nothing fits.
    """
    with parallel.processes():
        if config.batch < parallel.size():
            raise InputError("--batch", str(config.batch), f"{parallel.size()} or more, one per process", "Raise it.")
        if config.network.norm == "batch" and parallel.size() > 1:
            raise InputError("batch norm", "several processes", "one, whose statistics are the batch's", "Use 'group'.")
        tell = tell if parallel.rank() == 0 else TrainListener()
        find_loss(config.loss)
        device, notes = choose_device(parallel.local_device(config.device))
        budget = open_budget(config.vram, device)
        cases, left_out = read_cases(data, config.strict, config.allow_missing)
        split = _resumed_split(cases, out, config) if resume else _new_split(cases, config)
        training, validation, test = (
            [case.case_id for case in part] for part in (split.training, split.validation, split.test)
        )
        report = TrainReport(config, versions() | {"revision": revision()}, str(device), training, validation, test)
        run = _Run(RunFolder(out, tensorboard and parallel.rank() == 0), report, tell)
        for text in [*notes, *left_out]:
            run.note(text)
        _cache(run, split, cache or out / "cache", strict=config.strict or resume)
        network = _prepare(run, budget, resume)
        if not resume and parallel.rank() == 0:
            run.folder.forget()  # only now, when nothing can be wrong with what was asked for
        parallel.wait()  # the others may not find an older training's checkpoints
        run.write()
        paths = _train_networks(run, network)
        if parallel.rank() == 0:
            missing = run.folder.install(paths, report)
            if missing:
                run.note(f"no set to segment with yet: {', '.join(missing)} not trained")
            else:
                _score(run, split.test)
            run.write()
            return report
    return None


def _new_split(cases: list[CaseFiles], config: TrainConfig) -> Split:
    return split_cases(cases, config.validation, config.test, config.fold, config.seed)


def _resumed_split(cases: list[CaseFiles], out: Path, config: TrainConfig) -> Split:
    """The split that the training began with. Raises InputError where a case of it is gone."""
    stored, parts = read_run(out)
    check_resumable(config, stored, out)
    by_id = {case.case_id: case for case in cases}
    gone = sorted({case_id for part in parts for case_id in part} - by_id.keys())
    if gone:
        raise InputError(f"resuming {out}", f"no {', '.join(gone)}", "the cases it began with", "Put them back.")
    return Split(*(tuple(by_id[case_id] for case_id in part) for part in parts))


def _cache(run: _Run, split: Split, folder: Path, strict: bool) -> None:
    """Read and prepare the cases; the first process writes what the others then find."""
    config = run.report.config
    if parallel.rank():
        parallel.wait()
    files = [*split.training, *split.validation]
    cases, notes = build_cache(
        files,
        folder,
        stride_of(config.network),
        CONVENTIONS[config.labels],
        lambda done, total: run.tell.on_progress("reading cases", done, total),
        strict,
    )
    if not parallel.rank():
        parallel.wait()
    for text in [*notes, *(f"{case.case_id}: {warning}" for case in cases for warning in case.warnings)]:
        run.note(text)
    for kept, part in ((run.training, split.training), (run.validation, split.validation)):
        ids = {case.case_id for case in part}
        kept += [case for case in cases if case.case_id in ids]
        if part and not kept:
            raise InputError("training data", "no case of the split could be read", "sound cases", "See the warnings.")
    run.report.training_cases, run.report.validation_cases = (
        [case.case_id for case in part] for part in (run.training, run.validation)
    )


def _prepare(run: _Run, budget: MemoryBudget, resume: bool) -> SliceNetwork:
    """Build the network, choose its formats, plan its steps, and place it on the device."""
    config, device = run.report.config, run.report.device
    torch.manual_seed(config.seed)
    network = build_network(config.network)
    if config.encoder_weights and not (resume and run.folder.holds(names_of(_groups(config)[0]))):
        network.load_encoder(Path(config.encoder_weights))
    middle_CHW = run.training[0].slices_ZCHW[run.training[0].shape_ZCHW[0] // 2]
    wanted = choose_precision(config.precision, torch.device(device))
    precision, notes = sound_precision(partial(copy.deepcopy, network), middle_CHW, device, wanted)
    for text in notes:
        run.note(text)
    run.report.plans = _plan(run, budget, precision)
    with out_of_memory_told(device):
        return place(network, torch.device(device))


def _train_networks(run: _Run, network: SliceNetwork) -> dict[Region, Path]:
    """Train one network after another; returns where each region's weights lie, beside the checkpoints.

    It is one and the same: each region continues from its parent's weights, the same anatomy and a nested target.
    """
    config = run.report.config
    paths: dict[Region, Path] = {}
    for group in _groups(config):
        if config.finetune and not run.folder.holds(names_of(group)):
            network.load_state_dict(_finetuned(config, group))
        training = NetworkTraining(group, network, run.training, run.validation, config, run.report.plans)
        path = _train_network(run, training)
        paths |= dict.fromkeys(group, path)
    return paths


def _groups(config: TrainConfig) -> list[tuple[Region, ...]]:
    """The regions of each network, in the order of training."""
    regions = tuple(region for region in Region if region.value in config.regions)
    return [regions] if config.network.outputs > 1 else [(region,) for region in regions]


def _plan(run: _Run, budget: MemoryBudget, precision: str) -> list[TrainPlan]:
    """A plan for the format to train in, and one for fp32 to fall back to: each the fastest that fits."""
    config, device = run.report.config, run.report.device
    share = -(-config.batch // parallel.size())
    arguments = config.network, frame_of(run.training, config.network.views), share, budget, device
    plans = [plan_train(*arguments, precision, config.loss)]
    run.tell.on_plan(plans[0])
    if config.precision == "auto" and precision != "fp32":
        try:
            plans.append(plan_train(*arguments, "fp32", config.loss))
        except BudgetError:
            run.note(f"fp32 does not fit in {config.vram}: training stays in {precision} also when it is unstable")
    return plans


def _finetuned(config: TrainConfig, regions: Sequence[Region]) -> dict[str, torch.Tensor]:
    """The weights to start from. Raises InputError where they are of another network."""
    weights = open_set(config.finetune or ())
    file = next((file for file in weights.files if set(regions) <= set(file.regions)), None)
    wanted = config.network
    if (
        file is None
        or file.network.context > wanted.context
        or replace(file.network, views=wanted.views, context=wanted.context) != wanted
    ):
        raise InputError("--finetune", str(weights.network), str(wanted), "Train the network of the set.")
    return widened(load_network(file).state_dict(), wanted)


def _train_network(run: _Run, training: NetworkTraining) -> Path:
    """Train one network, with checkpoints, and write its weights; returns where."""
    resumed = run.folder.restore(training)
    if resumed:
        run.note(f"{training.name.upper()} goes on at step {training.steps}")
    report = NetworkReport(training.epochs, training.curve, training.switches, training.peaks)
    run.report.networks[training.name] = report

    def on_epoch(epoch: Epoch, validation: Validation) -> None:
        run.report.cuda_peak = cuda.highest(run.report.cuda_peak, run.report.device)
        run.tell.on_epoch(epoch)
        if parallel.rank() == 0:
            run.folder.add_epoch(epoch, validation)
            run.folder.write_report(run.report)

    def on_checkpoint() -> None:
        if parallel.rank() == 0:
            run.folder.save(training)

    best = training.run(Listener(run.tell.on_progress, on_epoch, on_checkpoint))
    for text in training.notes:
        run.note(text)
    report.thresholds = training.finish()
    path = run.folder.path / "checkpoints" / f"{training.name.replace(' ', '-')}.safetensors"
    summary = {
        "training_cases": len(run.training),
        "held_out": run.report.held_out,
        "steps": best.steps,
        "seconds": round(best.seconds),
        "precision": training.controller.fast,
        "versions": run.report.versions,
    }
    metrics = {"validation_dice": best.region_dice, "validation_cases": len(run.validation)}
    metrics |= {"thresholds": report.thresholds}
    if parallel.rank() == 0:
        save_network(training.network, WeightsFile(path, training.regions, run.report.config.network, summary, metrics))
    return path


def _score(run: _Run, cases: Sequence[CaseFiles]) -> None:
    """Score the set on the patients held out for the test, if any."""
    report = run.report
    scores, notes = score_held_out(
        run.folder.path, cases, report.config, report.plans[0].precision, run.tell.on_progress
    )
    for text in notes:
        run.note(text)
    if scores:
        report.test = {region.value: asdict(mean) for region, mean in summarise(scores).mean.items()}
        run.tell.on_test(scores)

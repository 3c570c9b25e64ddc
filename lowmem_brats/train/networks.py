"""Train the networks of a set, one after another.

Each network learns from the slices that it will see (WT from all brain slices, TC from slices with WT, ET from slices
with TC) and starts from its parent's weights, or from those of a set to fine-tune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.data.labels import Region, groups_of, names_of
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.engine import parallel
from lowmem_brats.engine.precision import choose_precision
from lowmem_brats.engine.step import place
from lowmem_brats.errors import BudgetError, InputError, describe
from lowmem_brats.evaluate.pairs import PatientScores
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.device import out_of_memory_told
from lowmem_brats.memory.planner import TrainPlan, plan_train
from lowmem_brats.networks import Network, SliceNetwork, adapted, build_any, calibrate
from lowmem_brats.segment.stack import empty_cache, sound_precision
from lowmem_brats.train.crops import batches_of, size_to_plan
from lowmem_brats.train.data import holds_slices
from lowmem_brats.train.folder import RunFolder
from lowmem_brats.train.loop import Listener, NetworkTraining
from lowmem_brats.train.report import NetworkReport, TrainReport
from lowmem_brats.train.state import Epoch
from lowmem_brats.train.validate import Example, Validation
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.store import open_set

OnProgress = Callable[[str, int, int], None]
CALIBRATION = 32  # slices that a network without norms is calibrated on


@dataclass(frozen=True)
class TrainListener:
    """Who is told of what happens."""

    on_progress: OnProgress = lambda stage, done, total: None
    on_folder: Callable[[Path], None] = lambda folder: None
    """Where the training writes."""
    on_data: Callable[[TrainReport], None] = lambda report: None
    """The cases are read and split."""
    on_plan: Callable[[TrainPlan], None] = lambda plan: None
    on_note: Callable[[str], None] = lambda note: None
    """Told of what may be wrong, and of every fallback."""
    on_fact: Callable[[str], None] = lambda fact: None
    """Told of what goes on, apart from epochs."""
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_test: Callable[[list[PatientScores]], None] = lambda scores: None
    draw_curves: Callable[[Path, TrainReport], None] = lambda path, report: None
    """Draws how the training goes, after every epoch; `pictures.training` can."""
    draw_examples: Callable[[Path, Epoch, list[Example]], None] = lambda path, epoch, examples: None
    """Draws predictions on validation slices, after some epochs; `pictures.training` can."""


@dataclass
class Run:
    """One training under way."""

    folder: RunFolder
    report: TrainReport
    tell: TrainListener
    budget: MemoryBudget
    training: list[CachedCase] = field(default_factory=list)
    validation: list[CachedCase] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @property
    def groups(self) -> list[tuple[Region, ...]]:
        """The regions of each network, in the order of training."""
        return groups_of(self.report.config.regions, self.report.config.network.outputs)

    def note(self, text: str) -> None:
        """Put a note in the report and on the screen, once."""
        if text not in self.report.notes:
            self.report.notes.append(text)
        if text not in self.told:
            self.tell.on_note(text)
        self.told.add(text)

    def attempt(self, what: str, action: Callable[..., None], *arguments: object) -> None:
        """Call an action that the weights do not depend on, in the first process; if it fails, note that and go on."""
        try:
            if parallel.rank() == 0:
                action(*arguments)
        except Exception as error:
            self.note(f"{what}: {describe(error)}")

    def write(self) -> None:
        """Write the report, once for all processes."""
        self.attempt("metrics.csv and curves.png are not up to date", self._show_epochs)
        if parallel.rank() == 0:
            self.folder.write_report(self.report)

    def _show_epochs(self) -> None:
        """Write metrics.csv and have curves.png drawn, from the first epoch on."""
        if any(network.epochs for network in self.report.networks.values()):
            self.folder.write_metrics(self.report)
            self.tell.draw_curves(self.folder.curves, self.report)


def prepare_network(run: Run, resume: bool) -> Network:
    """Build the network, choose its formats, plan its steps, and place it on the device."""
    config, device = run.report.config, run.report.device
    torch.manual_seed(config.seed)
    network = build_any(config.network)
    begun = [group for group in run.groups if resume and run.folder.holds(names_of(group))]
    for group in begun:
        run.folder.check(names_of(group))
    if config.encoder_weights and not begun:
        network.load_encoder(Path(config.encoder_weights))
    for group in run.groups if config.finetune else ():
        if group not in begun:
            _finetuned(config, group)  # now, and not when the networks before it are trained
    if isinstance(network, SliceNetwork) and network.convolutions() and not begun and not config.finetune:
        network.load_state_dict(parallel.first(_calibrated(network, run) if parallel.rank() == 0 else None))
    wanted = choose_precision(config.precision, torch.device(device))
    precision, notes = wanted, list[str]()
    if isinstance(network, SliceNetwork):  # of patches, the first steps show whether their gradients are finite
        precision, notes = sound_precision(partial(copy.deepcopy, network), _first_slices(run, 1), device, wanted)
    for text in notes:
        run.note(text)
    run.report.plans = _plan(run, precision)
    with out_of_memory_told(device):
        return place(network, torch.device(device))


def _calibrated(network: SliceNetwork, run: Run) -> dict[str, Tensor]:
    """The network's weights, calibrated on slices as the first steps will see them."""
    calibrate(network, _first_slices(run, CALIBRATION))
    return network.state_dict()


def _first_slices(run: Run, count: int) -> Tensor:
    """The first slices, or windows of them, that a training without augmentation would see, [count, C, H, W]."""
    config = replace(run.report.config, augment=False)
    first = islice(batches_of(run.training, run.groups[0], config).read(0), -(-count // config.batch))
    return torch.cat([batch.slices_NCHW for batch in first])[:count]


def _finetuned(config: TrainConfig, regions: Sequence[Region]) -> dict[str, torch.Tensor]:
    """The weights to start from: of a network of these regions, or for one region also of a network of all three.

    Raises InputError where they are of another network.
    """
    weights = open_set(config.finetune or ())
    if weights.bank:
        advice = f"Name the folder of a member, such as {weights.files[0].path.parent}."
        raise InputError("--finetune", f"{weights.name}, a bank", "one set", advice)
    file = next((file for file in weights.files if set(regions) <= set(file.regions)), None)
    wanted = config.network
    if file is None or file.network.context > wanted.context or _like(file.network, wanted) != wanted:
        raise InputError("--finetune", str(weights.network), str(wanted), "Train the network of the set.")
    return adapted(load_network(file).state_dict(), wanted, file.regions.index(regions[0]))


def _like(network: NetworkConfig, wanted: NetworkConfig) -> NetworkConfig:
    """The network with all that `adapted` can change as it is wanted."""
    return replace(network, views=wanted.views, context=wanted.context, outputs=wanted.outputs)


def _plan(run: Run, precision: str) -> list[TrainPlan]:
    """A plan for the format to train in, and one for fp32 to fall back to: each the fastest that fits.

    The first chooses the crop of a network of patches, which from then on is its patch.
    """
    config, device = run.report.config, run.report.device
    share = -(-config.batch // parallel.size())
    size = size_to_plan(run.training, config)
    plans = [plan_train(config.network, size, share, run.budget, device, precision, config.objective)]
    run.tell.on_plan(plans[0])
    if smaller := plans[0].smaller_crop:
        found = f"more does not fit in {config.vram}: {smaller}"
        run.note(f"{found}: a step sees less around each voxel, so what is learnt, and the Dice, can differ")
    if crop_ZHW := plans[0].crop_ZHW:
        cropped = replace(config.network, patch="x".join(map(str, crop_ZHW)), cropped=True)
        run.report.config = config = replace(config, network=cropped)
    arguments = config.network, size, share, run.budget, device
    if config.precision == "auto" and precision != "fp32":
        try:
            plans.append(plan_train(*arguments, "fp32", config.objective))
        except BudgetError:
            run.note(f"fp32 does not fit in {config.vram}: training stays in {precision} also when it is unstable")
    return plans


def train_networks(run: Run, network: Network) -> dict[Region, Path]:
    """Train one network after another; returns where each region's weights lie, beside the checkpoints.

    All regions use this one network: each goes on from the weights of its parent region, which shows the same anatomy.
    """
    config = run.report.config
    paths, plans = dict[Region, Path](), run.report.plans
    for group in run.groups:
        if config.finetune and not run.folder.holds(names_of(group)):
            network.load_state_dict(_finetuned(config, group))
        validation = [case for case in run.validation if holds_slices(case, group[0], config.network.views)]
        # Without patients to validate on, no epoch is better than the others.
        schedule = "cosine" if config.schedule == "plateau" and not validation else config.schedule
        watched = config if validation else replace(config, patience=None, schedule=schedule)
        training = NetworkTraining(group, network, run.training, validation, watched, plans)
        paths |= dict.fromkeys(group, _train_network(run, training))
        plans = list(training.plans.values())  # with smaller micro-batches where the card ran out of memory
    for text in cuda.beyond(run.report.cuda_peak, run.budget.total_bytes):
        run.note(text)
    network.cpu()  # scoring the test part needs the memory
    empty_cache()
    return paths


def _train_network(run: Run, training: NetworkTraining) -> Path:
    """Train one network, with checkpoints, and write its weights; returns where."""
    if run.folder.restore(training.name, training.state):
        run.note(f"{training.name.upper()} goes on at step {training.history.steps}")
    history = training.history
    report = NetworkReport(history.epochs, history.curve, history.switches, history.peaks)
    run.report.networks[training.name] = report

    def on_epoch(epoch: Epoch, validation: Validation) -> None:
        run.report.cuda_peak = cuda.highest(run.report.cuda_peak, run.report.device)
        run.tell.on_epoch(epoch)
        if validation.examples and (path := run.folder.examples(epoch)):
            what = f"no pictures of epoch {epoch.number}"
            run.attempt(what, run.tell.draw_examples, path, epoch, validation.examples)
        run.write()

    def on_checkpoint() -> None:
        if parallel.rank() == 0:
            run.folder.save(training.name, training.state)

    best = training.run(Listener(run.tell.on_progress, on_epoch, on_checkpoint))
    for text in history.notes:
        run.note(text)
    try:
        report.thresholds = training.finish()
    except Exception as error:
        if parallel.size() > 1:  # the others wait for the thresholds
            raise
        run.note(f"{training.name.upper()} masks are taken at 0, not where validation Dice is best: {describe(error)}")
    path = run.folder.weights_of(training.name)
    summary = {
        "training_cases": len(run.training),
        "held_out": run.report.held_out,
        "steps": best.steps,
        "seconds": round(best.seconds),
        "precision": training.state.controller.fast,
        "versions": run.report.versions,
    }
    metrics = {"validation_dice": best.region_dice, "validation_cases": len(training.validation)}
    metrics |= {"thresholds": report.thresholds}
    if parallel.rank() == 0:
        save_network(training.network, WeightsFile(path, training.regions, run.report.config.network, summary, metrics))
    return path

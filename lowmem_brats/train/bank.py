"""Train a bank: its members one after another, then the decision network that chooses among them.

Source: Wang et al. 2022, "Med-DANet: Dynamic Architecture Network for Efficient Medical Volumetric Segmentation",
equations 5 and 6. The paper takes one step with all members, whose loss is the mean of theirs. They share no weights,
so each gets the gradient that it would get alone, and Adam does not heed its length: one after another they learn the
same and need the memory of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

import torch

from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.config.bank import members_of
from lowmem_brats.data.case_list import read_cases
from lowmem_brats.engine import parallel
from lowmem_brats.engine.precision import choose_precision
from lowmem_brats.errors import InputError
from lowmem_brats.memory.bank import plan_members
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.footprint import multiply_adds
from lowmem_brats.memory.planner import InferencePlan, plan_train
from lowmem_brats.networks import stride_of
from lowmem_brats.train.data import TrainingData, prepare_data
from lowmem_brats.train.dataset import frame_of
from lowmem_brats.train.decision import ALPHA, EPOCHS, SKIP_WEIGHT, label_slices, train_decision
from lowmem_brats.train.folder import RunFolder, hold_run_folder
from lowmem_brats.train.held_out import report_held_out
from lowmem_brats.train.networks import TrainListener
from lowmem_brats.train.recipe import check_recipe, check_resumable
from lowmem_brats.train.report import TrainReport, read_run, versions_here
from lowmem_brats.train.run import train_set
from lowmem_brats.train.windows import window_of
from lowmem_brats.weights.decision import DecisionFile, save_decision
from lowmem_brats.weights.header import WeightsFile
from lowmem_brats.weights.index import INDEX, write_bank_index
from lowmem_brats.weights.store import open_set

EARLY = 0.75
"""The smaller half of the members trains for this share of the epochs, so that it does not overfit (section 4.1)."""
COUNTED_HW = (192, 160)
"""Pixels of the slice for which operations are counted: about a brain's."""
MEMBERS, RUN = "members", "run.json"
SAFE = "fp32"
"""The format in which members segment to be compared, if they were not all trained in one."""


def cost_of(file: WeightsFile) -> float:
    """10⁹ multiply-adds per megapixel."""
    return multiply_adds(file.network, COUNTED_HW) / 1e3 / (COUNTED_HW[0] * COUNTED_HW[1])


def train_bank(
    data: Path,
    out: Path | None,
    config: TrainConfig,
    tell: TrainListener | None = None,
    resume: bool = False,
    cache: Path | None = None,
) -> TrainReport:
    """Train the bank `config.bank` on labelled cases; `out` becomes a weights set for `segment`, a bank.

    Each member is trained in a run folder of its own in `out/members`. Arguments and errors as `train.run.train_set`;
    `resume`: go on with the member at which an earlier run ended.
    """
    tell = tell or TrainListener()
    with parallel.processes():
        if parallel.size() > 1:
            raise InputError("--bank", "several processes", "one", "Train it without torchrun.")
    members = _recipes(config)
    for recipe in members.values():
        device, budget, _ = check_recipe(recipe)
    with hold_run_folder(out) as (out, notes):
        stored = read_run(out) if resume else None
        if stored:
            check_resumable(config, stored.config, out)
            cache = cache or (Path(stored.cache) if stored.cache else None)
        report = TrainReport(config, versions_here(), str(device), [], [], [], data=str(data), cache=str(cache or ""))
        report.notes = list(stored.notes) if stored else []
        cache, tell = cache or out / "cache", _keeping_notes(tell, report)
        for text in notes:
            tell.on_note(text)
        tell.on_folder(out)
        found = _prepare(data, members, stored, cache, tell, report)
        for recipe in members.values():
            _check_budget(recipe, budget, str(device), found)
        if not resume:
            _forget(out)  # only now, when nothing can be wrong with what was asked for
        RunFolder(out).write_report(report)
        tell = replace(tell, on_folder=lambda folder: None, on_data=lambda report: None)  # told once, for all
        try:
            for number, (name, recipe) in enumerate(members.items(), 1):
                folder = out / MEMBERS / name
                tell.on_fact(f"member       {name}, {number} of {len(members)}")
                if not _is_trained(folder, recipe):
                    train_set(data, folder, recipe, tell, (folder / RUN).exists(), cache, report)
            _train_choice(out, members, found, report, tell)
        except BaseException:
            tell.on_note(f"the bank goes on with: lowmem-brats train {quote(str(data))} -o {quote(str(out))} --resume")
            raise
        report_held_out(out, found.test, report, _trained_in(open_set(str(out)).files), tell, tell.on_note)
        RunFolder(out).write_report(report)
    return report


def _recipes(config: TrainConfig) -> dict[str, TrainConfig]:
    """How to train each member, the smallest first. A time limit is shared out by passes and operations."""
    networks = members_of(config.bank or "", config.network)
    early = max(round(EARLY * config.epochs), 1)
    epochs = [early if number < len(networks) // 2 else config.epochs for number in range(len(networks))]
    work = [each * multiply_adds(network, COUNTED_HW) for each, network in zip(epochs, networks.values(), strict=True)]
    return {
        name: replace(
            config,
            bank=None,
            network=network,
            epochs=passes,
            max_seconds=config.max_seconds and config.max_seconds * share / sum(work),
        )
        for (name, network), passes, share in zip(networks.items(), epochs, work, strict=True)
    }


def _keeping_notes(tell: TrainListener, report: TrainReport) -> TrainListener:
    """The listener, which is told each note once, although several members make it; the report keeps them all."""
    told = set[str]()

    def on_note(text: str) -> None:
        if text not in told:
            tell.on_note(text)
            told.add(text)
        if text not in report.notes:
            report.notes.append(text)

    return replace(tell, on_note=on_note)


def _forget(out: Path) -> None:
    """Let go of an older bank: its members are not taken for trained, and its index names no files that change."""
    for path in (out / INDEX, *(out / MEMBERS).glob(f"*/{INDEX}"), *(out / MEMBERS).glob(f"*/{RUN}")):
        path.unlink(missing_ok=True)


def _is_trained(folder: Path, recipe: TrainConfig) -> bool:
    """Whether a member is there, trained by this recipe; one of fewer epochs or less time goes on."""
    return (folder / INDEX).exists() and read_run(folder).config == recipe


def _prepare(
    data: Path,
    members: dict[str, TrainConfig],
    stored: TrainReport | None,
    cache: Path,
    tell: TrainListener,
    report: TrainReport,
) -> TrainingData:
    """The cases as the member with the largest stride wants them, which suits all."""
    recipe = max(members.values(), key=lambda recipe: stride_of(recipe.network))
    cases, left_out = read_cases(data, recipe.strict, recipe.allow_missing)
    for text in left_out:
        tell.on_note(text)
    stored = stored if stored and stored.training_cases else None
    on_progress = partial(tell.on_progress, "reading cases")
    found = prepare_data(cases, stored, recipe, cache, True, on_progress, tell.on_note)
    parts = [[case.case_id for case in part] for part in (found.training, found.validation, found.test)]
    report.training_cases, report.validation_cases, report.test_cases = parts
    report.patients, report.checksums = found.patients, found.checksums
    tell.on_data(report)
    return found


def _check_budget(recipe: TrainConfig, budget: MemoryBudget, device: str, data: TrainingData) -> None:
    """Raise BudgetError now, and not when the members before it are trained, where a member does not fit.

    It must fit while it is trained, and while it segments whole slices to be compared.
    """
    size_HW = window_of(frame_of(data.training, recipe.network.views), recipe.window)
    precision = choose_precision(recipe.precision, torch.device(device))
    plan_train(recipe.network, size_HW, recipe.batch, budget, device, precision, recipe.objective)
    _plan_comparison([recipe.network], budget, device, SAFE, data)


def _plan_comparison(
    networks: Sequence[NetworkConfig], budget: MemoryBudget, device: str, precision: str, data: TrainingData
) -> InferencePlan:
    """How the members segment the training slices, to be compared."""
    size_HW = frame_of(data.training, networks[0].views)
    return plan_members(networks, size_HW, budget, device, precision)


def _trained_in(files: Iterable[WeightsFile]) -> str:
    """The format that the members were trained in, in which they segment too; fp32 if there were several."""
    formats = {str(file.training["precision"]) for file in files}
    return formats.pop() if len(formats) == 1 else SAFE


def _train_choice(
    out: Path, members: dict[str, TrainConfig], data: TrainingData, report: TrainReport, tell: TrainListener
) -> None:
    """Label the slices, train the decision network, and write the bank's index."""
    sets = {name: open_set(str(out / MEMBERS / name)) for name in members}
    files = [weights.files[0] for weights in sets.values()]
    costs = [cost_of(file) for file in files]
    device, budget, _ = check_recipe(next(iter(members.values())))
    config = report.config
    plan = _plan_comparison([file.network for file in files], budget, str(device), _trained_in(files), data)
    labels = label_slices(data.training, files, costs, plan, partial(tell.on_progress, "comparing members"))
    on_progress = partial(tell.on_progress, "decision network")
    network, frame_HW = train_decision(data.training, labels, 1 + len(files), config.seed, EPOCHS, on_progress)
    counts = [int((labels.best_N == choice).sum()) for choice in range(1 + len(files))]
    training = {"epochs": EPOCHS, "alpha": ALPHA, "skip_weight": SKIP_WEIGHT, "slices_by_best_choice": counts}
    path = out / "decision.safetensors"
    checksums = {name: weights.files[0].sha256 for name, weights in sets.items()}
    save_decision(network, DecisionFile(path, checksums, frame_HW, training | {"versions": report.versions}))
    shown = [f"{name} {count}" for name, count in zip(("skip", *members), counts, strict=True)]
    tell.on_fact(f"best choice for {len(labels.rows)} training slices: {', '.join(shown)}")
    rows = {name: (file.path, cost) for name, file, cost in zip(members, files, costs, strict=True)}
    write_bank_index(out, out.resolve().name, rows, path)

"""A whole training: cases, split, networks, weights, and their scores on patients that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.case_files import CaseFiles
from lowmem_brats.data.case_list import LabelledCase, is_plain, read_cases
from lowmem_brats.data.labels import Region, names_of
from lowmem_brats.engine import parallel
from lowmem_brats.engine.losses import find_loss
from lowmem_brats.errors import InputError
from lowmem_brats.evaluate.pairs import summarise
from lowmem_brats.memory.device import choose_device, open_budget
from lowmem_brats.networks import SliceNetwork, stride_of
from lowmem_brats.train.data import groups_of, prepare_data, split_as
from lowmem_brats.train.folder import RunFolder, fresh_runs
from lowmem_brats.train.held_out import score_held_out
from lowmem_brats.train.lock import InUseError, hold
from lowmem_brats.train.networks import Run, TrainListener, prepare_network, train_networks
from lowmem_brats.train.report import TrainReport, changes_since, check_resumable, read_run, revision
from lowmem_brats.weights.store import versions


def train_set(
    data: Path,
    out: Path | None,
    config: TrainConfig,
    tell: TrainListener | None = None,
    resume: bool = False,
    cache: Path | None = None,
) -> TrainReport | None:
    """Train on labelled cases; `out` becomes a run folder and a weights set for `segment`.

    `data`: a folder of case folders, or a list of cases; `out`: None for a new folder in `run_folder.RUNS`; `resume`:
    go on with what `out` holds; `cache`: where prepared slices are kept, by default where they were, or in `out`. With
    several processes only the first writes, tells and returns a report, the others None. Raises InputError for unusable
    cases or options, or where a training is under way in `out`, BudgetError where nothing fits.
    """
    with parallel.processes(), ExitStack() as stack:
        _check_processes(config)
        tell = tell if tell and parallel.rank() == 0 else TrainListener()
        find_loss(config.loss)
        stride_of(config.network)  # a network that does not exist is told before a folder is made
        device, notes = choose_device(parallel.local_device(config.device))
        budget = open_budget(config.vram, device)
        out, taken_over = stack.enter_context(_folder_of_its_own(out))
        stored = read_run(out) if resume else None
        if stored:
            check_resumable(config, stored.config, out)
        cases, left_out = read_cases(data, config.strict, config.allow_missing)
        notes += [*taken_over, *left_out]
        for text in notes:
            tell.on_note(text)  # now, because too few cases may be left
        training, validation, test = ([case.case_id for case in part] for part in split_as(stored, cases, config).parts)
        report = TrainReport(config, versions() | {"revision": revision()}, str(device), training, validation, test)
        cache = cache or (Path(stored.cache) if stored and stored.cache else None)
        report.data, report.cache, report.processes = str(data), str(cache or ""), parallel.size()
        report.notes = list(stored.notes) if stored else []
        run = Run(RunFolder(out), report, tell, told=set(notes))
        tell.on_folder(out)
        for text in notes:
            run.note(text)
        held_out = _read(run, cases, stored, cache)
        network = prepare_network(run, budget, resume)
        missing = run.folder.missing(_regions(config), report)
        if missing:
            run.note(f"no set to segment with yet: {', '.join(missing)} not trained")
        if not resume and parallel.rank() == 0:
            run.folder.forget()  # only now, when nothing can be wrong with what was asked for
        parallel.wait()  # the others may not find an older training's checkpoints
        run.write()
        with _way_back(run):
            return _train(run, network, held_out)


def _check_processes(config: TrainConfig) -> None:
    """Raise InputError for what several processes cannot share."""
    if config.batch < parallel.size():
        raise InputError("--batch", str(config.batch), f"{parallel.size()} or more, one per process", "Raise it.")
    if config.network.norm == "batch" and parallel.size() > 1:
        raise InputError("batch norm", "several processes", "one, whose statistics are the batch's", "Use 'group'.")


def _regions(config: TrainConfig) -> list[Region]:
    return [region for group in groups_of(config) for region in group]


@contextmanager
def _folder_of_its_own(out: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """The run folder, where no other training may write as long as the block runs, and notes; for all processes.

    The first one locks it. Where it cannot, all raise its InputError.
    """
    with ExitStack() as stack:
        found: tuple[Path, list[str]] | None = None
        trouble: dict[str, str] = {}
        if parallel.rank() == 0:
            try:
                found = _lock_first(out, stack)
            except InputError as error:
                trouble = vars(error)
        found, trouble = parallel.first((found, trouble))
        if found is None:
            raise InputError(**trouble)
        yield found


def _lock_first(out: Path | None, stack: ExitStack) -> tuple[Path, list[str]]:
    """Hold `out`, or the first fresh folder that is free, until the stack is closed; as `_folder_of_its_own`."""
    if not is_plain(place := str((out or Path()).resolve())):
        raise InputError(repr(place), "a name that weights cannot be read from", "UTF-8 on one line", "Choose another.")
    for folder in [out] if out else fresh_runs():
        try:
            return folder, stack.enter_context(hold(folder))
        except InUseError:
            if out:
                raise
    raise InputError("-o", "no free name for a run folder", "one", "Name it.")


def _read(run: Run, cases: list[LabelledCase], stored: TrainReport | None, cache: Path | None) -> list[LabelledCase]:
    """Prepare the cases and split them; returns those that are held out for the test."""
    report = run.report
    folder, shared = cache or run.folder.path / "cache", cache is not None
    on_progress = partial(run.tell.on_progress, "reading cases")
    found = prepare_data(cases, stored, report.config, folder, shared, on_progress, run.note)
    run.training, run.validation = found.training, found.validation
    report.training_cases, report.validation_cases, report.test_cases = (
        [case.case_id for case in part] for part in (found.training, found.validation, found.test)
    )
    report.patients, report.checksums = found.patients, found.checksums
    for text in changes_since(stored, report) if stored else ():
        run.note(text)
    run.tell.on_data(report)
    return found.test


@contextmanager
def _way_back(run: Run) -> Iterator[None]:
    """Say how to go on where the block is left early, for whatever reason."""
    try:
        yield
    except BaseException:
        if any(run.folder.holds(names_of(group)) for group in groups_of(run.report.config)):
            command = f"lowmem-brats train {quote(run.report.data)} -o {quote(str(run.folder.path))} --resume"
            run.tell.on_note(f"the training has stopped; what was learnt is kept, and this goes on: {command}")
        raise


def _train(run: Run, network: SliceNetwork, held_out: Sequence[CaseFiles]) -> TrainReport | None:
    """Train the networks, install their weights, and score the set last, so that no failure there costs weights."""
    paths = train_networks(run, network)
    if parallel.rank():
        return None
    missing = run.folder.install(paths, run.report)
    run.write()
    if not missing:
        run.attempt("the test patients are not scored", _score, run, held_out)
        run.write()
    return run.report


def _score(run: Run, cases: Sequence[CaseFiles]) -> None:
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

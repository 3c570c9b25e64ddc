"""A whole training: cases, split, networks, weights, and their scores on patients that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from shlex import quote

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.case_list import LabelledCase, read_cases
from lowmem_brats.data.labels import names_of
from lowmem_brats.engine import parallel
from lowmem_brats.networks import Network
from lowmem_brats.train.data import prepare_data, split_as
from lowmem_brats.train.folder import RunFolder, hold_run_folder
from lowmem_brats.train.held_out import score_test_part
from lowmem_brats.train.networks import Run, TrainListener, prepare_network, train_networks
from lowmem_brats.train.recipe import check_recipe, check_resumable, with_crop_of
from lowmem_brats.train.report import TrainReport, changes_since, read_run, versions_here


def train_set(
    data: Path,
    out: Path | None,
    config: TrainConfig,
    tell: TrainListener | None = None,
    resume: bool = False,
    cache: Path | None = None,
    split_of: TrainReport | None = None,
) -> TrainReport | None:
    """Train on labelled cases; `out` becomes a run folder and a weights set for `segment`.

    `data`: a folder of case folders, or a list of cases; `out`: None for a new folder in `folder.RUNS`; `resume`:
    go on with what `out` holds; `cache`: where prepared slices are kept, by default where they were, or in `out`;
    `split_of`: a training whose split a new one takes over. With several processes only the first writes, tells and
    returns a report, the others None. Raises InputError for unusable cases or options, or where a training is under way
    in `out`, BudgetError where nothing fits.
    """
    with parallel.processes(), ExitStack() as stack:
        tell = tell if tell and parallel.rank() == 0 else TrainListener()
        device, budget, notes = check_recipe(config)  # before a folder is made
        out, taken_over = stack.enter_context(hold_run_folder(out))
        stored = read_run(out) if resume else None
        if stored:
            config = with_crop_of(stored.config, config)
            check_resumable(config, stored.config, out)
        cases, left_out = read_cases(data, config.strict, config.allow_missing)
        notes += [*taken_over, *left_out]
        for text in notes:
            tell.on_note(text)  # now, because too few cases may be left
        split = split_as(stored or split_of, cases, config)
        training, validation, test = ([case.case_id for case in part] for part in split.parts)
        report = TrainReport(config, versions_here(), str(device), training, validation, test)
        cache = cache or (Path(stored.cache) if stored and stored.cache else None)
        report.data, report.cache, report.processes = str(data), str(cache or ""), parallel.size()
        report.notes = list(stored.notes) if stored else []
        run = Run(RunFolder(out), report, tell, budget, told=set(notes))
        tell.on_folder(out)
        for text in notes:
            run.note(text)
        held_out = _read(run, cases, stored or split_of, cache)
        network = prepare_network(run, resume)
        if missing := run.folder.missing([region for group in run.groups for region in group], report):
            run.note(f"no set to segment with yet: {', '.join(missing)} not trained")
        if not resume and parallel.rank() == 0:
            run.folder.forget()  # only now, when nothing can be wrong with what was asked for
        parallel.wait()  # the others may not find an older training's checkpoints
        run.write()
        with _way_back(run):
            return _train(run, network, held_out)


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
        if any(run.folder.holds(names_of(group)) for group in run.groups):
            command = f"lowmem-brats train {quote(run.report.data)} -o {quote(str(run.folder.path))} --resume"
            run.tell.on_note(f"the training has stopped; what was learnt is kept, and this goes on: {command}")
        raise


def _train(run: Run, network: Network, held_out: Sequence[LabelledCase]) -> TrainReport | None:
    """Train the networks, install their weights, and score the set last, so that no failure there costs weights."""
    paths = train_networks(run, network)
    if parallel.rank():
        return None
    missing = run.folder.install(paths, run.report)
    run.write()
    if not missing:
        run.attempt("the test patients are not scored", score_test_part, run, held_out)
        run.write()
    return run.report

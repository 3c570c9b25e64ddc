"""Batches follow from the seed and the step alone, cover an epoch once, and are augmented the same in any parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from easy_cases import DEPTH, EASY, SIDE, easy_cached, store_slices

from lowmem_brats.config import TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.engine import parallel
from lowmem_brats.train.batches import Batch, Batches

WT = (Region.WT,)


@pytest.fixture
def make(tmp_path: Path):  # type: ignore[no-untyped-def]
    """`make(config, regions)`: batches of two cases of six slices."""
    cases = [easy_cached(tmp_path, "a"), easy_cached(tmp_path, "b", 1)]
    return lambda config=EASY, regions=WT: Batches(cases, regions, config)


def pixels(batches: list[Batch]) -> torch.Tensor:
    """All slices of some batches."""
    return torch.cat([batch.slices_NCHW for batch in batches])


def test_an_epoch_holds_every_slice_once(make) -> None:  # type: ignore[no-untyped-def]
    batches = make()
    assert batches.per_epoch == 2 * DEPTH // 2
    seen = pixels(list(batches.read(0)))
    assert len(seen) == 2 * DEPTH
    assert len(torch.unique(seen.flatten(1), dim=0)) == 2 * DEPTH
    assert not torch.equal(seen, pixels(list(batches.read(1)))), "another order in the next epoch"


def test_a_slice_is_drawn_as_often_as_it_weighs(tmp_path: Path) -> None:
    """Of two slices, one without tumour and one of all three regions: 1 and 4 of 5 draws; alike if not balanced."""
    slices_ZCHW = np.ones((2, 4, SIDE, SIDE), np.float16)
    depth_ZHW = np.zeros((2, SIDE, SIDE), np.uint8)
    depth_ZHW[1, 2, 3] = 3
    case = store_slices(tmp_path / "case.json", "case", slices_ZCHW, depth_ZHW)
    for balance, share in ((True, 0.8), (False, 0.5)):
        batches = Batches([case], WT, replace(EASY, balance=balance))
        targets = [float(batch.target_NKHW.sum()) / 2 for epoch in range(100) for batch in batches.read(epoch)]
        assert np.mean(targets) == pytest.approx(share, abs=0.05 if balance else 0)


def test_what_does_not_fill_a_batch_waits_for_another_epoch(make) -> None:  # type: ignore[no-untyped-def]
    assert [len(batch.slices_NCHW) for batch in make(replace(EASY, batch=5)).read(0)] == [5, 5]
    assert [len(batch.slices_NCHW) for batch in make(replace(EASY, batch=50)).read(0)] == [12]


@pytest.mark.parametrize("augment", [False, True])
def test_going_on_within_an_epoch_gives_the_rest_of_it(make, augment: bool) -> None:  # type: ignore[no-untyped-def]
    config = replace(EASY, augment=augment, modality_dropout=0.5)
    whole = [batch.micro_batches(2, "cpu") for batch in make(config).read(3)]
    rest = [batch.micro_batches(2, "cpu") for batch in make(config).read(3, 4)]
    assert len(rest) == len(whole) - 4
    for ((slices, target),), ((others, other_target),) in zip(whole[4:], rest, strict=True):
        assert torch.equal(slices, others)
        assert torch.equal(target, other_target)


@pytest.mark.parametrize("change", [{"seed": 1}, {"augment": False}, {"modality_dropout": 1.0}])
def test_another_recipe_gives_other_batches(make, change: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    def first(config: TrainConfig) -> torch.Tensor:
        return next(make(config).read(0)).micro_batches(2, "cpu")[0][0]  # type: ignore[no-any-return]

    config = replace(EASY, augment=True)
    assert torch.equal(first(config), first(config))
    assert not torch.equal(first(config), first(replace(config, **change)))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_are_augmented_as_the_whole(make, size: int) -> None:  # type: ignore[no-untyped-def]
    batch = next(make(replace(EASY, batch=5, augment=True)).read(0))
    ((slices, target),) = batch.micro_batches(5, "cpu")
    parts = batch.micro_batches(size, "cpu")
    assert [len(part) for part, _ in parts] == [min(size, 5 - at) for at in range(0, 5, size)]
    assert torch.equal(torch.cat([part for part, _ in parts]), slices)
    assert torch.equal(torch.cat([part for _, part in parts]), target)
    assert not torch.equal(slices, batch.slices_NCHW)


def test_targets_of_three_regions(make) -> None:  # type: ignore[no-untyped-def]
    batch = next(make(regions=tuple(Region)).read(0))
    assert batch.target_NKHW.shape == (2, 3, SIDE, SIDE)
    counts = batch.target_NKHW.sum(dim=(0, 2, 3)).tolist()
    assert counts[0] > counts[1] > counts[2] > 0


def test_neighbours_are_read_with_a_slice(make) -> None:  # type: ignore[no-untyped-def]
    config = replace(EASY, network=replace(EASY.network, context=2), augment=True)
    batch = next(make(config).read(0))
    assert batch.slices_NCHW.shape == (2, 20, SIDE, SIDE)
    assert batch.augmentation.kept_NC.shape == (2, 4)
    ((slices, _),) = batch.micro_batches(2, "cpu")
    assert slices.shape == (2, 20, SIDE, SIDE)


def test_processes_share_a_batch_and_draw_their_own_warps(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    whole = next(make(replace(EASY, batch=5)).read(0)).slices_NCHW
    monkeypatch.setattr(parallel, "size", lambda: 2)
    shares, draws = [], []
    for rank in (0, 1):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(next(make(replace(EASY, batch=5)).read(0)).slices_NCHW)
        draws.append(next(make(replace(EASY, batch=4, augment=True)).read(0)).augmentation)
    assert torch.equal(shares[0], whole[::2])
    assert torch.equal(shares[1], whole[1::2])
    assert not (draws[0].matrix_N22 == draws[1].matrix_N22).all()

"""Crops follow from the seed and the step alone, lie in the order of the network's axes, and are changed a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from easy_cases import EASY, easy_cached, store_slices

from lowmem_brats.config import NetworkConfig, TrainConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.data.slice_cache import CachedCase
from lowmem_brats.train import crops as module
from lowmem_brats.train.augment import EPSILON
from lowmem_brats.train.batches import Batch, Batches
from lowmem_brats.train.crops import Crops, batches_of, change_intensities, size_to_plan

pytest.importorskip("monai")

REGIONS = tuple(Region)
PATCHES = replace(EASY, network=NetworkConfig(name="segresnet", width=8, outputs=3, patch="16x16x24"), batch=2)
SHAPE_ZHW = (12, 40, 48)

Make = Callable[..., Batches]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    """A case of 12 × 40 × 48 voxels, each of which tells where it lies, with a tumour in one corner; and a flat one."""
    folder = tmp_path_factory.mktemp("cache")
    z, h, w = np.meshgrid(*map(np.arange, SHAPE_ZHW), indexing="ij")
    slices_ZCHW = np.stack([z + 1, h + 1, w + 1, np.ones_like(z)], axis=1).astype(np.float16)
    depth_ZHW = ((z < 4) & (h < 4) & (w < 4)).astype(np.uint8) * 3
    return [store_slices(folder / "far.json", "far", slices_ZCHW, depth_ZHW), easy_cached(folder, "easy")]


@pytest.fixture
def make(cases: list[CachedCase]) -> Make:
    """`make(config, cases)`."""
    return lambda config=PATCHES, chosen=cases: batches_of(chosen, REGIONS, config)


def crops_of(batches: list[Batch]) -> torch.Tensor:
    """All crops of some batches."""
    return torch.cat([batch.slices_NCHW for batch in batches])


def test_the_network_decides_between_crops_and_slices(cases: list[CachedCase]) -> None:
    assert type(batches_of(cases, REGIONS, PATCHES)) is Crops
    assert type(batches_of(cases, REGIONS, EASY)) is Batches
    assert size_to_plan(cases, PATCHES) == (12, 40, 48)
    assert size_to_plan(cases, replace(EASY, window=16)) == (16, 16)


def test_an_epoch_sees_as_many_voxels_as_there_are(make: Make) -> None:
    batches = make()
    assert batches.size == (16, 16, 24)
    crops = [round(12 * 40 * 48 / (16 * 16 * 24)), 1]  # 4 of the large case; the small one is smaller than a crop
    assert batches.per_epoch == sum(crops) // 2
    assert make(replace(PATCHES, batch=1)).per_epoch == sum(crops)
    assert make(replace(PATCHES, batch=99)).per_epoch == 1


def test_a_crop_is_a_piece_of_the_volume_in_the_order_of_the_networks_axes(make: Make, cases: list[CachedCase]) -> None:
    for epoch in range(5):
        for batch in make(replace(PATCHES, batch=1), cases[:1]).read(epoch):
            assert batch.slices_NCHW.shape == (1, 4, 24, 16, 16), "W, H, Z"
            assert batch.target_NKHW.shape == (1, 3, 24, 16, 16)
            crop_CZHW = batch.slices_NCHW[0].permute(0, 3, 2, 1)
            inside_ZHW = crop_CZHW[3] != 0
            for number, axis in enumerate("ZHW"):
                (places,) = np.nonzero(inside_ZHW.any(dim=[a for a in range(3) if a != number]).numpy())
                assert len(places) == min(crop_CZHW.shape[1 + number], SHAPE_ZHW[number]), "inside, or all of it"
                along = crop_CZHW[number][inside_ZHW].unique()
                assert len(along) == len(places) == along[-1] - along[0] + 1, axis
                assert crop_CZHW[number].movedim(number, 0)[places[0]].max() == along[0], axis
            tumour = (crop_CZHW[:3] <= 4).all(dim=0) & inside_ZHW
            assert torch.equal(batch.target_NKHW[0, 2].permute(2, 1, 0).bool(), tumour)


def test_most_crops_hold_the_tumour_unless_they_are_drawn_anywhere(make: Make, cases: list[CachedCase]) -> None:
    def share(config: TrainConfig) -> float:
        found = [b.target_NKHW.any().item() for epoch in range(40) for b in make(config, cases[:1]).read(epoch)]
        return float(np.mean(found))

    config = replace(PATCHES, batch=1)
    assert 0.8 < share(config) < 0.95
    assert share(replace(config, balance=False)) < 0.15


@pytest.mark.parametrize("augment", [False, True])
def test_going_on_within_an_epoch_gives_the_rest_of_it(make: Make, augment: bool) -> None:
    config = replace(PATCHES, augment=augment, modality_dropout=0.5)
    whole, rest = list(make(config).read(3)), list(make(config).read(3, 1))
    assert torch.equal(crops_of(whole[1:]), crops_of(rest))
    assert not torch.equal(crops_of(whole), crops_of(list(make(config).read(4))))
    assert not torch.equal(crops_of(whole), crops_of(list(make(replace(config, seed=1)).read(3))))


def test_a_batch_in_parts_is_the_batch(make: Make) -> None:
    batch = next(make(replace(PATCHES, augment=True)).read(0))
    parts = batch.micro_batches(1, "cpu")
    assert torch.equal(torch.cat([crops for crops, _ in parts]), batch.slices_NCHW)
    assert torch.equal(torch.cat([target for _, target in parts]), batch.target_NKHW)


def test_crops_and_regions_are_flipped_together_along_every_axis(
    make: Make, cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCALE", 0.0)
    monkeypatch.setattr(module, "SHIFT", 0.0)
    config = replace(PATCHES, batch=1, augment=True, modality_dropout=0.0)
    seen = set[tuple[bool, ...]]()
    for epoch in range(12):
        for batch in make(config, cases[:1]).read(epoch):
            crop_CZHW = batch.slices_NCHW[0].permute(0, 3, 2, 1)
            inside_ZHW = crop_CZHW[3] != 0
            tumour = (crop_CZHW[:3] <= 4).all(dim=0) & inside_ZHW
            assert torch.equal(batch.target_NKHW[0, 0].permute(2, 1, 0).bool(), tumour)
            along = [crop_CZHW[axis].amax(dim=[a for a in range(3) if a != axis]) for axis in range(3)]
            filled = [values[values > 0] for values in along]
            seen.add(tuple(bool(values[-1] < values[0]) for values in filled))
    assert len(seen) == 8


def test_intensities_are_scaled_and_shifted_per_modality_and_background_stays_0() -> None:
    rng = np.random.default_rng(0)
    crop_CZHW = rng.normal(size=(4, 8, 8, 8)).astype(np.float32)
    crop_CZHW[:, :2] = 0
    kept = crop_CZHW.copy()
    found: list[tuple[float, float]] = []
    for _ in range(50):
        changed_CZHW = change_intensities(rng, crop_CZHW, 0.0)
        assert not changed_CZHW[:, :2].any()
        for before, after in zip(crop_CZHW[:, 2:], changed_CZHW[:, 2:], strict=True):
            gain, shift = np.polyfit(before.ravel(), after.ravel(), 1)
            np.testing.assert_allclose(after, gain * before + shift, atol=1e-5)
            found.append((gain, shift))
    np.testing.assert_array_equal(crop_CZHW, kept)
    gains, shifts = map(np.array, zip(*found, strict=True))
    assert 0.9 <= gains.min() < 0.91
    assert 1.09 < gains.max() <= 1.1 + 1e-6
    assert -0.1 <= shifts.min() < -0.09
    assert 0.09 < shifts.max() <= 0.1 + 1e-6
    assert abs(np.corrcoef(gains[::4], gains[1::4])[0, 1]) < 0.5


def test_a_voxel_of_the_brain_is_never_0_and_a_lost_modality_always(monkeypatch: pytest.MonkeyPatch) -> None:
    crop_CZHW = np.full((4, 1, 1, 2), 0.1, np.float32)
    lost = [change_intensities(np.random.default_rng(n), crop_CZHW, 1.0).any(axis=(1, 2, 3)).sum() for n in range(20)]
    assert set(lost) == {2, 3}
    monkeypatch.setattr(module, "draw_kept", lambda rng, n, channels, dropout: np.ones((n, channels), np.bool_))
    rng = SimpleNamespace(uniform=lambda low, high, shape: np.full(shape, 0.0 if low == -module.SCALE else -0.1))
    monkeypatch.setattr(module, "SCALE", 0.2)  # so that both can be told apart
    changed_CZHW = change_intensities(rng, crop_CZHW, 0.0)  # type: ignore[arg-type]
    assert np.all(changed_CZHW == np.float32(EPSILON)), "0.1 − 0.1"

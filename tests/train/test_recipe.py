"""A training that goes on keeps its recipe, and a recipe that this machine cannot follow is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_models as models
import pytest
from easy_cases import EASY, TINY

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import InputError
from lowmem_brats.train import recipe
from lowmem_brats.train.recipe import MAY_CHANGE, check_recipe, check_resumable


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"loss": "disc"}, "--loss"),
        ({"network": replace(TINY, name="unet")}, "network"),
        ({"device": "tpu"}, "--device: 'tpu'"),
        ({"stochastic_depth": 0.1}, "--stochastic-depth: 0.1 for UNet2d, which has no place for it"),
        ({"spatial_dropout": 0.1, "network": NetworkConfig(name="emcad-b0")}, "--spatial-dropout: 0.1 for EMCAD"),
    ],
)
def test_what_does_not_exist_is_refused(change: dict[str, object], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_recipe(replace(EASY, **change))
    assert str(caught.value).startswith(where)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"network": {"outputs": 1}}, "--mode: three-networks for segresnet, which sees patches; expected one-network"),
        ({"network": {"views": 3}}, "--views: 3 for segresnet"),
        ({"network": {"context": 1}}, "--context: 1 for segresnet"),
        ({"window": 112}, "--window: 112 for segresnet"),
        ({"finetune": "unet2d"}, "--finetune: unet2d for segresnet"),
        ({"stochastic_depth": 0.1}, "--stochastic-depth: 0.1 for SegResNet"),
    ],
)
def test_what_patches_cannot_heed_is_refused_by_name(change: dict[str, Any], where: str) -> None:
    pytest.importorskip("monai")
    patches = NetworkConfig(**{"name": "segresnet", "width": 8, "outputs": 3} | change.pop("network", {}))
    check_recipe(replace(EASY, network=NetworkConfig(name="segresnet", width=8, outputs=3), modality_dropout=0.3))
    with pytest.raises(InputError) as caught:
        check_recipe(replace(EASY, network=patches, **change))
    assert str(caught.value).startswith(where)


def test_a_network_that_is_imported_only_is_not_trained() -> None:
    pytest.importorskip("dynamic_network_architectures")
    stored = models.architecture(3, False)
    told = {"class": stored["network_class_name"].rpartition(".")[2], "settings": stored["arch_kwargs"]}
    network = NetworkConfig(name="nnunet", outputs=3, architecture=json.dumps(told))
    with pytest.raises(InputError, match="--network: nnunet, which is imported"):
        check_recipe(replace(EASY, network=network))


def test_what_a_network_can_drop_is_let_through() -> None:
    check_recipe(replace(EASY, spatial_dropout=0.1))
    check_recipe(replace(EASY, stochastic_depth=0.1, network=NetworkConfig(name="emcad-b0")))


def test_several_processes_need_a_slice_each_and_no_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe.parallel, "size", lambda: 2)
    for change, where in (({"batch": 1}, "--batch: 1"), ({"network": replace(TINY, norm="batch")}, "batch norm")):
        with pytest.raises(InputError, match=where):
            check_recipe(replace(EASY, **change))


def test_only_what_leaves_the_training_the_same_may_change(tmp_path: Path) -> None:
    other = {
        "network": replace(TINY, width=16),
        "regions": ("wt",),
        "precision": "bf16",
        "device": "cuda",
        "vram": "2G",
        "epochs": 99,
        "max_seconds": 1.0,
        "patience": 3,
        "strict": True,
        "allow_missing": ("t1",),
    }
    for key in vars(EASY):
        changed = {key: other[key]} if key in other else {}
        if key in MAY_CHANGE:
            check_resumable(replace(EASY, **changed), EASY, tmp_path)
    for changed, told in (
        ({"network": other["network"]}, "width 16; expected as it began: width 8"),
        ({"network": replace(TINY, name="emcad-b0")}, "network emcad-b0; expected as it began: network unet2d"),
        ({"seed": 1}, "seed 1; expected as it began: seed 0"),
        ({"loss": "ce"}, "loss ce; expected as it began: loss dice"),
        ({"validation": 0.3, "average": 0.9}, "average 0.9; validation 0.3; expected as it began: average 0.5; "),
        ({"optimizer": "radam"}, "optimizer radam; expected as it began: optimizer adam"),
        ({"spatial_dropout": 0.1}, "spatial dropout 0.1; expected as it began: spatial dropout 0.0"),
        ({"learning_rate": 0.1}, "learning rate 0.1; expected as it began: learning rate 0.01"),
        ({"fold": (1, 5)}, "fold 1 5; expected as it began: fold None"),
    ):
        with pytest.raises(InputError) as caught:
            check_resumable(replace(EASY, **changed), EASY, tmp_path)
        assert str(caught.value).startswith(f"resuming {tmp_path}: {told}")

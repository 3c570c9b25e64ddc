"""Networks of others become sets that say all they want; what cannot be carried over is refused, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models as models
import pytest
import torch
from safetensors import safe_open

from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import InputError, LowmemError, WeightsError
from lowmem_brats.weights.file import load_patch_network
from lowmem_brats.weights.foreign import Foreign, write_foreign
from lowmem_brats.weights.header import read_header
from lowmem_brats.weights.monai_bundle import read_bundle
from lowmem_brats.weights.nnunet_folder import read_nnunet
from lowmem_brats.weights.store import open_set

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")

Change = Callable[[dict[str, Any]], object]


def changed(path: Path, change: Change) -> None:
    """Rewrite a JSON file as `change` leaves it."""
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def imported(foreign: Foreign, folder: Path) -> Path:
    write_foreign(foreign, folder)
    return folder


def test_a_bundle_is_carried_over(tmp_path: Path) -> None:
    theirs = models.segresnet().state_dict()
    folder = imported(read_bundle(models.write_bundle(tmp_path / "bundle")), tmp_path / "set")
    weights = open_set(str(folder))
    (file,) = weights.files
    assert (file.modalities, file.preprocessing, file.fusion) == (
        ("t1ce", "t1", "t2", "flair"),
        "zscore-brain",
        "painted",
    )
    assert file.regions == tuple(Region)
    assert file.network == NetworkConfig(name="segresnet", width=8, outputs=3, patch="40x56x48")
    assert file.training["imported"] == "MONAI bundle 0.5.2"
    assert file.training["outputs"] == ["tc", "wt", "et"]
    assert weights.min_confidence == 0, "nothing is dropped as doubtful, as its authors drop nothing"
    ours = load_patch_network(file).state_dict()
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert torch.equal(ours["layers.first.conv.weight"], theirs["convInit.conv.weight"])
    assert torch.equal(ours["layers.head.weight"], theirs["conv_final.2.conv.weight"][[1, 0, 2]])
    with safe_open(file.path, framework="pt") as stored:
        assert stored.get_tensor("layers.head.bias").dtype == torch.float32, "half would move logits by more than 0.001"


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"model": state}, lambda state: {"state_dict": state}]
)
def test_a_bundles_weights_may_be_wrapped(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    source = models.write_bundle(tmp_path / "bundle", weights=wrap(models.segresnet().state_dict()))
    assert open_set(str(imported(read_bundle(source), tmp_path / "set"))).files


@pytest.mark.parametrize("stored", [models.configuration(), models.old_configuration()], ids=["new", "old"])
def test_plans_of_both_ages_describe_the_same_network(tmp_path: Path, stored: dict[str, Any]) -> None:
    (theirs,) = models.write_nnunet(tmp_path / "model", stored)
    (file,) = open_set(str(imported(read_nnunet(tmp_path / "model"), tmp_path / "set"))).files
    assert (file.network.name, file.network.patch, file.network.tissues) == ("nnunet", "24x32x28", False)
    assert (file.modalities, file.preprocessing) == (("t1", "t1ce", "t2", "flair"), "zscore-mask")
    assert file.training["configuration"] == "3d_fullres"
    assert file.training["spacing_mm"] == [1, 1, 1]
    assert file.training["deep_supervision"] is False
    ours = load_patch_network(file).state_dict()
    assert torch.equal(ours["head.weight"], theirs.state_dict()["decoder.seg_layers.1.weight"])


def test_a_configuration_inherits(tmp_path: Path) -> None:
    models.write_nnunet(tmp_path / "model")

    def inherit(plans: dict[str, Any]) -> None:
        plans["configurations"]["base"] = plans["configurations"].pop("3d_fullres")
        plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "patch_size": [24, 24, 24]}

    changed(tmp_path / "model" / "plans.json", inherit)
    assert read_nnunet(tmp_path / "model").network.patch == "24x24x24"
    changed(tmp_path / "model" / "plans.json", lambda p: p["configurations"]["base"].update(inherits_from="3d_fullres"))
    with pytest.raises(InputError, match="no configuration '3d_fullres'"):
        read_nnunet(tmp_path / "model")


def test_labels_become_tissues_in_this_projects_order(tmp_path: Path) -> None:
    (theirs,) = models.write_nnunet(tmp_path / "model", models.configuration(2), models.TISSUES, name="2d")
    (file,) = open_set(str(imported(read_nnunet(tmp_path / "model"), tmp_path / "set"))).files
    assert file.network.tissues
    assert file.network.patch == "1x24x32"
    assert file.training["outputs"] == ["background", "ed", "ncr", "et"]
    ours = load_patch_network(file).state_dict()
    assert torch.equal(ours["head.bias"], theirs.state_dict()["decoder.seg_layers.1.bias"][[0, 2, 1, 3]])


def test_folds_become_sets_that_are_used_together(tmp_path: Path) -> None:
    models.write_nnunet(tmp_path / "model", folds=3)
    (tmp_path / "model" / "fold_all").mkdir()
    (tmp_path / "model" / "fold_all" / "checkpoint_final.pth").write_bytes(b"not read, where there are folds")
    folder = imported(read_nnunet(tmp_path / "model"), tmp_path / "set")
    weights = open_set(str(folder))
    assert weights.name == "3dfullres-fold0 + 3dfullres-fold1 + 3dfullres-fold2"
    assert [len(files) for files in weights.by_region()] == [3]
    assert len(open_set(str(folder), alone=True).files) == 1


def test_use_mask_decides_the_normalisation(tmp_path: Path) -> None:
    models.write_nnunet(tmp_path / "model", models.configuration() | {"use_mask_for_norm": [False] * 4})
    assert read_nnunet(tmp_path / "model").preprocessing == "zscore-all"


def plans(change: Change) -> tuple[str, Change]:
    return "plans.json", lambda stored: change(stored["configurations"]["3d_fullres"])


def labels(**stored: Any) -> tuple[str, Change]:
    return "dataset.json", lambda dataset: dataset.update(labels=stored)


@pytest.mark.parametrize(
    ("where", "change", "told"),
    [
        (*plans(lambda c: c.update(normalization_schemes=["CTNormalization"] * 4)), "CTNormalization"),
        (*plans(lambda c: c.update(spacing=[5.0, 1.0, 1.0])), r"spacing \[5.0, 1.0, 1.0\], not 1 mm"),
        (*plans(lambda c: c.update(previous_stage="3d_lowres")), "a cascade after 3d_lowres"),
        (*plans(lambda c: c.update(use_mask_for_norm=[True, False, True, True])), "use_mask_for_norm"),
        (*plans(lambda c: c.update(preprocessor_name="Mine")), "preprocessor Mine"),
        (*plans(lambda c: c.update(patch_size=[10**9] * 3)), "patch_size"),
        (*plans(lambda c: c.update(patch_size="128")), "patch_size"),
        (*plans(lambda c: c.update(patch_size=[24, 32, 27])), r"patch_size \[24, 32, 27\]; expected multiples of its"),
        (*plans(lambda c: c.update(patch_size=[32, 32])), "patch_size"),
        (*plans(lambda c: c["architecture"]["arch_kwargs"].update(n_stages=10**9)), "n_stages 1000000000"),
        (*plans(lambda c: c["architecture"].update(network_class_name="os.system")), "class system"),
        (*plans(lambda c: c["architecture"]["arch_kwargs"].update(conv_op="os.system")), "conv_op 'os.system'"),
        (*plans(lambda c: c.pop("architecture")), "no description of the network"),
        ("plans.json", lambda p: p.update(transpose_forward=[2, 0, 1]), r"transpose_forward \[2, 0, 1\]"),
        ("plans.json", lambda p: p.update(configurations=[]), "no configuration '3d_fullres'"),
        ("dataset.json", lambda d: d.update(channel_names={"0": "CT"}), "channels CT, not T1, T1ce, T2 and FLAIR"),
        ("dataset.json", lambda d: d.update(channel_names=["T1"]), "channels none"),
        ("dataset.json", lambda d: d.update(regions_class_order=[3, 2, 1]), r"regions_class_order \[3, 2, 1\], not"),
        (*labels(background=0, liver=1), "labels background, liver, not background, NCR, ED and ET"),
        (*labels(background=0, edema=1, NCR=2, ET=3, cavity=4), "labels background, edema, NCR, ET, cavity"),
        (*labels(background=0, inner=[3], core=[2, 3], whole=[1, 2, 3]), "regions background, inner, core, whole"),
        (*labels(background=0, whole=[1, [2], 3]), "labels"),
        (*labels(), "no labels"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(tmp_path: Path, where: str, change: Change, told: str) -> None:
    models.write_nnunet(tmp_path / "model")
    changed(tmp_path / "model" / where, change)
    with pytest.raises(InputError, match=told):
        read_nnunet(tmp_path / "model")


def test_all_that_cannot_be_carried_over_is_listed_at_once(tmp_path: Path) -> None:
    models.write_nnunet(tmp_path / "model", models.configuration() | {"spacing": [2, 2, 2], "previous_stage": "low"})
    changed(tmp_path / "model" / "dataset.json", lambda d: d.update(channel_names={"0": "CT"}, labels={"liver": 1}))
    with pytest.raises(InputError, match=r"channels CT.*; labels liver.*; spacing.*; a cascade"):
        read_nnunet(tmp_path / "model")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("network_def", {"_target_": "SwinUNETR"}, "network SwinUNETR, not SegResNet"),
        ("network_def", "$__import__('os').system('true')", "network None"),
        ("network_def", models.inference_settings()["network_def"] | {"init_filters": 10**9}, "init_filters"),
        ("network_def", models.inference_settings()["network_def"] | {"init_filters": "$1"}, "init_filters"),
        ("network_def", models.inference_settings()["network_def"] | {"spatial_dims": 2}, "spatial_dims 2"),
        ("network_def", models.inference_settings()["network_def"] | {"in_channels": 1}, "in_channels 1"),
        ("network_def", models.inference_settings()["network_def"] | {"act": "SELU"}, "act SELU"),
        ("inferer", {"_target_": "SimpleInferer"}, "inferer SimpleInferer"),
        ("inferer", {"_target_": "SlidingWindowInferer", "roi_size": [10**6] * 3}, "inferer"),
        ("inferer", {"_target_": "SlidingWindowInferer", "roi_size": [44, 44, 44]}, "inferer"),
        ("preprocessing", {"transforms": [{"_target_": "ScaleIntensityd"}]}, "preprocessing by ScaleIntensityd"),
        ("preprocessing", None, "preprocessing by nothing"),
    ],
)
def test_a_bundle_of_another_kind_is_refused(tmp_path: Path, key: str, value: object, told: str) -> None:
    source = models.write_bundle(tmp_path / "bundle", models.inference_settings() | {key: value})
    with pytest.raises(InputError, match=told):
        read_bundle(source)


def test_a_bundle_with_other_outputs_is_refused(tmp_path: Path) -> None:
    source = models.write_bundle(tmp_path / "bundle")
    outputs = {"0": "Liver", "1": "Whole tumor", "2": "Enhancing tumor"}
    change = lambda m: m["network_data_format"]["outputs"]["pred"].update(channel_def=outputs)  # noqa: E731
    changed(source / "configs" / "metadata.json", change)
    with pytest.raises(InputError, match="outputs Liver, Whole tumor, Enhancing tumor, not tumor core"):
        read_bundle(source)


class _Evil:
    """Pickled, it makes a folder when it is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def evil_pickle(path: Path, trap: Path) -> None:
    path.write_bytes(pickle.dumps({"network_weights": _Evil(trap)}))


def evil_archive(path: Path, trap: Path) -> None:
    torch.save(models.checkpoint(models.authors_network(models.architecture(), 3), _best_ema=_Evil(trap)), path)


def evil_scalar(path: Path, trap: Path) -> None:
    """numpy's own reader of scalars would be handed an object."""
    import numpy

    class Scalar:
        def __reduce__(self) -> Any:
            return numpy.float64(1).__reduce__()[0], (numpy.dtype("O"), b"x")

    torch.save(models.checkpoint(models.authors_network(models.architecture(), 3), _best_ema=Scalar()), path)


def program(path: Path, trap: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)


def nonsense(path: Path, trap: Path) -> None:
    path.write_bytes(b"\x80\x04nonsense")


def no_table(path: Path, trap: Path) -> None:
    torch.save([1, 2], path)


@pytest.mark.parametrize("write", [evil_pickle, evil_archive, evil_scalar, program, nonsense, no_table])
@pytest.mark.parametrize("kind", ["bundle", "nnunet"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_malicious_or_damaged_checkpoint_is_refused_and_nothing_run_or_written(
    tmp_path: Path, write: Callable[[Path, Path], None], kind: str
) -> None:
    source, trap = tmp_path / "source", tmp_path / "trap"
    if kind == "bundle":
        models.write_bundle(source)
        write(source / "models" / "model.pt", trap)
    else:
        models.write_nnunet(source)
        write(source / "fold_0" / "checkpoint_final.pth", trap)
    with pytest.raises(WeightsError) as caught:
        write_foreign((read_bundle if kind == "bundle" else read_nnunet)(source), tmp_path / "set")
    if write is evil_archive:
        assert "it names posix.mkdir, which may run code" in caught.value.found
    assert not trap.exists()
    assert not (tmp_path / "set").exists()


def first_becomes(make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Make another tensor of the first one of a state dict."""
    return lambda state: state.update({"convInit.conv.weight": make(state["convInit.conv.weight"])})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("convInit.conv.weight"), "convInit.conv.weight missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more unexpected"),
        (
            lambda state: state.update({"convInit.conv.weight": torch.zeros(8, 1, 3, 3, 3)}),
            r"\(8, 1, 3, 3, 3\) instead",
        ),
        (lambda state: state["convInit.conv.weight"].fill_(torch.nan), "holds NaN"),
        (lambda state: state.clear(), "no table of tensors"),
        (lambda state: state.update(more="text"), "no table of tensors"),
        (first_becomes(lambda weight: weight.to_sparse()), "no table of tensors"),
        (first_becomes(lambda weight: weight.to("meta")), "no table of tensors"),
        (first_becomes(lambda weight: weight.to(torch.complex64)), "no table of tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Change, told: str) -> None:
    state = dict(models.segresnet().state_dict())
    change(state)
    with pytest.raises(WeightsError, match=told):
        write_foreign(read_bundle(models.write_bundle(tmp_path / "bundle", weights=state)), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_fold_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    models.write_nnunet(tmp_path / "model", folds=2)
    other = models.authors_network(models.architecture(residual=True), 3)
    torch.save(models.checkpoint(other), tmp_path / "model" / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(
        WeightsError, match=r"checkpoint_final.pth: .* missing; and \d+ more; expected the tensors of nnunet"
    ):
        write_foreign(read_nnunet(tmp_path / "model"), tmp_path / "set")
    torch.save(models.checkpoint(other, "2d"), tmp_path / "model" / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(WeightsError, match="another configuration"):
        write_foreign(read_nnunet(tmp_path / "model"), tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("missing", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    models.write_nnunet(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(LowmemError):
        read_nnunet(tmp_path / "model")
    (tmp_path / "model" / "plans.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_nnunet(tmp_path / "model")


@pytest.mark.parametrize(
    "wrong", [{"modalities": "t1 t1 t2 flair"}, {"preprocessing": "minmax"}, {"fusion": "mixed"}, {"fusion": ""}]
)
def test_a_header_that_asks_for_what_is_not_known_is_refused(tmp_path: Path, wrong: dict[str, str]) -> None:
    from safetensors.torch import save_file

    path = imported(read_bundle(models.write_bundle(tmp_path / "bundle")), tmp_path / "set") / "bundle.safetensors"
    with safe_open(path, framework="pt") as stored:
        header = dict(stored.metadata())
    save_file({"x": torch.zeros(1)}, path, header | wrong)
    with pytest.raises(WeightsError, match="header not understood"):
        read_header(path)

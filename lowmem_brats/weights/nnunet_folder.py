"""Read a trained model folder of nnU-Net v2: plans, labels, and one checkpoint for each fold.

Source of the layout: nnU-Net's documentation and the files that it writes. Plans of versions 2.0 to 2.3 describe the
network in other words than later ones; both are understood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.networks.nnunet import CLASSES, read_architecture
from lowmem_brats.weights.foreign import TISSUES, Foreign, check_carried, modalities_of, plain
from lowmem_brats.weights.monai_bundle import read_json
from lowmem_brats.weights.pickled import ADVICE, read_checkpoint, tensors_in

KIND = "nnU-Net model"
CHECKPOINT = "checkpoint_final.pth"
TISSUE_NAMES = {
    "background": "background",
    **dict.fromkeys(("ncr", "net", "ncrnet", "netncr", "necrosis", "necroticcore", "necrotictumorcore"), "ncr"),
    **dict.fromkeys(("nonenhancingtumor", "nonenhancingtumorcore", "necrotic", "nonenhancing"), "ncr"),
    **dict.fromkeys(("ed", "edema", "oedema", "peritumoraledema", "snfh", "edemainvasion"), "ed"),
    **dict.fromkeys(("et", "enhancing", "enhancingtumor", "enhancingtumour"), "et"),
}
"""What authors call a tissue, in small letters without marks → one of TISSUES."""
NESTED = (("whole", "wt"), ("core", "tc"), ("enhanc", "et"))
"""For WT, TC and ET: a part of the name, or all of it."""


def read_nnunet(folder: Path) -> Foreign:
    """Read a model folder. Raises InputError listing what cannot be carried over, and WeightsError."""
    plans, dataset = (read_json(folder / name) for name in ("plans.json", "dataset.json"))
    paths = sorted(folder.glob(f"fold_*/{CHECKPOINT}"))
    folds = [path for path in paths if path.parent.name != "fold_all"] or paths  # as nnU-Net chooses
    if not folds:
        raise WeightsError(folder, f"no fold_*/{CHECKPOINT}", "a trained model folder", "Copy the whole folder.")
    name = _configuration_in(folds[0])
    configuration = _inherited(plans, name)
    modalities, problems = modalities_of(_channels(dataset))
    outputs, wrong = _outputs(dataset)
    preprocessing, more = _preprocessing(plans, configuration)
    patch = configuration.get("patch_size")
    sides = [1, *patch] if isinstance(patch, list) and len(patch) == 2 else patch
    written = "x".join(map(str, sides)) if isinstance(sides, list) else ""
    problems += wrong + more
    if not sides_of(written):
        problems.append(f"patch_size {str(patch)[:60]}")
    check_carried(folder, problems, KIND)
    architecture = _architecture(configuration)
    _, settings = read_architecture(architecture)
    _check_patch(folder, patch, settings["strides"])
    tissues = len(outputs) == len(TISSUES)
    network = NetworkConfig(name="nnunet", outputs=3, tissues=tissues, patch=written, architecture=architecture)
    stem = plain(name) or "nnunet"
    return Foreign(
        kind=KIND,
        network=network,
        modalities=modalities,
        outputs=outputs,
        checkpoints={f"{stem}-{path.parent.name.replace('_', '')}": path for path in folds},
        read=lambda path: _tensors(path, name),
        preprocessing=preprocessing,
        facts={"configuration": name, "folds": len(folds), "spacing_mm": [1.0, 1.0, 1.0], "deep_supervision": False},
        notes=["mirror images, which nnU-Net shows its networks too by default, are not shown"],
    )


def _configuration_in(checkpoint: Path) -> str:
    arguments = read_checkpoint(checkpoint).get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, dict) else None
    if not isinstance(name, str):
        raise WeightsError(checkpoint, "no name of a configuration", "a checkpoint of nnU-Net v2", ADVICE)
    return name


def _tensors(checkpoint: Path, name: str) -> Mapping[str, Tensor]:
    found = read_checkpoint(checkpoint)
    if _configuration_in(checkpoint) != name:
        raise WeightsError(checkpoint, "another configuration", f"{name}, as in the first fold", "Do not mix folds.")
    return tensors_in(found.get("network_weights"), checkpoint)


def _inherited(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it takes from those that it inherits from. Raises InputError where there is none."""
    stored, found, parent = plans.get("configurations"), dict[str, Any](), name
    known = {key: value for key, value in stored.items() if isinstance(value, dict)} if isinstance(stored, dict) else {}
    for _ in known:
        if parent not in known:
            break
        found = known[parent] | found
        parent = found.pop("inherits_from", None)
        if parent is None:
            return found
    raise InputError("plans.json", f"no configuration {name!r}", "that of the checkpoint", "Copy the folder again.")


def _channels(dataset: Mapping[str, Any]) -> list[object]:
    stored = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(stored, dict) or set(stored) != {str(i) for i in range(len(stored))}:
        return []
    return [stored[str(i)] for i in range(len(stored))]


def _outputs(dataset: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """The outputs of the network in their order, regions or TISSUES, and what is wrong with the labels."""
    labels, order = dataset.get("labels"), dataset.get("regions_class_order")
    if not isinstance(labels, dict) or not labels:
        return (), ["no labels"]
    if not all(
        type(each) is int for value in labels.values() for each in (value if isinstance(value, list) else [value])
    ):
        return (), [f"labels {str(labels)[:80]}"]
    if not any(isinstance(value, list) for value in labels.values()):
        named = {value: TISSUE_NAMES.get(plain(name), "") for name, value in labels.items()}
        tissues = tuple(named.get(value, "") for value in range(len(labels)))
        if sorted(tissues) == sorted(TISSUES) and tissues[0] == "background":
            return tissues, []
        return (), [f"labels {', '.join(map(str, labels))}, not background, NCR, ED and ET"]
    sets = {str(name): set(value) if isinstance(value, list) else {value} for name, value in labels.items()}
    regions = [(plain(name), members) for name, members in sets.items() if members != {0}]
    sizes = [len(members) for _, members in regions]
    nested = sizes == [3, 2, 1] and regions[0][1] > regions[1][1] > regions[2][1]
    meant = [part in name or name == short for (name, _), (part, short) in zip(regions, NESTED, strict=False)]
    if not nested or not all(meant):
        return (), [f"regions {', '.join(sets)}, not whole tumor, tumor core and enhancing tumor, in this order"]
    whole, core, enhancing = (members for _, members in regions)
    painted = [*(whole - core), *(core - enhancing), *enhancing]
    if order != painted:
        return (), [f"regions_class_order {order}, not {painted}"]
    return ("wt", "tc", "et"), []


def _preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The scheme of normalisation, and what cannot be carried over of how images are prepared."""
    problems = list[str]()
    schemes, masks = configuration.get("normalization_schemes"), configuration.get("use_mask_for_norm")
    if schemes != ["ZScoreNormalization"] * 4:
        problems.append(f"normalization_schemes {str(schemes)[:120]}, not ZScoreNormalization of all four")
    if masks not in ([True] * 4, [False] * 4):
        problems.append(f"use_mask_for_norm {str(masks)[:60]}, not the same for all four")
    spacing = configuration.get("spacing")
    if not isinstance(spacing, list) or not all(isinstance(s, float | int) and abs(s - 1) <= 0.01 for s in spacing):
        problems.append(f"spacing {str(spacing)[:60]}, not 1 mm")
    if plans.get("transpose_forward") != [0, 1, 2]:
        problems.append(f"transpose_forward {str(plans.get('transpose_forward'))[:40]}, not 0, 1, 2")
    if configuration.get("previous_stage"):
        problems.append(f"a cascade after {str(configuration['previous_stage'])[:40]}")
    if configuration.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        problems.append(f"preprocessor {str(configuration['preprocessor_name'])[:60]}")
    return "zscore-mask" if masks == [True] * 4 else "zscore-all", problems


def _architecture(configuration: Mapping[str, Any]) -> str:
    """The network as NetworkConfig stores it, from plans of either age; `read_architecture` checks what is in it."""
    new = configuration.get("architecture")
    if isinstance(new, dict):
        name = str(new.get("network_class_name")).rpartition(".")[2]
        return json.dumps({"class": name, "settings": new.get("arch_kwargs")}, sort_keys=True)
    name, dimensions = str(configuration.get("UNet_class_name")), len(configuration["patch_size"])
    base, most = (configuration.get(key) for key in ("UNet_base_num_features", "unet_max_num_features"))
    blocks = configuration.get("n_conv_per_stage_encoder")
    if type(base) is not int or type(most) is not int or not isinstance(blocks, list):
        raise InputError("plans.json", "no description of the network", "that of nnU-Net v2", "Copy the folder again.")
    settings = {
        "n_stages": len(blocks),
        "features_per_stage": [min(base * 2**level, most) for level in range(min(len(blocks), 64))],
        "conv_op": f"Conv{dimensions}d",
        "kernel_sizes": configuration.get("conv_kernel_sizes"),
        "strides": configuration.get("pool_op_kernel_sizes"),
        CLASSES.get(name, "blocks"): blocks,
        "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_op": f"InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return json.dumps({"class": name, "settings": settings}, sort_keys=True)


def _check_patch(folder: Path, patch: Any, strides: list[list[int]]) -> None:
    """Raise InputError where the sides of the patch are no multiples of the network's strides."""
    multiples = [math.prod(along) for along in zip(*strides, strict=True)]
    if len(patch) != len(multiples) or any(side % multiple for side, multiple in zip(patch, multiples, strict=True)):
        expected = f"multiples of its strides, {' × '.join(map(str, multiples))}"
        raise InputError(folder, f"patch_size {patch}", expected, "plans.json is damaged: copy it again.")

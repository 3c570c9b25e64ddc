"""Models in exactly the layouts that MONAI and nnU-Net publish, with random weights of their authors' own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lowmem_brats.networks.nnunet import build_authors_class

CHANNELS = {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}
REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
TISSUES = {"background": 0, "edema": 1, "necrotic": 2, "enhancing": 3}


def segresnet(filters: int = 8) -> nn.Module:
    """MONAI's own network of the bundle, with fewer filters."""
    from monai.networks.nets.segresnet import SegResNet

    torch.manual_seed(0)
    down, up = (1, 2, 2, 4), (1, 1, 1)
    network: nn.Module = SegResNet(3, filters, 4, 3, dropout_prob=0.2, blocks_down=down, blocks_up=up)
    return network.eval()


def inference_settings(filters: int = 8, roi: Sequence[int] = (48, 56, 40)) -> dict[str, Any]:
    """What `configs/inference.json` of the bundle says, as far as it matters."""
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
    ]
    network = {"blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "in_channels": 4, "out_channels": 3}
    return {
        "imports": ["$import os"],
        "network_def": {"_target_": "SegResNet", "init_filters": filters, "dropout_prob": 0.2, **network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": list(roi), "sw_batch_size": 1, "overlap": 0.5},
    }


def write_bundle(folder: Path, settings: Mapping[str, Any] | None = None, weights: Any = None) -> Path:
    """Write a MONAI bundle; returns its folder."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    outputs = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    data = {"inputs": {"image": {"channel_def": CHANNELS}}, "outputs": {"pred": {"channel_def": outputs}}}
    metadata = {"version": "0.5.2", "network_data_format": data}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(settings or inference_settings()))
    torch.save(segresnet().state_dict() if weights is None else weights, folder / "models" / "model.pt")
    return folder


def architecture(dimensions: int = 3, residual: bool = False, levels: int = 3) -> dict[str, Any]:
    """The network of a small nnU-Net as plans of version 2.4 and later describe it."""
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": [8 * 2**level for level in range(levels)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * levels,
            "strides": [[1] * dimensions] + [[2] * dimensions] * (levels - 1),
            "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 2, 2] if residual else [2] * levels,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (levels - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(dimensions: int = 3, residual: bool = False, patch: Sequence[int] = ()) -> dict[str, Any]:
    """A configuration of plans.json."""
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch or [24, 32, 28][:dimensions]),
        "median_image_size_in_voxels": [140.0, 171.0, 137.0][:dimensions],
        "spacing": [1.0] * dimensions,
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        "architecture": architecture(dimensions, residual),
        "batch_dice": False,
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{
            f"resampling_fn_{what}_kwargs": {
                "is_seg": what == "seg",
                "order": 1,
                "order_z": 0,
                "force_separate_z": None,
            }
            for what in ("data", "seg", "probabilities")
        },
    }


def old_configuration() -> dict[str, Any]:
    """The same network in the words of plans of versions 2.0 to 2.3."""
    old = {key: value for key, value in configuration().items() if key != "architecture"}
    return old | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 8,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }


def authors_network(stored: Mapping[str, Any], outputs: int, seed: int = 0) -> nn.Module:
    """The class of nnU-Net's own library, with random weights, norms and biases."""
    told = {"class": stored["network_class_name"].rpartition(".")[2], "settings": stored["arch_kwargs"]}
    torch.manual_seed(seed)
    network = build_authors_class(json.dumps(told), outputs, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


def checkpoint(network: nn.Module, name: str = "3d_fullres", **more: Any) -> dict[str, Any]:
    """What nnU-Net's trainer saves beside the weights."""
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]},
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
        "logging": {"mean_fg_dice": [np.float64(0.8)], "dice_per_class_or_region": [[np.float32(0.7), 0.5]]},
        "_best_ema": np.float64(0.85),
        "current_epoch": 1000,
        "init_args": {"configuration": name, "fold": 0, "plans": {}, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **more,
    }


def write_nnunet(
    folder: Path,
    stored: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] = REGIONS,
    folds: int = 1,
    name: str = "3d_fullres",
) -> list[nn.Module]:
    """Write a trained model folder of nnU-Net v2; returns the networks of its folds."""
    stored = stored or configuration()
    described = stored.get("architecture") or architecture()
    regions = any(isinstance(value, list) for value in labels.values())
    channels = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    dataset = {"channel_names": channels, "labels": dict(labels), "numTraining": 3, "file_ending": ".nii.gz"}
    if regions:
        dataset["regions_class_order"] = [1, 2, 3]
    plans = {
        "dataset_name": "Dataset137_BraTS2021",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(4)},
        "configurations": {name: dict(stored)},
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    networks = []
    for fold in range(folds):
        network = authors_network(described, 3 if regions else len(labels), fold)
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint(network, name), folder / f"fold_{fold}" / "checkpoint_final.pth")
        networks.append(network)
    return networks

"""The networks of nnU-Net, built from what its plans say of them, by `dynamic-network-architectures`.

Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation".
The plans are untrusted: classes and layers are found in tables, never imported by a name from a file, and sizes have
limits. The layers are run here, so that each map is let go of as soon as nothing needs it any more, and the heads of
deep supervision are left out.
Shape suffixes: N patches, C modalities, K regions or tissues, Z H W as nnU-Net reads a volume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.errors import InputError
from lowmem_brats.networks.base import PatchNetwork, keys_of

PACKAGE = "dynamic_network_architectures.architectures"
CLASSES = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Class → what it calls the number of blocks at each level."""
LAYERS: dict[str, dict[str, type[nn.Module] | None]] = {
    "conv_op": {"Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d},
    "norm_op": {"InstanceNorm2d": nn.InstanceNorm2d, "InstanceNorm3d": nn.InstanceNorm3d},
    "nonlin": {"LeakyReLU": nn.LeakyReLU, "ReLU": nn.ReLU},
    "dropout_op": {"None": None},
}
"""Setting → the layers that it may name, by the last part of their names."""
MOST_LEVELS, MOST_BLOCKS, MOST_FEATURES, LARGEST_KERNEL, LARGEST_STRIDE = 8, 16, 1024, 7, 4


def build_authors_class(architecture: str, outputs: int, channels: int) -> nn.Module:
    """Build the class itself, with all its heads, as nnU-Net does; `architecture`: as NetworkConfig has it.

    Raises InputError for an architecture that is not one of nnU-Net's two U-Nets or is absurdly large, and where
    `dynamic-network-architectures` is not installed.
    """
    name, settings = read_architecture(architecture)
    try:
        unet = import_module(f"{PACKAGE}.unet")
    except ImportError as error:
        advice = 'Run: pip install "lowmem-brats[nnunet]"'
        found = f"dynamic-network-architectures is not installed ({error})"
        raise InputError("nnunet", found, "that library, which builds its networks", advice) from error
    layers = {key: known[str(settings[key]).rpartition(".")[2]] for key, known in LAYERS.items()}
    built: nn.Module = getattr(unet, name)(
        input_channels=channels, num_classes=outputs, deep_supervision=False, **(settings | layers)
    )
    return built


def read_architecture(architecture: str) -> tuple[str, dict[str, Any]]:
    """The name of the class, and its settings, checked; layers are still names.

    Raises InputError listing all that is wrong.
    """
    try:
        stored = json.loads(architecture or "{}")
        name, settings = str(stored["class"]), dict(stored["settings"])
    except (ValueError, KeyError, TypeError) as error:
        advice = "Import a trained model folder: lowmem-brats import FOLDER -o SET"
        raise InputError("nnunet", "no architecture", "that of a trained model", advice) from error
    problems = [f"class {name}"] if name not in CLASSES else _problems(name, settings)
    if problems:
        found, expected = "; ".join(problems), f"{' or '.join(CLASSES)} as nnU-Net plans it"
        raise InputError("nnunet", found[:400], expected, "This architecture cannot be carried over.")
    return name, settings


def _problems(name: str, settings: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of a class, each in a few words."""
    blocks = CLASSES[name]
    known = {"n_stages", "features_per_stage", "kernel_sizes", "strides", blocks, "n_conv_per_stage_decoder"}
    known |= {"conv_bias", "norm_op_kwargs", "nonlin_kwargs", "dropout_op_kwargs", *LAYERS}
    problems = [f"{key} missing" for key in sorted(known - settings.keys())]
    problems += [f"unknown setting {key!r}" for key in sorted(map(str, settings.keys() - known))]
    if problems:
        return problems
    for key, layers in LAYERS.items():
        if str(settings[key]).rpartition(".")[2] not in layers:
            problems.append(f"{key} {settings[key]!r}")
    levels = settings["n_stages"]
    if not _whole(levels, 2, MOST_LEVELS):
        return [*problems, f"n_stages {levels!r}, not 2 to {MOST_LEVELS}"]
    dimensions = 3 if str(settings["conv_op"]).endswith("3d") else 2
    if not str(settings["norm_op"]).endswith(f"{dimensions}d"):
        problems.append(f"norm_op {settings['norm_op']!r} in {dimensions} dimensions")
    lists = {"features_per_stage": MOST_FEATURES, blocks: MOST_BLOCKS, "n_conv_per_stage_decoder": MOST_BLOCKS}
    for key, most in lists.items():
        length = levels - (key == "n_conv_per_stage_decoder")
        if not _list_of(settings[key], length, lambda each, most=most: _whole(each, 1, most)):
            problems.append(f"{key} {str(settings[key])[:60]}, not {length} numbers up to {most}")
    for key, most in {"kernel_sizes": LARGEST_KERNEL, "strides": LARGEST_STRIDE}.items():

        def fits(sides: Any, most: int = most) -> bool:
            return _list_of(sides, dimensions, lambda side: _whole(side, 1, most))

        if not _list_of(settings[key], levels, fits):
            problems.append(f"{key} {str(settings[key])[:60]}, not {levels} times {dimensions} numbers up to {most}")
    if not isinstance(settings["conv_bias"], bool):
        problems.append(f"conv_bias {settings['conv_bias']!r}")
    for key, names in {"norm_op_kwargs": {"eps", "affine"}, "nonlin_kwargs": {"inplace", "negative_slope"}}.items():
        if not isinstance(settings[key], dict) or not settings[key].keys() <= names:
            problems.append(f"{key} {str(settings[key])[:60]}")
    if settings["dropout_op_kwargs"]:
        problems.append("dropout_op_kwargs without dropout")
    return problems


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _list_of(values: Any, length: int, fits: Any) -> bool:
    return isinstance(values, list) and len(values) == length and all(map(fits, values))


class NnUNet(PatchNetwork):
    """A U-Net of nnU-Net in three dimensions, or in two, to which a patch of one slice is shown."""

    has_width = False
    axes = "ZHW"
    whole = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs = config.outputs
        _, settings = read_architecture(config.architecture)
        self.flat = settings["conv_op"].endswith("2d")
        net: Any = build_authors_class(config.architecture, config.outputs + config.tissues, config.channels)
        theirs = net.state_dict(keep_vars=True)
        strides = [(1, *stride) if self.flat else tuple(stride) for stride in net.encoder.strides]
        z, h, w = (math.prod(along) for along in zip(*strides, strict=True))
        self.stride_ZHW = z, h, w
        z, h, w = sides_of(config.patch) or (1 if self.flat else 128, 128, 128)
        self.window_ZHW = z, h, w
        self.stem = nn.Sequential(*_layers_in(getattr(net.encoder, "stem", None) or nn.Sequential()))
        self.down: Any = nn.ModuleList(nn.Sequential(*_layers_in(stage)) for stage in net.encoder.stages)
        self.enlarge = net.decoder.transpconvs
        self.up: Any = nn.ModuleList(nn.Sequential(*_layers_in(stage)) for stage in net.decoder.stages)
        *_, self.head = net.decoder.seg_layers
        self.authors_keys = keys_of(theirs, self)

    def stages(self) -> dict[str, nn.Module]:
        """The encoder's levels from wide to deep, then enlarging and convolutions of each of the decoder's."""
        down = {f"down.{i}": stage for i, stage in enumerate(self.down)}
        pairs = enumerate(zip(self.enlarge, self.up, strict=True))
        up = {f"{name}.{i}": stage for i, pair in pairs for name, stage in zip(("enlarge", "up"), pair, strict=True)}
        return {"stem": self.stem, **down, **up}

    def last_bias(self) -> nn.Parameter:
        """The bias of the head."""
        return self.head.bias  # type: ignore[no-any-return]

    def forward(self, patches_NCZHW: Tensor) -> Tensor:
        """[N, C, Z, H, W] → logits [N, K, Z, H, W]; sides multiples of `stride_ZHW`, and Z = 1 for one of slices."""
        features = self.stem(patches_NCZHW.squeeze(2) if self.flat else patches_NCZHW)
        skips = list[Tensor]()
        for stage in self.down:
            for layer in stage:  # one by one, so that each map is let go of before the next but one is made
                features = layer(features)
            skips.append(features)
        skips.pop()
        for enlarge, stage in zip(self.enlarge, self.up, strict=True):
            features = _joined(enlarge, features, skips)
            for layer in stage:
                features = layer(features)
        logits: Tensor = self.head(features)
        return logits.unsqueeze(2) if self.flat else logits


def _joined(enlarge: nn.Module, features: Tensor, skips: list[Tensor]) -> Tensor:
    """The enlarged map, and behind it the last of the skips, which is taken out of the list: [N, 2c, …]."""
    if torch.is_grad_enabled():
        return torch.cat((enlarge(features), skips.pop()), 1)
    # Filled piece by piece: `cat` would hold all three at once, a third more at the peak of the network.
    n, channels, *sides = skips[-1].shape
    joined = features.new_empty(n, 2 * channels, *sides)
    joined[:, channels:] = skips.pop()
    joined[:, :channels] = enlarge(features)
    return joined


def _layers_in(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a level in their order; a residual block counts as one, with its own wrappers taken off.

    Their classes hold each layer twice, by itself and in a sequence, and safetensors stores nothing twice.
    """
    wrapped = [getattr(module, name) for name in ("all_modules", "convs", "blocks") if hasattr(module, name)]
    inner: Any = [module] if isinstance(module, nn.Sequential) else wrapped
    if inner:
        for layer in inner[0]:
            yield from _layers_in(layer)
        return
    for name, child in list(module.named_children()):
        if hasattr(child, "all_modules") or isinstance(child, nn.Sequential):
            setattr(module, name, nn.Sequential(*_layers_in(child)))
    yield _Mean(module) if isinstance(module, nn.AvgPool3d) else module


class _Mean(nn.Module):
    """An average pooling that is computed in fp32, because on the CPU torch has no other in three dimensions."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, Z, H, W] → that, smaller, in the same format."""
        return self.pool(features.float()).to(features.dtype)  # type: ignore[no-any-return]

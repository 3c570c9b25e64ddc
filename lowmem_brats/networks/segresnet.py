"""SegResNet, in two dimensions for slices and in three for patches, as MONAI builds it.

Source: Myronenko 2018, "3D MRI Brain Tumor Segmentation Using Autoencoder Regularization", without the autoencoder. The
layers are those of `monai.networks.nets.SegResNet`, so its weights fit; they are run here so that each map is let go of
as soon as nothing needs it any more. Nothing is dropped at random.
Shape suffixes: N slices or patches, C modalities, K regions, W H Z as BraTS stores a volume.
"""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.errors import InputError
from lowmem_brats.networks.base import PRIOR, PatchNetwork, SliceNetwork, keys_of

BLOCKS_DOWN, BLOCKS_UP = (1, 2, 2, 4), (1, 1, 1)
"""Residual blocks at each level of encoder and decoder; those of MONAI's bundle for BraTS."""
STRIDE = 2 ** len(BLOCKS_UP)
WINDOW_ZHW = (160, 240, 240)
"""The bundle's: a whole volume of BraTS and five empty slices."""
CROPS_ZHW = ((144, 224, 224), (144, 192, 160), (128, 160, 128), *((side,) * 3 for side in range(128, 31, -16)))
"""The bundle's crop in training, one that holds most brains, and smaller ones.

None may be 16 wide: torch 2.13 on a CPU with bf16 gives a wrong gradient where a map's first axis, here W, is 2 long.
"""


class _Layers(nn.Module):
    """The layers of MONAI's SegResNet, the last convolution apart."""

    def __init__(self, config: NetworkConfig, dimensions: int, outputs: int) -> None:
        super().__init__()
        net: Any = _monai().SegResNet(
            spatial_dims=dimensions,
            init_filters=config.width,
            in_channels=config.channels,
            out_channels=outputs,
            norm=("GROUP", {"num_groups": 8}) if config.norm == "group" else "BATCH",
            blocks_down=BLOCKS_DOWN,
            blocks_up=BLOCKS_UP,
        )
        theirs = net.state_dict(keep_vars=True)
        self.first, self.down_layers = net.convInit, net.down_layers
        self.up_samples, self.up_layers = net.up_samples, net.up_layers
        *last, head = net.conv_final
        self.last, self.head = nn.Sequential(*last), head.conv
        self.authors_keys = keys_of(theirs, self)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))

    def stages(self) -> dict[str, nn.Module]:
        """The encoder's levels from wide to deep, then enlarging and blocks of each of the decoder's."""
        down = {f"down.{i}": stage for i, stage in enumerate(self.down_layers)}
        pairs = enumerate(zip(self.up_samples, self.up_layers, strict=True))
        up = {f"{name}.{i}": stage for i, pair in pairs for name, stage in zip(("enlarge", "up"), pair, strict=True)}
        return {"first": self.first, **down, **up, "last": self.last}

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, …] → logits [N, K, …]."""
        features, skips = self.first(images), list[Tensor]()
        for stage in self.down_layers:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for enlarge, stage in zip(self.up_samples, self.up_layers, strict=True):
            features = enlarge(features)
            features += skips.pop()
            features = stage(features)
        return self.head(self.last(features))  # type: ignore[no-any-return]


class SegResNet2d(SliceNetwork):
    """SegResNet in two dimensions."""

    stride = STRIDE

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs, self.context = config.outputs, config.context
        self.layers = _Layers(config, 2, config.outputs)

    def stages(self) -> dict[str, nn.Module]:
        """See `_Layers.stages`."""
        return self.layers.stages()

    def last_bias(self) -> nn.Parameter:
        """The bias of the last convolution."""
        return self.layers.head.bias  # type: ignore[no-any-return]

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, K, H, W]; H and W multiples of 8."""
        return self.layers(slices_NCHW)  # type: ignore[no-any-return]


class SegResNet(PatchNetwork):
    """SegResNet in three dimensions; of one modality each and no context."""

    stride_ZHW = (STRIDE, STRIDE, STRIDE)
    axes = "WHZ"
    crops_ZHW = CROPS_ZHW

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs, self.whole = config.outputs, not config.cropped
        z, h, w = sides_of(config.patch) or WINDOW_ZHW
        self.window_ZHW = z, h, w
        self.layers = _Layers(config, 3, config.outputs)
        self.authors_keys = {theirs: f"layers.{ours}" for theirs, ours in self.layers.authors_keys.items()}

    def stages(self) -> dict[str, nn.Module]:
        """See `_Layers.stages`."""
        return self.layers.stages()

    def last_bias(self) -> nn.Parameter:
        """The bias of the last convolution."""
        return self.layers.head.bias  # type: ignore[no-any-return]

    def forward(self, patches_NCWHZ: Tensor) -> Tensor:
        """[N, C, W, H, Z] → logits [N, K, W, H, Z]; all sides multiples of 8."""
        return self.layers(patches_NCWHZ)  # type: ignore[no-any-return]


def _monai() -> Any:
    """MONAI's networks. Raises InputError where MONAI is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own optional libraries
            return import_module("monai.networks.nets.segresnet")
    except ImportError as error:
        advice = 'Run: pip install "lowmem-brats[monai]"'
        raise InputError("segresnet", f"MONAI is not installed ({error})", "MONAI, which builds it", advice) from error

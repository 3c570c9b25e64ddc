"""The contestants of `bench_peers.py` that are not ours: networks with random weights, as their authors run them.

A peer's case is so many forward passes of one shape. What it does beside them (reading, normalising, stitching windows,
writing) is not counted, in its favour. The libraries of peers are imported where a network is built: they are not
needed to import this module. Axes: N windows in a batch, C modalities, X Y Z voxels as BraTS stores them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lowmem_brats.config import BRATS_SHAPE, MODALITIES, NetworkConfig
from lowmem_brats.networks import build_network

REGIONS = 3
SEGRESNET = (
    "MONAI bundle brats_mri_segmentation 0.5.2, configs/inference.json; its AMP acts on CUDA only: fp32 on a CPU"
)
PLANNED = "plan of nnunetv2 2.8.1 for BraTS, from the median shape that its paper gives for it (138 × 170 × 138, 1 mm)"
NO_MIRRORING = "without the mirroring that nnU-Net does by default, {} times the passes"


@dataclass(frozen=True)
class Peer:
    """A network, and how its authors take it over a case."""

    name: str
    source: str
    """Where the settings were published."""
    build: Callable[[], nn.Module]
    """Random weights on torch's default device, fp32."""
    window: tuple[int, ...]
    """Voxels or pixels of one forward pass."""
    passes: Callable[[Sequence[int], Sequence[int]], int]
    """Forward passes of a case, from the brain's bounding box and the volume's shape, both X Y Z."""
    batch: int = 1
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input of one forward pass."""
        return (self.batch, len(MODALITIES), *self.window)

    def network(self) -> nn.Module:
        """The network ready to run."""
        return self.build().to(dtype=self.dtype, memory_format=self.layout).eval()

    def images(self) -> Tensor:
        """Noise as the input of one forward pass."""
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(self.dtype, memory_format=self.layout)


def windows(size: Sequence[int], window: Sequence[int]) -> int:
    """Windows that cover an image with steps of half a window, as MONAI and nnU-Net both place them."""
    return math.prod(1 + math.ceil(max(s - w, 0) / (w // 2)) for s, w in zip(size, window, strict=True))


def gmac(build: Callable[[], nn.Module], shape: Sequence[int]) -> float:
    """Multiply-accumulates of one forward pass in 10⁹, counted without computing them."""
    network = build().eval()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    # In its plain form attention is two matrix products, which the counter knows.
    with fake, FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(torch.empty(shape))
    return counter.get_total_flops() / 2e9


def segresnet() -> nn.Module:
    """The network of MONAI's BraTS bundle."""
    from monai.networks.nets import SegResNet

    return SegResNet(
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
        init_filters=16,
        in_channels=len(MODALITIES),
        out_channels=REGIONS,
        dropout_prob=0.2,
    )


def nnunet(dimensions: int, residual: bool) -> nn.Module:
    """nnU-Net's network for BraTS: 2D or 3D, the plain one or the residual encoder M."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    conv_op, norm_op = (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    most = 512 if dimensions == 2 else 320
    settings = {
        "input_channels": len(MODALITIES),
        "n_stages": 6,
        "features_per_stage": [min(32 * 2**stage, most) for stage in range(6)],
        "conv_op": conv_op,
        "kernel_sizes": 3,
        "strides": [1, 2, 2, 2, 2, 2],
        "num_classes": REGIONS,
        "conv_bias": True,
        "norm_op": norm_op,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }
    if residual:
        return ResidualEncoderUNet(n_blocks_per_stage=[1, 3, 4, 6, 6, 6], n_conv_per_stage_decoder=1, **settings)
    return PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **settings)


def hashemi() -> nn.Module:
    """The U-Net of Hashemi et al. 2022: ours of width 64 with their batch norm and reflection padding."""
    network = build_network(NetworkConfig(width=64, norm="batch"))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding_mode = "reflect"
    return network


def _nnunet_peer(dimensions: int, residual: bool) -> Peer:
    window = {2: (192, 160), 3: (128, 128, 128)}[dimensions]

    def passes(brain_XYZ: Sequence[int], volume_XYZ: Sequence[int]) -> int:
        brain_ZYX = brain_XYZ[::-1]
        return windows(brain_ZYX, window) if dimensions == 3 else brain_ZYX[0] * windows(brain_ZYX[1:], window)

    return Peer(
        name=f"nnU-Net {dimensions}D" + (", ResEnc M" if residual else ""),
        source=PLANNED,
        build=lambda: nnunet(dimensions, residual),
        window=window,
        passes=passes,
        note=NO_MIRRORING.format(2**dimensions),
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer("SegResNet", SEGRESNET, segresnet, (240, 240, 160), lambda brain_XYZ, volume_XYZ: 1, note="whole volume"),
        Peer(
            "SegResNet, windows",
            SEGRESNET,
            segresnet,
            (128, 128, 128),
            lambda brain_XYZ, volume_XYZ: windows(volume_XYZ, (128, 128, 128)),
            note="not as published: the bundle's network on windows that need less memory",
        ),
        Peer(
            "SegResNet, bf16",
            SEGRESNET,
            segresnet,
            (240, 240, 160),
            lambda brain_XYZ, volume_XYZ: 1,
            dtype=torch.bfloat16,
            layout=torch.channels_last_3d,
            note="not as published: whole volume, converted by hand to bf16 and channels last",
        ),
        *(_nnunet_peer(dimensions, residual) for dimensions in (3, 2) for residual in (False, True)),
        Peer(
            "Hashemi 2022",
            "Hashemi et al. 2022, section II-B and their public code: width 64, reflection padding, batch 4",
            hashemi,
            BRATS_SHAPE[:2],
            lambda brain_XYZ, volume_XYZ: 3 * math.ceil(volume_XYZ[2] / 4),
            batch=4,
            note="three binary networks; one logit and a 1×1 head in place of their two and 3×3, in its favour",
        ),
    )
}

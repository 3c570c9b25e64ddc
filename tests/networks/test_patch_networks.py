"""Networks of patches compute to the bit what their authors' classes compute, and need less memory for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import foreign_models as models
import pytest
import torch
from torch import nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.step import place, predict_patches
from lowmem_brats.errors import InputError
from lowmem_brats.memory.device import PeakMeter
from lowmem_brats.memory.footprint import inference_footprint
from lowmem_brats.networks import (
    PatchNetwork,
    build_network,
    build_patch_network,
    has_width,
    patches_of,
    usual_size,
)

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")

CPU = torch.device("cpu")
SEGRESNET = NetworkConfig(name="segresnet", width=8, outputs=3)
NNUNETS = [(3, False), (3, True), (2, False), (2, True)]


def nnunet(dimensions: int = 3, residual: bool = False, **settings: Any) -> NetworkConfig:
    """A small network of nnU-Net as its plans describe it, with some settings changed."""
    stored = models.architecture(dimensions, residual)
    name = stored["network_class_name"].rpartition(".")[2]
    told = {"class": name, "settings": stored["arch_kwargs"] | settings}
    return NetworkConfig(name="nnunet", outputs=3, architecture=json.dumps(told))


def carried(network: PatchNetwork, theirs: nn.Module) -> PatchNetwork:
    """The network with the weights of its authors' class."""
    state = {network.authors_keys[key]: tensor for key, tensor in theirs.state_dict().items()}
    state.pop("", None)  # heads of deep supervision
    network.load_state_dict(state)
    return network.eval()


def patches(network: PatchNetwork, size_ZHW: tuple[int, int, int], n: int = 1) -> torch.Tensor:
    """Noise in the order of the network's axes."""
    sides = [size_ZHW["ZHW".index(axis)] for axis in network.axes]
    return torch.randn(n, 4, *sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("width", "count"), [(8, 1_176_843), (16, 4_702_227), (32, 18_798_627)])
def test_segresnet_has_the_parameters_of_the_bundle(width: int, count: int) -> None:
    with torch.device("meta"):
        network = build_patch_network(NetworkConfig(name="segresnet", width=width, outputs=3))
    assert sum(p.numel() for p in network.parameters()) == count


def test_segresnet2d_has_the_parameters_of_monais() -> None:
    network = build_network(NetworkConfig(name="segresnet2d", width=16, outputs=3))
    assert sum(p.numel() for p in network.parameters()) == 1_576_851


def test_segresnet_is_monais_to_the_bit() -> None:
    theirs = models.segresnet()
    ours = carried(build_patch_network(SEGRESNET), theirs)
    images = torch.randn(1, 4, 24, 32, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(("dimensions", "residual"), NNUNETS)
def test_nnunet_is_the_authors_to_the_bit(dimensions: int, residual: bool) -> None:
    theirs = models.authors_network(models.architecture(dimensions, residual), 3)
    ours = carried(build_patch_network(nnunet(dimensions, residual)), theirs)
    images = patches(ours, (1 if dimensions == 2 else 16, 32, 24), 2)
    with torch.inference_mode():
        wanted = theirs(images.squeeze(2) if dimensions == 2 else images)
        assert torch.equal(ours(images), wanted.unsqueeze(2) if dimensions == 2 else wanted)
    ours.train()
    torch.testing.assert_close(ours(images), wanted.view_as(ours(images)))


@pytest.mark.parametrize(("dimensions", "residual"), NNUNETS)
def test_strides_are_those_of_the_plans(dimensions: int, residual: bool) -> None:
    strides = [[1] * dimensions, [1] * (dimensions - 1) + [2], [2] * dimensions]
    network = patches_of(nnunet(dimensions, residual, strides=strides))
    assert network
    assert network.stride_ZHW == ((1, 2, 4) if dimensions == 2 else (2, 2, 4))
    assert not has_width(nnunet())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SEGRESNET, *(nnunet(*row) for row in NNUNETS)], ids=range(5))
def test_bytes_are_predicted_to_the_last(config: NetworkConfig, dtype: torch.dtype) -> None:
    network = place(build_patch_network(config), CPU, dtype).eval()
    size_ZHW = (network.window_ZHW[0] if network.window_ZHW[0] == 1 else 16, 32, 48)
    n = 3 if size_ZHW[0] == 1 else 1
    images = patches(network, size_ZHW, n)
    with PeakMeter(CPU, *network.parameters(), *network.buffers()) as meter:
        predict_patches(network, images)
    assert inference_footprint(config, size_ZHW, n, dtype, CPU).total == meter.peak_bytes


@pytest.mark.parametrize(("config", "share"), [(SEGRESNET, 0.9), (nnunet(), 0.8), (nnunet(residual=True), 0.9)])
def test_it_needs_less_than_the_authors_class(config: NetworkConfig, share: float) -> None:
    theirs = models.segresnet()
    if config.architecture:
        theirs = models.authors_network(models.architecture(residual="Residual" in config.architecture), 3)
    images = torch.randn(1, 4, 48, 48, 48)
    with torch.inference_mode(), PeakMeter(CPU, *theirs.parameters()) as meter:
        theirs(images)
    assert inference_footprint(config, (48, 48, 48), 1, torch.float32, CPU).total < share * meter.peak_bytes


def test_each_kind_is_built_by_its_own_function() -> None:
    with pytest.raises(InputError, match="--network: segresnet, which sees patches; expected a network that sees slic"):
        build_network(SEGRESNET)
    with pytest.raises(InputError, match="--network: unet2d, which sees slices"):
        build_patch_network(NetworkConfig())
    assert patches_of(NetworkConfig()) is None
    assert usual_size(SEGRESNET) == (155, 240, 240)
    assert usual_size(NetworkConfig(name="emcad-b0")) == (256, 256)


@pytest.mark.parametrize(
    ("config", "library", "extra"),
    [(SEGRESNET, "monai", "monai"), (nnunet(), "dynamic_network_architectures", "nnunet")],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, config: NetworkConfig, library: str, extra: str
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {library!r}")

    module = "segresnet" if extra == "monai" else "nnunet"
    monkeypatch.setattr(f"lowmem_brats.networks.{module}.import_module", missing)
    with pytest.raises(InputError, match=rf'Run: pip install "lowmem-brats\[{extra}\]"'):
        patches_of(config)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"features_per_stage": [8, 16, 10**9]}, "features_per_stage .* not 3 numbers up to 1024"),
        ({"features_per_stage": [8, 16]}, "features_per_stage"),
        ({"features_per_stage": 32}, "features_per_stage"),
        ({"n_stages": 10**6}, "n_stages 1000000, not 2 to 8"),
        ({"n_stages": True}, "n_stages True"),
        ({"kernel_sizes": [[3, 3, 3], [3, 3, 3], [999, 3, 3]]}, "kernel_sizes"),
        ({"kernel_sizes": [[3, 3]] * 3}, "kernel_sizes"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [0, 2, 2]]}, "strides"),
        ({"n_conv_per_stage": [2, 2, 10**8]}, "n_conv_per_stage"),
        ({"conv_op": "os.system"}, "conv_op 'os.system'"),
        ({"norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d"}, "norm_op .* in 3 dimensions"),
        ({"norm_op": "builtins.exec"}, "norm_op 'builtins.exec'"),
        ({"nonlin": ["a"]}, "nonlin"),
        ({"dropout_op": "torch.nn.Dropout3d"}, "dropout_op"),
        ({"norm_op_kwargs": {"eps": 1e-5, "device": "meta"}}, "norm_op_kwargs"),
        ({"conv_bias": "yes"}, "conv_bias 'yes'"),
        ({"block": "os.system"}, "unknown setting 'block'"),
    ],
)
def test_an_architecture_that_is_not_nnunets_is_refused(settings: Mapping[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"nnunet: .*{told}"):
        patches_of(nnunet(**settings))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"class": "PlainConvUNet"}', '{"class": "os.system", "settings": {}}']
)
def test_a_text_that_describes_no_network_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="nnunet: "):
        patches_of(NetworkConfig(name="nnunet", architecture=text))


@pytest.mark.parametrize("patch", ["160", "1x2", "0x8x8", "8x8x9999", "axbxc", "8x8x8x8"])
def test_a_patch_is_three_sides(patch: str) -> None:
    with pytest.raises(InputError, match="network patch"):
        NetworkConfig(name="segresnet", patch=patch)


def test_a_width_that_group_norm_cannot_divide_is_refused() -> None:
    with pytest.raises(InputError, match="network width: 12"):
        NetworkConfig(name="segresnet", width=12)

"""TransUNet has the parameters of the paper's R50-ViT-B/16, and reads its public weights by their published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lowmem_brats.config import NetworkConfig
from lowmem_brats.errors import WeightsError
from lowmem_brats.networks import build_network
from lowmem_brats.networks.hybrid_vit import StandardisedConv
from lowmem_brats.networks.transunet import TransUNet
from lowmem_brats.networks.vit_checkpoint import encoder_weights, read_arrays

Arrays = dict[str, npt.NDArray[np.float32]]


def outline(norm: str = "group") -> TransUNet:
    """The network without data."""
    with torch.device("meta"):
        network = build_network(NetworkConfig(name="transunet", norm=norm, outputs=3))
    assert isinstance(network, TransUNet)
    return network


def wanted() -> dict[str, torch.Tensor]:
    """The encoder's tensors, without data."""
    encoder = ("root.", "blocks.", "embedding.", "layers.", "widen.norm.")
    return {name: tensor for name, tensor in outline().state_dict().items() if name.startswith(encoder)}


def published() -> dict[str, tuple[int, ...]]:
    """Name → shape of every array of the public file of R50-ViT-B/16."""
    shapes: dict[str, tuple[int, ...]] = {"conv_root/kernel": (7, 7, 3, 64)}

    def norm(place: str, channels: int, dimensions: int = 4) -> None:
        shapes.update({f"{place}/{kind}": (1,) * (dimensions - 1) + (channels,) for kind in ("scale", "bias")})

    norm("gn_root", 64)
    c_in = 64
    for block, units in enumerate((3, 4, 9), start=1):
        c_out = 128 * 2**block
        for unit in range(1, units + 1):
            place, inner = f"block{block}/unit{unit:02d}", c_out // 4
            shapes[f"{place}/conv1/kernel"] = (1, 1, c_in, inner)
            shapes[f"{place}/conv2/kernel"] = (3, 3, inner, inner)
            shapes[f"{place}/conv3/kernel"] = (1, 1, inner, c_out)
            norm(f"{place}/gn1", inner)
            norm(f"{place}/gn2", inner)
            norm(f"{place}/gn3", c_out)
            if unit == 1:
                shapes[f"{place}/conv_proj/kernel"] = (1, 1, c_in, c_out)
                norm(f"{place}/gn_proj", c_out)
            c_in = c_out
    shapes |= {"embedding/kernel": (1, 1, 1024, 768), "embedding/bias": (768,), "cls": (1, 1, 768)}
    shapes |= {"head/kernel": (768, 21843), "head/bias": (21843,)}
    shapes["Transformer/posembed_input/pos_embedding"] = (1, 197, 768)
    for number in range(12):
        place = f"Transformer/encoderblock_{number}"
        for each in ("LayerNorm_0", "LayerNorm_2"):
            norm(f"{place}/{each}", 768, 1)
        for part in ("query", "key", "value"):
            shapes[f"{place}/MultiHeadDotProductAttention_1/{part}/kernel"] = (768, 12, 64)
            shapes[f"{place}/MultiHeadDotProductAttention_1/{part}/bias"] = (12, 64)
        shapes[f"{place}/MultiHeadDotProductAttention_1/out/kernel"] = (12, 64, 768)
        shapes[f"{place}/MultiHeadDotProductAttention_1/out/bias"] = (768,)
        shapes |= {f"{place}/MlpBlock_3/Dense_0/kernel": (768, 3072), f"{place}/MlpBlock_3/Dense_0/bias": (3072,)}
        shapes |= {f"{place}/MlpBlock_3/Dense_1/kernel": (3072, 768), f"{place}/MlpBlock_3/Dense_1/bias": (768,)}
    norm("Transformer/encoder_norm", 768, 1)
    return shapes


def arrays() -> Arrays:
    """Arrays of those shapes, each of one value, its number; they take no memory."""
    return {
        name: np.broadcast_to(np.float32(number), shape) for number, (name, shape) in enumerate(published().items(), 1)
    }


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_parameters_are_those_of_the_paper_s_network_at_224(norm: str) -> None:
    """Which has three input channels and four classes."""
    count = sum(p.numel() for p in outline(norm).parameters())
    assert count - 49 * 64 + 16 * 9 + 1 == 105_276_356


def test_every_published_array_has_its_place() -> None:
    found, given = encoder_weights(arrays(), wanted()), arrays()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted().items()}
    places = {
        "root.gn.weight": "gn_root/scale",
        "blocks.1.0.downsample.weight": "block2/unit01/conv_proj/kernel",
        "blocks.2.8.gn3.bias": "block3/unit09/gn3/bias",
        "layers.11.key.weight": "Transformer/encoderblock_11/MultiHeadDotProductAttention_1/key/kernel",
        "layers.0.ffn_norm.weight": "Transformer/encoderblock_0/LayerNorm_2/scale",
        "layers.3.fc2.weight": "Transformer/encoderblock_3/MlpBlock_3/Dense_1/kernel",
        "embedding.table_1EHW": "Transformer/posembed_input/pos_embedding",
        "widen.norm.bias": "Transformer/encoder_norm/bias",
    }
    for own, public in places.items():
        assert (found[own] == float(given[public].flat[0])).all(), own
    assert (found["root.conv.weight"] == given["conv_root/kernel"].flat[0] * 3 / 4).all()


def test_axes_of_kernels_heads_and_places() -> None:
    given, rng = arrays(), np.random.default_rng(0)
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    for name in ("block1/unit01/conv2/kernel", f"{attention}/query/kernel", f"{attention}/out/kernel"):
        given[name] = rng.normal(size=given[name].shape).astype(np.float32)
    table = "Transformer/posembed_input/pos_embedding"
    given[table] = rng.normal(size=given[table].shape).astype(np.float32)
    found = encoder_weights(given, wanted())
    kernel = given["block1/unit01/conv2/kernel"]
    assert float(found["blocks.0.0.conv2.weight"][5, 7, 2, 1]) == kernel[2, 1, 7, 5]
    assert float(found["layers.0.query.weight"][64 * 3 + 9, 100]) == given[f"{attention}/query/kernel"][100, 3, 9]
    assert float(found["layers.0.out.weight"][100, 64 * 3 + 9]) == given[f"{attention}/out/kernel"][3, 9, 100]
    assert float(found["embedding.table_1EHW"][0, 33, 2, 5]) == given[table][0, 1 + 2 * 14 + 5, 33]


def test_all_that_is_wrong_with_a_file_is_listed() -> None:
    given = arrays()
    del given["gn_root/bias"]
    given["embedding/bias"] = np.zeros(5, np.float32)
    given["Transformer/encoder_norm/bias"] = np.full(768, np.nan, np.float32)
    given["surplus"] = np.zeros(1, np.float32)
    with pytest.raises(WeightsError) as error:
        encoder_weights(given, wanted())
    for text in (
        "root.gn.bias missing",
        "patch_embeddings.bias (5,)",
        "widen.norm.bias holds NaN",
        "surplus unexpected",
    ):
        assert text in error.value.found


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01."])
def test_what_is_no_archive_of_numbers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vit.npz"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"vit\.npz: cannot be read"):
        read_arrays(path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.npz"
    np.savez_compressed(path, cls=np.random.default_rng(0).integers(0, 9, 5000).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[57:60] = b"\xff" * 3  # where the packed bytes begin: no kind of block that there is
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_arrays(path)


def test_a_pickle_inside_the_archive_is_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", cls=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_arrays(tmp_path / "vit.npz")


def test_arrays_of_a_file_are_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **{"gn_root/bias": np.arange(3, dtype=np.float16)})
    found = read_arrays(tmp_path / "vit.npz")
    assert (list(found), found["gn_root/bias"].tolist()) == (["gn_root/bias"], [0.0, 1.0, 2.0])


def test_standardised_weights_have_mean_0_and_variance_1() -> None:
    layer = StandardisedConv(3, 2, 3)
    with torch.no_grad():
        layer.weight.mul_(7).add_(3)
    ones = torch.zeros(1, 3, 5, 5)
    ones[0, :, 2, 2] = 1
    kernel = layer(ones)  # an impulse in every channel gives the sum of the kernels over the channels
    assert kernel.sum(dim=(2, 3)).abs().max() < 1e-4
    single = torch.zeros(1, 3, 5, 5)
    single[0, 0, 2, 2] = 1
    first = torch.nn.functional.conv2d(single, layer.weight, padding=1)
    assert not torch.allclose(layer(single), first)

"""EMCAD is the published decoder, block by block, and keeps what the project promises of every network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.losses import backward_loss, find_loss
from lowmem_brats.engine.recompute import recomputed
from lowmem_brats.networks.emcad import CAB, EMCAD, EUCB, LGAG, MSCB, SAB, DecoderStage
from lowmem_brats.networks.group_norm import GroupNorm
from lowmem_brats.networks.pvt_v2 import B0, PVTv2, load_encoder
from lowmem_brats.networks.unet2d import PRIOR

STAGES = [*(f"encoder.{i}" for i in (1, 2, 3, 4)), *(f"decoder.{i}" for i in (4, 3, 2, 1))]
NORMS = ["group", "batch"]


def build(norm: str = "group", outputs: int = 1) -> EMCAD:
    torch.manual_seed(0)
    return EMCAD(NetworkConfig(name="emcad-b0", norm=norm, outputs=outputs))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def summed(maps_NMHW: Tensor) -> Tensor:
    return maps_NMHW.sum(dim=1, keepdim=True)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# --- the published network ---


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "decoder", "heads", "all_of_it"),
    [
        # The authors' totals for one class are 3,916,795 and 26,764,411: without the kernels of a fourth modality,
        # 49 per channel of the first stage, with 12 parameters that make three channels of one.
        ("emcad-b0", 506_507, 516, 3_916_795 - 12 + 49 * 32),
        ("emcad-b2", 1_913_515, 1_028, 26_764_411 - 12 + 49 * 64),
    ],
)
def test_published_number_of_parameters(name: str, norm: str, decoder: int, heads: int, all_of_it: int) -> None:
    with torch.device("meta"):
        network = EMCAD(NetworkConfig(name=name, norm=norm))
    assert count(network.deepest, network.up, network.sab) == decoder
    assert count(network.heads) == heads
    assert count(network) == all_of_it


def test_published_number_of_parameters_part_by_part() -> None:
    with torch.device("meta"):
        network = EMCAD(NetworkConfig(name="emcad-b0"))
    refinements = [network.deepest, *(stage.mscam for stage in network.up)]
    assert [count(each.mscb) for each in refinements] == [284_672, 116_480, 22_016, 6_912]
    assert [count(each.cab) for each in refinements] == [8_192, 3_200, 512, 128]
    assert [count(stage.eucb) for stage in network.up] == [43_936, 12_064, 2_784]
    assert [count(stage.lgag) for stage in network.up] == [3_443, 1_379, 691]
    assert count(network.sab) == 98


def test_three_regions_share_all_but_the_heads() -> None:
    with torch.device("meta"):
        one, three = (EMCAD(NetworkConfig(name="emcad-b0", outputs=outputs)) for outputs in (1, 3))
    assert (one.outputs, three.outputs) == (1, 3)
    assert count(three) - count(one) == 2 * count(one.heads)


@pytest.mark.parametrize("norm", NORMS)
def test_decoder_has_the_norm_asked_for(norm: str) -> None:
    network = build(norm)
    norms = {type(module) for module in network.modules() if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)}
    assert norms == {GroupNorm if norm == "group" else nn.BatchNorm2d}


# --- what goes in and comes out ---


@pytest.mark.parametrize("size_HW", [(64, 64), (96, 64)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_four_maps_in_training_and_their_sum_in_evaluation(size_HW: tuple[int, int], outputs: int) -> None:
    network, slices_NCHW = build(outputs=outputs), noise(2, 4, *size_HW)
    maps = network.train()(slices_NCHW)
    logits = network.eval()(slices_NCHW)
    assert maps.shape == (2, 4 * outputs, *size_HW)
    assert logits.shape == (2, outputs, *size_HW)
    for k in range(outputs):
        torch.testing.assert_close(logits[:, k], maps[:, k::outputs].sum(dim=1), rtol=1e-5, atol=1e-5)
    assert float(torch.sigmoid(logits.detach()).mean()) == pytest.approx(PRIOR, abs=0.02)


def test_finest_map_comes_first() -> None:
    network, slices_NCHW = build(), noise(1, 4, 64, 96)
    for fine_to_deep, head in enumerate(reversed(network.heads)):
        before = network(slices_NCHW)
        with torch.no_grad():
            head.bias += 1
        shift_4 = (network(slices_NCHW) - before).mean(dim=(0, 2, 3))
        torch.testing.assert_close(shift_4, torch.eye(4)[fine_to_deep], rtol=1e-4, atol=1e-4)


def test_maps_are_drawn_from_the_stage_of_their_size() -> None:
    network, sizes = build(), {}
    for name, stage in network.stages().items():
        stage.register_forward_hook(lambda *io, name=name: sizes.update({name: tuple(io[2].shape[1:])}))
    network(noise(1, 4, 64, 96))
    encoder = {1: (32, 16, 24), 2: (64, 8, 12), 3: (160, 4, 6), 4: (256, 2, 3)}
    assert sizes == {f"{part}.{i}": size for part in ("encoder", "decoder") for i, size in encoder.items()}


@pytest.mark.parametrize("size_HW", [(36, 64), (60, 64), (64, 80), (240, 64), (144, 128)])
def test_other_sizes_than_multiples_of_32_fail(size_HW: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="must match"):
        build()(noise(1, 4, *size_HW))


# --- the blocks against the mathematics ---


def group_norm(x_NCHW: Tensor, groups: int = 8) -> Tensor:
    """Group norm with weights 1 and biases 0, by its definition."""
    grouped = x_NCHW.unflatten(1, (groups, -1)).flatten(2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    return (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x_NCHW.shape)


def test_channel_attention() -> None:
    """16 channels meet in one: its weights 1/16, then the channel's number."""
    cab, features_NCHW = CAB(16).double(), noise(2, 16, 3, 5).double()
    number_C = torch.arange(16, dtype=torch.float64)
    with torch.no_grad():
        cab.fc1.weight.fill_(1 / 16)
        cab.fc2.weight.copy_(number_C[:, None, None, None])
    mean_N = features_NCHW.mean(dim=(1, 2, 3)).clamp_min(0)
    max_N = features_NCHW.flatten(2).max(dim=2).values.mean(dim=1)
    assert (max_N > 0).all()
    weight_NC = 1 / (1 + torch.exp(-(mean_N + max_N)[:, None] * number_C))
    torch.testing.assert_close(cab(features_NCHW), features_NCHW * weight_NC[:, :, None, None])


def test_spatial_attention() -> None:
    """The mean of the pixel 3 to the left, twice the maximum of the pixel 2 below; 0 outside."""
    sab, features_NCHW = SAB().double(), noise(2, 3, 5, 8).double()
    with torch.no_grad():
        sab.conv.weight.zero_()
        sab.conv.weight[0, 0, 3, 0] = 1
        sab.conv.weight[0, 1, 5, 3] = 2
    left_NHW, below_NHW = torch.zeros(2, 5, 8).double(), torch.zeros(2, 5, 8).double()
    left_NHW[:, :, 3:] = features_NCHW.mean(dim=1)[:, :, :-3]
    below_NHW[:, :-2] = features_NCHW.max(dim=1).values[:, 2:]
    weight_NHW = 1 / (1 + torch.exp(-left_NHW - 2 * below_NHW))
    torch.testing.assert_close(sab(features_NCHW), features_NCHW * weight_NHW[:, None])


def test_attention_gate() -> None:
    """Channel k of C/2 sees channels 2k and 2k + 1 of each map."""
    torch.manual_seed(0)
    gate = LGAG(32, "group").double()
    deep_NCHW, skip_NCHW = noise(2, 32, 4, 6).double(), noise(2, 32, 4, 6, seed=2).double()

    def grouped(convolution: nn.Conv2d, x_NCHW: Tensor) -> Tensor:
        kernels, biases = convolution.weight, convolution.bias
        return torch.cat(
            [
                functional.conv2d(x_NCHW[:, 2 * k : 2 * k + 2], kernels[k : k + 1], biases[k : k + 1], padding=1)
                for k in range(16)
            ],
            dim=1,
        )

    both = group_norm(grouped(gate.deep[0], deep_NCHW)) + group_norm(grouped(gate.skip[0], skip_NCHW))
    one = torch.einsum("nchw,c->nhw", both.clamp_min(0), gate.weight[0].weight[0, :, 0, 0])
    one = group_norm(one[:, None] + gate.weight[0].bias, 1)
    torch.testing.assert_close(gate(deep_NCHW, skip_NCHW), skip_NCHW / (1 + torch.exp(-one)))


def test_multi_scale_block_is_the_published_one_with_its_channels_shuffled() -> None:
    """The shuffle between two convolutions only permutes the second one's input channels."""
    torch.manual_seed(0)
    block, features_NCHW = MSCB(8, "group").double(), noise(2, 8, 6, 5).double()
    for convolution in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
        nn.init.normal_(convolution.weight)
    for norm in (block.expand[1], *(scale[1] for scale in block.scales)):
        nn.init.constant_(norm.weight, 5)  # so that some values exceed 6, where ReLU6 cuts them
    wide = torch.einsum("nchw,dc->ndhw", features_NCHW, block.expand[0].weight[:, :, 0, 0])
    wide = (5 * group_norm(wide)).clamp(0, 6)
    scales = torch.zeros_like(wide)
    for scale, kernel in zip(block.scales, (1, 3, 5), strict=True):
        assert scale[0].weight.shape == (16, 1, kernel, kernel)
        patches = functional.unfold(wide, kernel, padding=kernel // 2).unflatten(1, (16, -1)).unflatten(3, (6, 5))
        convolved = torch.einsum("ncphw,cp->nchw", patches, scale[0].weight.flatten(1))
        scales += (5 * group_norm(convolved)).clamp(0, 6)
    shuffled = scales.unflatten(1, (8, 2)).transpose(1, 2).flatten(1, 2)  # 8 groups of 2 become 2 of 8
    order = torch.arange(16).view(8, 2).T.flatten()
    kernels = block.project[0].weight[:, order, 0, 0]
    expected = features_NCHW + group_norm(torch.einsum("nchw,dc->ndhw", shuffled, kernels))
    torch.testing.assert_close(block(features_NCHW), expected)


def test_up_convolution() -> None:
    torch.manual_seed(0)
    block, features_NCHW = EUCB(16, 3, "group").double(), noise(2, 16, 3, 4).double()
    double_NCHW = features_NCHW[:, :, [0, 0, 1, 1, 2, 2]][:, :, :, [0, 0, 1, 1, 2, 2, 3, 3]]
    convolved = torch.cat(
        [functional.conv2d(double_NCHW[:, c : c + 1], block[1].weight[c : c + 1], padding=1) for c in range(16)], dim=1
    )
    mixed = torch.einsum("nchw,dc->ndhw", group_norm(convolved).clamp_min(0), block[4].weight[:, :, 0, 0])
    torch.testing.assert_close(block(features_NCHW), mixed + block[4].bias[:, None, None])


def test_decoder_stage_adds_the_gated_skip_and_refines() -> None:
    torch.manual_seed(0)
    stage, sab = DecoderStage(32, 16, "group").double(), SAB().double()
    deep_NCHW, skip_NCHW = noise(2, 32, 3, 4).double(), noise(2, 16, 6, 8).double()
    up_NCHW = stage.eucb(deep_NCHW)
    refined_NCHW = stage.mscam.cab(up_NCHW + stage.lgag(up_NCHW, skip_NCHW))  # channels, then space, then scales
    torch.testing.assert_close(stage(deep_NCHW, skip_NCHW, sab), stage.mscam.mscb(sab(refined_NCHW)))


# --- the project's promises ---


def test_stages_are_the_encoder_s_and_the_decoder_s() -> None:
    assert list(build().stages()) == STAGES


def test_no_two_weights_of_a_file_are_one_tensor() -> None:
    """Loading them from a file would part them."""
    tensors = build().state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


def gradients(network: EMCAD, slices_NCHW: Tensor, names: list[str]) -> list[Tensor]:
    target_N1HW = (noise(len(slices_NCHW), 1, *slices_NCHW.shape[2:], seed=2) > 1).to(slices_NCHW)
    with recomputed(network, names):
        find_loss("ce")(summed(network(slices_NCHW)), target_N1HW).backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("norm", NORMS)
def test_recomputed_stages_give_the_plain_gradient(norm: str) -> None:
    plain, slices_NCHW = build(norm), noise(2, 4, 32, 64)
    expected = gradients(plain, slices_NCHW, [])
    assert len(expected) == len(list(plain.parameters()))
    for names in (STAGES, STAGES[::3]):
        network = build(norm)
        found = gradients(network, slices_NCHW, names)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        pairs = zip(network.buffers(), plain.buffers(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "running statistics"


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_reaches_every_parameter(norm: str) -> None:
    """Except the gates' biases that a norm of their channel takes off again: batch norm all, group norm the last."""
    network = build(norm)
    gradients(network, noise(2, 4, 64, 64), [])
    taken_off = ("weight.0.bias", "deep.0.bias", "skip.0.bias") if norm == "batch" else ("weight.0.bias",)
    useful = {key: p.grad for key, p in network.named_parameters() if not (".lgag." in key and key.endswith(taken_off))}
    assert len(list(network.parameters())) - len(useful) == 3 * len(taken_off)
    largest = {key: float(gradient.abs().max()) for key, gradient in useful.items() if gradient is not None}
    assert largest.keys() == useful.keys()
    assert not [key for key, value in largest.items() if value < 1e-9]


@pytest.mark.parametrize("loss", ["ce", "dice"])
def test_micro_batches_give_the_gradient_of_the_batch(loss: str) -> None:
    slices_NCHW, target_N1HW = noise(3, 4, 32, 32).double(), (noise(3, 1, 32, 32, seed=2) > 1).double()
    found = []
    for size in (3, 2):
        network = build().double()
        batches = list(zip(slices_NCHW.split(size), target_N1HW.split(size), strict=True))
        backward_loss(find_loss(loss), lambda slices, network=network: summed(network(slices)), batches)
        found.append([p.grad for p in network.parameters()])
    scale = max(float(gradient.abs().max()) for gradient in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * scale)


def test_nothing_is_drawn_at_random() -> None:
    network, batch_NCHW = build().train(), noise(1, 4, 64, 64)
    state = torch.get_rng_state()
    assert torch.equal(network(batch_NCHW), network(batch_NCHW))
    assert torch.equal(torch.get_rng_state(), state)


def test_under_autocast_every_stage_hands_on_half_maps() -> None:
    """An fp32 map among them would take twice the memory that was planned for."""
    network, formats = build(), {}
    for name, stage in network.stages().items():
        stage.register_forward_hook(lambda *io, name=name: formats.update({name: io[2].dtype}))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        network(noise(1, 4, 64, 64).bfloat16())
    assert formats == dict.fromkeys(STAGES, torch.bfloat16)


def test_bf16_is_near_fp32() -> None:
    network, batch_NCHW = build().eval(), noise(2, 4, 64, 64)
    with torch.inference_mode():
        expected = network(batch_NCHW)
        network.to(torch.bfloat16, memory_format=torch.channels_last)
        found = network(batch_NCHW.to(torch.bfloat16, memory_format=torch.channels_last))
    assert found.dtype == torch.float32, "the heads are summed in fp32"
    spread = float(expected.std())
    assert float((found.float() - expected).abs().mean()) < 0.1 * spread + 2**-7


def test_an_encoders_weights_are_loaded_into_the_network() -> None:
    network, slices_NCHW = build().eval(), noise(1, 4, 32, 32)
    before, encoder = network(slices_NCHW), PVTv2(B0, channels=3)
    load_encoder(network.encoder, encoder.state_dict())
    assert not torch.equal(network(slices_NCHW), before)
    assert torch.equal(network.encoder.state_dict()["norm4.weight"], encoder.norm4.weight)

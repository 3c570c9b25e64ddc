"""Counted bytes against a count by hand, and against the real step on the CPU."""

from __future__ import annotations

import pytest
import torch
from each_network import EACH_NETWORK
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem_brats.config import DICE, NetworkConfig, Objective
from lowmem_brats.engine.losses import LOSSES, find_loss
from lowmem_brats.engine.step import TrainingStep, place, predict_batch, split_batch
from lowmem_brats.memory import dataless, footprint
from lowmem_brats.memory.device import LiveBytes, PeakMeter
from lowmem_brats.memory.footprint import (
    Concessions,
    Footprint,
    inference_footprint,
    stage_bytes,
    training_footprint,
    treats_slices_apart,
)
from lowmem_brats.networks import NETWORKS, SliceNetwork, build_network
from lowmem_brats.networks.drop import set_rates

CPU = torch.device("cpu")
SIZE_HW = (32, 64)


class OneConvolution(SliceNetwork):
    """Four weights, no bias: everything that happens to its memory can be listed."""

    stride = 1

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.only = nn.Conv2d(4, 1, 1, bias=False)

    def stages(self) -> dict[str, nn.Module]:
        return {"only": self.only}

    def last_bias(self) -> nn.Parameter:
        raise NotImplementedError

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        return self.only(slices_NCHW)  # type: ignore[no-any-return]


def rounded(count: int) -> int:
    return -(-count // 512) * 512


def real_inference(config: NetworkConfig, batch: int, dtype: torch.dtype) -> LiveBytes:
    network = place(build_network(config), CPU, dtype).eval()
    counter = LiveBytes()
    counter.name("parameters", *network.parameters(), *network.buffers())
    slices_NCHW = torch.randn(batch, 4, *SIZE_HW).half()
    with counter:
        predict_batch(network, slices_NCHW)
    return counter


def real_training(
    config: NetworkConfig,
    batch: int,
    micro_batch: int,
    dtype: torch.dtype,
    recompute: tuple[str, ...] = (),
    loss: str = "dice",
) -> LiveBytes:
    network = place(build_network(config), CPU).train()
    step = TrainingStep(network, find_loss(loss))
    target_NKHW = (torch.rand(batch, config.outputs, *SIZE_HW) < 0.5).float()
    micro_batches = split_batch(torch.randn(batch, 4, *SIZE_HW), target_NKHW, micro_batch)
    counter = LiveBytes()
    counter.name("parameters", *network.parameters(), *network.buffers())
    with counter:
        for _ in range(2):  # Adam's moments exist from the second step on
            assert step.take(micro_batches, 1e-3, dtype, recompute).stepped
    return counter


def measured_training(
    config: NetworkConfig,
    size_HW: tuple[int, int],
    dtype: torch.dtype,
    concessions: Concessions,
    objective: Objective = DICE,
    optimizer: str = "adam",
) -> int:
    """The peak of the second step of three slices, as a training measures it."""
    network = place(build_network(config), CPU).train()
    set_rates(network, objective.stochastic_depth, objective.spatial_dropout)
    step = TrainingStep(network, find_loss(objective.loss), optimizer=optimizer)
    step.optimizer.keep_state(concessions.state_on_host)
    target_NKHW = (torch.rand(3, config.outputs, *size_HW) < 0.5).float()
    micro_batches = split_batch(torch.randn(3, 4, *size_HW), target_NKHW, concessions.micro_batch)
    arguments = micro_batches, 1e-3, dtype, concessions.recompute, range(3)
    assert step.take(*arguments).stepped
    with PeakMeter(CPU, *step.resident(), on_host=step.on_host()) as meter:
        assert step.take(*arguments).stepped
    return meter.peak_bytes


def test_inference_of_a_toy_equals_the_hand_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "toy", OneConvolution)
    found = inference_footprint(NetworkConfig(name="toy"), (40, 40), 3, torch.float16, CPU)
    pixels = 3 * 40 * 40
    half_slices, half_logits, brain, logits = map(rounded, (2 * 4 * pixels, 2 * pixels, pixels, 4 * pixels))
    # When the logits become fp32 on the host, which is the device.
    assert found == Footprint(parameters=512, activations=half_slices + half_logits + brain + logits)


def test_training_of_a_toy_equals_the_hand_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "toy", OneConvolution)
    found = training_footprint(NetworkConfig(name="toy"), (40, 40), 3, torch.float32, CPU, Concessions(3))
    slices, plane = rounded(4 * 4 * 3 * 40 * 40), rounded(4 * 3 * 40 * 40)
    # When the backward pass reaches the probability: it, its gradient from the sum of products, and that with the
    # gradient from its own sum added. The rest are the sums, their totals, the loss and its slopes at the totals.
    assert found == Footprint(parameters=512, optimizer=3 * 512, activations=slices + 3 * plane + 4 * 512)


@pytest.mark.parametrize("name", EACH_NETWORK)
@pytest.mark.parametrize(("norm", "dtype"), [("group", torch.bfloat16), ("batch", torch.float32)])
def test_inference_equals_the_real_one_to_the_byte(name: str, norm: str, dtype: torch.dtype) -> None:
    config = NetworkConfig(name=name, width=8, depth=2, norm=norm)
    found = inference_footprint(config, SIZE_HW, 2, dtype, CPU)
    real = real_inference(config, 2, dtype)
    assert found.total == real.peak
    assert found.parameters == real.at_peak["parameters"]


@pytest.mark.parametrize("name", EACH_NETWORK)
@pytest.mark.parametrize(
    ("batch", "micro_batch", "dtype", "recomputing"),
    [(2, 2, torch.bfloat16, True), (3, 2, torch.float32, False)],
)
def test_training_equals_the_real_one_to_the_byte(
    name: str, batch: int, micro_batch: int, dtype: torch.dtype, recomputing: bool
) -> None:
    config = NetworkConfig(name=name, width=8, depth=2)
    stages = tuple(build_network(config).stages()) if recomputing else ()
    found = training_footprint(config, SIZE_HW, batch, dtype, CPU, Concessions(micro_batch, stages))
    assert found.total == real_training(config, batch, micro_batch, dtype, stages).peak


@pytest.mark.parametrize("loss", [*LOSSES, "dice+ce"])
@pytest.mark.parametrize(("outputs", "micro_batch"), [(1, 3), (3, 2)])
def test_every_loss_and_number_of_outputs_is_counted_to_the_byte(loss: str, outputs: int, micro_batch: int) -> None:
    config = NetworkConfig(width=8, depth=2, outputs=outputs)
    found = training_footprint(config, SIZE_HW, 3, torch.bfloat16, CPU, Concessions(micro_batch), Objective(loss))
    assert found.total == real_training(config, 3, micro_batch, torch.bfloat16, loss=loss).peak


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize(
    ("width", "size_HW", "micro_batch", "dtype"),
    [
        (8, SIZE_HW, 3, torch.float32),
        (8, SIZE_HW, 2, torch.bfloat16),
        (64, (8, 8), 3, torch.float32),
        (64, (8, 8), 2, torch.float16),
    ],
)
def test_the_state_in_host_memory_is_not_counted_and_its_way_to_the_device_is(
    optimizer: str, width: int, size_HW: tuple[int, int], micro_batch: int, dtype: torch.dtype
) -> None:
    """A wide network on small slices has its peak in the optimizer's step, the others in the backward pass."""
    config = NetworkConfig(width=width, depth=2)
    totals, unseen = {}, 2 * 512 if dtype == torch.float16 else 0  # of the loss's scale, which is older than the meter
    for on_host in (False, True):
        concessions = Concessions(micro_batch, (), on_host)
        found = training_footprint(config, size_HW, 3, dtype, CPU, concessions)
        assert found.total == unseen + measured_training(config, size_HW, dtype, concessions, optimizer=optimizer)
        assert (found.optimizer == 0) == on_host
        totals[on_host] = found.total
    assert totals[True] < totals[False]


def test_a_step_with_the_state_in_host_memory_needs_room_for_one_tensors_moments() -> None:
    """Where its step is the peak: weights, gradients, both moments of the largest tensor, its step, loss and norm."""
    config = NetworkConfig(width=64, depth=2)
    sizes = [rounded(4 * p.numel()) for p in build_network(config).parameters()]
    found = training_footprint(config, (8, 8), 3, torch.float32, CPU, Concessions(3, (), state_on_host=True))
    assert (found.parameters, found.gradients) == (sum(sizes), sum(sizes))
    assert found.activations == 2 * max(sizes) + 3 * 512


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize(
    ("name", "objective", "dtype"),
    [
        ("unet2d", Objective(spatial_dropout=0.5), torch.bfloat16),
        ("resunet2d", Objective("dice+ce", spatial_dropout=0.2), torch.float32),
        ("emcad-b0", Objective(stochastic_depth=0.1), torch.float32),
        ("transbts2d-light", Objective(stochastic_depth=0.3, spatial_dropout=0.1), torch.float32),
        pytest.param("emcad-b0", Objective(stochastic_depth=0.1), torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("transunet", Objective(stochastic_depth=0.1), torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_what_is_dropped_at_random_is_counted(
    name: str, objective: Objective, dtype: torch.dtype, recomputing: bool
) -> None:
    config = NetworkConfig(name=name, width=8, depth=2)
    concessions = Concessions(2, tuple(build_network(config).stages())[:-1] if recomputing else ())
    found = training_footprint(config, SIZE_HW, 3, dtype, CPU, concessions, objective)
    assert found.total == measured_training(config, SIZE_HW, dtype, concessions, objective)


@pytest.mark.parametrize("batch", [5, 3])
def test_a_unet_in_uneven_and_in_single_slices_equals_the_real_one(batch: int) -> None:
    config, micro_batch, dtype = NetworkConfig(width=8, depth=2), batch // 2, torch.float32
    found = training_footprint(config, SIZE_HW, batch, dtype, CPU, Concessions(micro_batch))
    assert found.total == real_training(config, batch, micro_batch, dtype).peak


@pytest.mark.parametrize("recomputing", [False, True])
def test_training_with_batch_norm_equals_the_real_one(recomputing: bool) -> None:
    config = NetworkConfig(width=8, depth=2, norm="batch")
    stages = tuple(build_network(config).stages()) if recomputing else ()
    found = training_footprint(config, SIZE_HW, 3, torch.float32, CPU, Concessions(3, stages))
    assert found.total == real_training(config, 3, 3, torch.float32, stages).peak


@pytest.mark.parametrize(("width", "total"), [(24, 72_761_344), (32, 127_974_400)])
def test_statistics_of_batch_norm_under_autocast_are_counted_in_fp32(width: int, total: int) -> None:
    """Deep levels tell: the statistics of few channels take 512 bytes in any format."""
    config = NetworkConfig(width=width, depth=4, norm="batch")
    found = training_footprint(config, SIZE_HW, 2, torch.bfloat16, CPU, Concessions(2))
    assert found.total == total == real_training(config, 2, 2, torch.bfloat16).peak


def test_torchs_fake_tensors_give_the_same_counts_where_torch_lacks_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    config = NetworkConfig(width=8, depth=2)
    first = tuple(build_network(config).stages())[:1]

    def counts() -> list[object]:
        for each in (inference_footprint, training_footprint, stage_bytes, footprint._without_data):
            each.cache_clear()
        return [
            inference_footprint(config, SIZE_HW, 2, torch.bfloat16, CPU),
            training_footprint(config, SIZE_HW, 3, torch.bfloat16, CPU, Concessions(2, first)),
            stage_bytes(config, SIZE_HW, torch.bfloat16, CPU),
        ]

    expected = counts()
    assert footprint._without_data() is dataless.WithoutData

    def missing(*_: object) -> None:
        raise AttributeError("module 'torch._C' has no attribute '_select_conv_backend'")

    monkeypatch.setattr(dataless, "_convolution_format", missing)
    found = counts()
    assert footprint._without_data() is FakeTensorMode
    footprint._without_data.cache_clear()
    assert found == expected


def test_components_are_what_they_say() -> None:
    config = NetworkConfig(width=8, depth=2)
    found = training_footprint(config, SIZE_HW, 4, torch.float32, CPU, Concessions(1))
    sizes = [rounded(4 * p.numel()) for p in build_network(config).parameters()]
    assert found.parameters == sum(sizes)
    assert found.gradients == sum(sizes)  # those of the first micro-batch are there when the second one runs
    assert found.optimizer == 2 * sum(sizes) + 512 * len(sizes)
    assert found.total == found.parameters + found.gradients + found.optimizer + found.activations


def test_recomputing_the_last_stage_spares_nothing_and_the_others_do() -> None:
    """Why the planner leaves the last stage out."""
    config = NetworkConfig(width=8, depth=2)
    stages = tuple(build_network(config).stages())

    def total(names: tuple[str, ...]) -> int:
        return training_footprint(config, SIZE_HW, 2, torch.float32, CPU, Concessions(2, names)).total

    assert total(stages) == total(stages[:-1]) < total(stages[:1]) < total(()) == total(stages[-1:])


def test_what_recomputing_a_stage_spares() -> None:
    config = NetworkConfig(width=8, depth=2)
    spared = stage_bytes(config, SIZE_HW, torch.float32, CPU)
    assert list(spared) == list(build_network(config).stages())
    plane = 8 * SIZE_HW[0] * SIZE_HW[1] * 4
    # Of the first block's four maps one is its output; its norms keep a mean and a deviation of 8 groups each.
    assert spared["down.0"] == 3 * plane + 4 * 512


def test_counting_takes_no_random_numbers() -> None:
    """A plan made before a training must not change what is trained."""
    before = torch.get_rng_state()
    training_footprint.__wrapped__(NetworkConfig(width=8, depth=1), SIZE_HW, 1, torch.float32, CPU, Concessions(1))
    assert torch.equal(before, torch.get_rng_state())


def test_which_networks_treat_slices_apart() -> None:
    assert treats_slices_apart(NetworkConfig(norm="group"))
    assert not treats_slices_apart(NetworkConfig(norm="batch"))


def test_on_a_card_a_convolution_s_maps_are_counted_twice_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN copies what goes into a convolution and what comes out of it, but not in fp32."""
    monkeypatch.setitem(NETWORKS, "toy", OneConvolution)
    pixels = 3 * 40 * 40
    half_slices, half_logits, brain = map(rounded, (2 * 4 * pixels, 2 * pixels, pixels))
    toy, card = NetworkConfig(name="toy"), torch.device("cuda")
    found = inference_footprint(toy, (40, 40), 3, torch.float16, card)
    assert found == Footprint(parameters=512, activations=2 * (half_slices + half_logits) + brain)
    full = inference_footprint(toy, (40, 40), 3, torch.float32, card)
    assert full == inference_footprint(toy, (40, 40), 3, torch.float32, CPU)

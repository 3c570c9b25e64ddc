"""A network's masks do not depend on how its slices are batched, and only active slices are run."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory.footprint import inference_footprint
from lowmem_brats.memory.planner import InferencePlan
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.segment import stack as predict
from lowmem_brats.segment.stack import NotFinite, Prediction, count_passes, half_is_sound, place, sound_precision

Z, SIDE = 7, 32
ALL = np.ones(Z, np.bool_)
SOME = np.array([0, 1, 1, 0, 1, 0, 1], np.bool_)
SOME_OF_9 = np.isin(np.arange(9), (0, 1, 8))


def plan(batch: int = 1, precision: str = "fp32") -> InferencePlan:
    """Return a plan for the CPU."""
    return InferencePlan("cpu", precision, batch)


def predict_stack(network: SliceNetwork, *arguments: Any, **options: Any) -> Prediction:
    """One network looks from every side."""
    return predict.predict_stack(lambda view: network, *arguments, **options)


def passes(prediction: Prediction, mirror: bool = False) -> int:
    """Forward passes of a slice, over all views."""
    return count_passes(prediction.ran_VN, mirror)


def stack(z: int = Z) -> npt.NDArray[np.float16]:
    """Return slices of noise in a box of brain."""
    slices_ZCHW = np.zeros((z, 4, SIDE, SIDE), np.float16)
    slices_ZCHW[:, :, 4:28, 6:26] = np.random.default_rng(0).normal(size=(z, 4, 24, 20))
    return slices_ZCHW


ONE = torch.from_numpy(stack(1))


def unet() -> SliceNetwork:
    """Return a tiny U-Net, the same each time."""
    torch.manual_seed(0)
    return place(build_network(NetworkConfig(width=8, depth=2)), plan())


class Toy(SliceNetwork):
    """Logit of region k = modality k + bias; NaN in the formats named; notes the batches it gets."""

    stride = 1

    def __init__(self, bias: float = 0.0, nan_in: tuple[torch.dtype, ...] = (), outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.bias = nn.Parameter(torch.tensor(bias))
        self.nan_in = nan_in
        self.batches: list[Tensor] = []

    def stages(self) -> dict[str, nn.Module]:
        """Return nothing: there is one step only."""
        return {}

    def last_bias(self) -> nn.Parameter:
        """Return the one of all regions."""
        return self.bias

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, 4, H, W] → [N, K, H, W]."""
        self.batches.append(slices_NCHW)
        return slices_NCHW[:, : self.outputs] + self.bias + (torch.nan if slices_NCHW.dtype in self.nan_in else 0)


@pytest.mark.parametrize("active_Z", [ALL, SOME], ids=["all", "some"])
def test_batches_change_nothing(active_Z: npt.NDArray[np.bool_]) -> None:
    network, slices_ZCHW = unet(), stack()
    torch.nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
    by_hand_ZHW = np.zeros((Z, SIDE, SIDE), np.bool_)
    with torch.inference_mode():
        for z in np.flatnonzero(active_Z):
            logits_HW = network(torch.from_numpy(slices_ZCHW[z : z + 1]).float())[0, 0].numpy()
            by_hand_ZHW[z] = (logits_HW > 0) & (slices_ZCHW[z] != 0).any(axis=0)
    assert 0.05 < by_hand_ZHW[active_Z].mean() < 0.95
    for batch in (1, 3, 4, 100):
        mask_ZHW = predict_stack(network, slices_ZCHW, [active_Z], plan(batch)).mask_KZHW[0]
        assert mask_ZHW.dtype == np.bool_
        np.testing.assert_array_equal(mask_ZHW, by_hand_ZHW)


def test_only_active_slices_are_run() -> None:
    network, slices_ZCHW = Toy(), stack()
    mask_ZHW = predict_stack(network, slices_ZCHW, [SOME], plan(3)).mask_KZHW[0]
    assert [len(batch) for batch in network.batches] == [3, 1]
    np.testing.assert_array_equal(torch.cat(network.batches).numpy(), slices_ZCHW[SOME])
    assert not mask_ZHW[~SOME].any()
    np.testing.assert_array_equal(mask_ZHW[SOME], slices_ZCHW[SOME, 0] > 0)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_three_outputs_are_three_masks_in_order(batch: int) -> None:
    network, slices_ZCHW = Toy(outputs=3), stack()
    mask_KZHW = predict_stack(network, slices_ZCHW, [SOME], plan(batch)).mask_KZHW
    assert (mask_KZHW.shape, mask_KZHW.dtype) == ((3, Z, SIDE, SIDE), np.bool_)
    for k, mask_ZHW in enumerate(mask_KZHW):
        np.testing.assert_array_equal(mask_ZHW, (slices_ZCHW[:, k] > 0) & SOME[:, None, None])
    assert sum(map(len, network.batches)) == SOME.sum(), "one pass for all three"


def test_nothing_outside_the_brain_is_tumour() -> None:
    slices_ZCHW = stack()
    slices_ZCHW[:, 1:, 10:20] = 0  # brain in one modality is enough
    mask_KZHW = predict_stack(Toy(bias=100.0, outputs=3), slices_ZCHW, [ALL], plan()).mask_KZHW
    np.testing.assert_array_equal(mask_KZHW, np.stack([(slices_ZCHW != 0).any(axis=1)] * 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_batch_that_is_not_finite_is_no_prediction(value: float) -> None:
    """Not the first batch, and in the second region."""

    class Failing(Toy):
        def forward(self, slices_NCHW: Tensor) -> Tensor:
            logits_NKHW = super().forward(slices_NCHW)
            logits_NKHW[:, 1, 8, 8] += value if len(self.batches) == 3 else 0
            return logits_NKHW

    with pytest.raises(NotFinite):
        predict_stack(Failing(outputs=3), stack(), [ALL], plan(2))
    predict_stack(Failing(outputs=3), stack(), [ALL], plan(4))


def test_nothing_to_run() -> None:
    network, reported = Toy(), []
    found = predict_stack(
        network, stack(), [np.zeros(Z, np.bool_)], plan(), False, lambda done, total: reported.append((done, total))
    )
    assert found.mask_KZHW.shape == (1, Z, SIDE, SIDE)
    assert not found.mask_KZHW.any()
    assert not network.batches
    assert not reported
    assert (found.peak_bytes, found.pixels) == (512, 0), "the one weight"


@pytest.mark.parametrize(("batch", "reports"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (9, [4])])
def test_progress_reaches_the_total(batch: int, reports: list[int]) -> None:
    reported: list[tuple[int, int]] = []
    predict_stack(Toy(), stack(), [SOME], plan(batch), False, lambda done, total: reported.append((done, total)))
    assert reported == [(done, 4) for done in reports]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peak_counts_weights_and_one_batch(precision: str) -> None:
    def peak(z: int, batch: int) -> int:
        network = place(unet(), plan(batch, precision))
        return predict_stack(network, stack(z), [np.ones(z, np.bool_)], plan(batch, precision)).peak_bytes

    item = 4 if precision == "fp32" else 2
    weights = sum(p.numel() for p in unet().parameters()) * item
    first_block = 2 * 8 * SIDE * SIDE * item  # a convolution's input and output of 8 channels
    assert peak(1, 1) > weights + first_block
    assert peak(1, 1) == peak(5, 1) == peak(20, 1)
    assert peak(20, 4) > peak(20, 1) + 3 * first_block
    assert peak(20, 4) < 4 * peak(20, 1), "the weights count once"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("outputs", "context"), [(1, 0), (3, 0), (3, 2)])
def test_peak_is_the_predicted_one(outputs: int, context: int, precision: str, batch: int) -> None:
    # So wide that the weights of three heads need more of the allocator's 512-byte blocks than those of one.
    config = NetworkConfig(width=96, depth=1, outputs=outputs, context=context)
    network = place(build_network(config), plan(batch, precision))
    found = predict_stack(network, stack(), [ALL], plan(batch, precision))
    size_HW, cpu = (SIDE, SIDE), torch.device("cpu")
    assert found.peak_bytes == inference_footprint(config, size_HW, batch, DTYPES[precision], cpu).total


def test_views_and_mirror_images_are_averaged() -> None:
    torch.manual_seed(0)
    network, slices_ZCHW = unet(), stack(16)
    torch.nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
    slices = torch.from_numpy(slices_ZCHW).float()
    with torch.inference_mode():
        axial_ZHW = network(slices)[:, 0]
        coronal_ZHW = network(slices.permute(2, 1, 0, 3))[:, 0].permute(1, 0, 2)  # [H, C, Z, W]
        sagittal_ZHW = network(slices.permute(3, 1, 2, 0))[:, 0].permute(2, 1, 0)  # [W, C, H, Z]
        mirrored_ZHW = network(slices.flip(3))[:, 0].flip(2)
        mirrored_coronal_ZHW = network(slices.flip(3).permute(2, 1, 0, 3))[:, 0].permute(1, 0, 2).flip(2)
    brain_ZHW = (slices_ZCHW != 0).any(axis=1)
    everywhere = [np.ones(n, np.bool_) for n in (16, SIDE, SIDE)]

    def found(views: int, mirror: bool) -> npt.NDArray[np.bool_]:
        result = predict_stack(network, slices_ZCHW, everywhere[:views], plan(3), mirror)
        # Left and right of a sagittal slice are other slices: mirrored, it is the same.
        assert passes(result, mirror) == sum(map(len, everywhere[:views])) + mirror * sum(
            map(len, everywhere[: min(views, 2)])
        )
        return result.mask_KZHW[0]

    for mask_ZHW, logits in (
        (found(1, False), axial_ZHW),
        (found(2, False), axial_ZHW + coronal_ZHW),
        (found(3, False), axial_ZHW + coronal_ZHW + sagittal_ZHW),
        (found(1, True), axial_ZHW + mirrored_ZHW),
        (found(3, True), axial_ZHW + mirrored_ZHW + coronal_ZHW + mirrored_coronal_ZHW + sagittal_ZHW),
    ):
        sure_ZHW = (logits.abs() > 1e-4).numpy()  # sums in another order
        np.testing.assert_array_equal(mask_ZHW[sure_ZHW], ((logits > 0).numpy() & brain_ZHW)[sure_ZHW])
    assert 0.01 < (found(3, False) != found(1, False)).mean() < 0.5


def test_each_view_has_its_network_and_one_is_in_memory_at_a_time() -> None:
    slices_ZCHW, everywhere = stack(16), [np.ones(n, np.bool_) for n in (16, SIDE, SIDE)]
    alive, asked = weakref.WeakSet[Toy](), list[int]()

    def network_of(view: int) -> Toy:
        assert not alive
        asked.append(view)
        alive.add(network := Toy(bias=float(view)))
        return network

    found = predict.predict_stack(network_of, slices_ZCHW, everywhere, plan(3), mirror=True)
    assert asked == [0, 1, 2]
    brain_ZHW = (slices_ZCHW != 0).any(axis=1)
    # Axial and coronal slices are seen twice, mirrored too.
    wanted_ZHW = (5 * slices_ZCHW[:, 0].astype(np.float32) + 2 * 0 + 2 * 1 + 2) * brain_ZHW
    np.testing.assert_allclose(found.sum_KZHW[0], wanted_ZHW, atol=1e-5)


def tumour(z: slice) -> npt.NDArray[np.float16]:
    """Return slices in which Toy finds a box of 5 × 5 pixels on the slices `z`, seen from every side."""
    slices_ZCHW = np.full((9, 4, SIDE, SIDE), -1.0, np.float16)
    slices_ZCHW[z, 0, 10:15, 8:13] = 1.0
    return slices_ZCHW


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("mirror", [False, True])
def test_narrowing_runs_the_slices_around_the_tumour(mirror: bool, batch: int) -> None:
    everywhere = [np.ones(n, np.bool_) for n in (9, SIDE, SIDE)]
    reported: list[tuple[int, int]] = []
    arguments = Toy(), tumour(np.s_[3:7]), everywhere, plan(batch), mirror
    full = predict_stack(*arguments)
    found = predict_stack(*arguments, lambda done, total: reported.append((done, total)), narrow=True)
    np.testing.assert_array_equal(found.mask_KZHW, full.mask_KZHW)
    assert passes(full, mirror) == (9 + SIDE) * (1 + mirror) + SIDE
    # Axially 0 2 4 6 8, then 3 5 7 beside 4 and 6; 5 coronal and 5 sagittal slices cross the tumour.
    assert passes(found, mirror) == (8 + 5) * (1 + mirror) + 5
    assert [total for _, total in reported] == [passes(full, mirror)] * len(reported)
    assert reported[-1][0] == passes(full, mirror)
    assert reported == sorted(reported)
    assert found.peak_bytes == full.peak_bytes


def test_narrowing_may_miss_what_lies_on_one_axial_slice() -> None:
    everywhere = [np.ones(n, np.bool_) for n in (9, SIDE, SIDE)]
    for z, found_at_all in ((4, True), (5, False)):
        found = predict_stack(Toy(), tumour(np.s_[z]), everywhere, plan(), narrow=True)
        assert found.mask_KZHW.any() == found_at_all
        assert passes(found) == (5 + 2 + 5 + 5 if found_at_all else 5)


def test_narrowing_finds_nothing_where_one_side_alone_has_looked() -> None:
    """Coronal slices, the only ones of 9 rows, call all of themselves tumour: the axial ones say where to look."""

    class Coronal(Toy):
        def forward(self, slices_NCHW: Tensor) -> Tensor:
            return super().forward(slices_NCHW) + 10 * (slices_NCHW.shape[2] == 9)

    everywhere = [np.ones(n, np.bool_) for n in (9, SIDE, SIDE)]
    found = predict_stack(Coronal(), tumour(np.s_[4:7]), everywhere, plan(), narrow=True).mask_KZHW[0]
    box = np.zeros_like(found)
    box[3:8, 10:15, 8:13] = True  # axial slices 3 and 7 were run as neighbours of 4 and 6
    # Slice 8 was run too: all three sides have looked there as well.
    box[[0, 2, 8], 10:15, 8:13] = True
    np.testing.assert_array_equal(found, box)


@pytest.mark.parametrize("flat", [False, True])
def test_a_slice_is_shown_with_its_neighbours(flat: bool) -> None:
    network, slices_ZCHW = Toy(), stack(9)
    network.context = 1
    predict_stack(network, slices_ZCHW, [SOME_OF_9, np.ones(SIDE, np.bool_)], plan(2), flat=flat)
    axial_NCHW = torch.cat(network.batches[:2]).numpy()
    np.testing.assert_array_equal(axial_NCHW[:, :4], slices_ZCHW[[0, 1, 8]])
    np.testing.assert_array_equal(axial_NCHW[1, 4:], np.concatenate(slices_ZCHW[[0, 2]]) * (not flat))
    np.testing.assert_array_equal(axial_NCHW[2, 4:], np.concatenate([slices_ZCHW[7], 0 * slices_ZCHW[7]]) * (not flat))
    row_CZW = network.batches[2 + 10 // 2][0].numpy()  # the coronal slice of row 10
    for channels, row in ((slice(0, 4), 10), (slice(4, 8), 9), (slice(8, 12), 11)):
        expected_CZW = slices_ZCHW[:, :, row].swapaxes(0, 1)
        np.testing.assert_array_equal(row_CZW[channels], expected_CZW * (row == 10 or not flat))


def test_a_neighbours_brain_is_not_the_slices_own() -> None:
    network, slices_ZCHW = Toy(bias=100.0), stack(3)
    network.context = 1
    slices_ZCHW[1, :, 10:20] = 0
    mask_ZHW = predict_stack(network, slices_ZCHW, [np.ones(3, np.bool_)], plan()).mask_KZHW[0]
    np.testing.assert_array_equal(mask_ZHW, (slices_ZCHW != 0).any(axis=1))


def test_narrowing_keeps_to_the_active_slices() -> None:
    active_VN = [np.ones(n, np.bool_) for n in (9, SIDE, SIDE)]
    active_VN[0][:6], active_VN[1][12:], active_VN[2][:10] = False, False, False
    network = Toy()
    found = predict_stack(network, tumour(np.s_[3:7]), active_VN, plan(), narrow=True)
    # Axially 6 and 8, then 7; coronal slices 10 and 11, sagittal ones 10 to 12.
    assert passes(found) == len(network.batches) == 3 + 2 + 3


def test_no_graph_is_kept() -> None:
    network = Toy()
    predict_stack(network, stack(), [ALL], plan())
    assert all(batch.is_inference() for batch in network.batches)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_place_sets_format_layout_and_mode(precision: str, dtype: torch.dtype) -> None:
    network = build_network(NetworkConfig(width=8, depth=1)).train()
    placed = place(network, plan(precision=precision))
    assert placed is network
    assert not placed.training
    assert {p.dtype for p in placed.parameters()} == {dtype}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in placed.parameters() if p.ndim == 4)
    toy = Toy()
    place(toy, plan(precision=precision))
    predict_stack(toy, stack(), [ALL], plan(2, precision))
    assert {batch.dtype for batch in toy.batches} == {dtype}


@pytest.mark.parametrize(
    ("nan_in", "precision", "sound"),
    [
        ((), "fp16", True),
        ((torch.float16,), "fp16", False),  # GTX 16xx
        ((torch.float16,), "bf16", True),
        ((torch.bfloat16,), "bf16", False),
        ((torch.float16, torch.float32), "fp16", True),  # not the format's fault
    ],
)
def test_half_check_sees_what_the_format_breaks(nan_in: tuple[torch.dtype, ...], precision: str, sound: bool) -> None:
    assert half_is_sound(Toy(nan_in=nan_in), ONE, plan(precision=precision)) is sound


def test_half_check_sees_overflow_and_leaves_the_network_placed() -> None:
    network = Toy(bias=1e6)  # infinite in fp16
    assert half_is_sound(network, ONE, plan(precision="fp16")) is False
    assert network.bias.dtype == torch.float16
    assert [batch.dtype for batch in network.batches] == [torch.float32, torch.float16]
    assert half_is_sound(unet(), ONE, plan(precision="bf16")) is True


@pytest.mark.parametrize(
    ("nan_in", "asked", "chosen"),
    [((), "fp16", "fp16"), ((torch.float16,), "fp16", "fp32"), ((torch.float16,), "bf16", "bf16")],
)
def test_a_card_whose_half_format_is_broken_runs_in_fp32(
    nan_in: tuple[torch.dtype, ...], asked: str, chosen: str
) -> None:
    notes = [] if chosen == asked else [f"{asked} gives NaN on this card: running in fp32"]
    # `cpu:0` stands for a card: any device but `cpu` is checked.
    assert sound_precision(lambda: Toy(nan_in=nan_in), ONE, "cpu:0", asked) == (chosen, notes)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp16"), ("cuda", "fp32")])
def test_where_no_format_can_be_broken_no_network_is_loaded(device: str, precision: str) -> None:
    def load() -> SliceNetwork:
        raise AssertionError("nothing to check")

    assert sound_precision(load, ONE, device, precision) == (precision, [])


class Cramped(Toy):
    """A card on which only so many slices fit."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, slices_NCHW: Tensor) -> Tensor:
        """[N, 4, H, W] → [N, 1, H, W]; OutOfMemoryError for more than `room` slices."""
        logits_N1HW = super().forward(slices_NCHW)
        if len(slices_NCHW) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits_N1HW


def test_running_out_of_memory_halves_the_batch_and_changes_nothing() -> None:
    cramped = predict_stack(Cramped(room=2), stack(), [ALL], plan(batch=5))
    roomy = predict_stack(Toy(), stack(), [ALL], plan(batch=5))
    np.testing.assert_array_equal(cramped.mask_KZHW[0], roomy.mask_KZHW[0])
    assert (cramped.batch, roomy.batch) == (2, 5)


def test_running_out_of_memory_with_one_slice_is_an_error() -> None:
    with pytest.raises(BudgetError, match="out of memory with the smallest plan"):
        predict_stack(Cramped(room=0), stack(), [ALL], plan(batch=4))


def test_running_out_of_memory_in_the_half_check_is_an_error() -> None:
    network = Cramped(room=1)

    def fill(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        network.room = int(inputs[0].dtype == torch.float32)  # the check's reference is computed on the host

    network.register_forward_pre_hook(fill)
    with pytest.raises(BudgetError, match="out of memory with the smallest plan"):
        half_is_sound(network, ONE, plan(precision="bf16"))

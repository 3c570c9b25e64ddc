"""Patches put together: as MONAI's and nnU-Net's own loops do it, and whatever the patch where it must not matter."""

from __future__ import annotations

from dataclasses import replace

import foreign_models as models
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_weights import SMALL_SHAPE
from torch import Tensor, nn

from lowmem_brats.config import NetworkConfig
from lowmem_brats.data.phantom import make_phantom
from lowmem_brats.data.slices import SliceStack
from lowmem_brats.data.whole import box_of, prepare_whole
from lowmem_brats.engine.precision import DTYPES
from lowmem_brats.errors import BudgetError
from lowmem_brats.memory.budget import MemoryBudget
from lowmem_brats.memory.planner import InferencePlan, plan_inference
from lowmem_brats.networks import PatchNetwork, build_patch_network
from lowmem_brats.segment.patches import gaussian, predict_volume
from lowmem_brats.segment.stack import NotFinite

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")

PLAN = InferencePlan("cpu", "fp32", 1, (16, 24, 16), cropped=True)


class Pointwise(PatchNetwork):
    """Sees each voxel by itself, so its result is the same in any patch."""

    stride_ZHW, window_ZHW = (1, 1, 1), (8, 8, 8)
    axes, whole = "WHZ", False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.only = nn.Conv3d(4, 3, 1)
        self.shapes: list[tuple[int, ...]] = []

    def stages(self) -> dict[str, nn.Module]:
        return {"only": self.only}

    def last_bias(self) -> nn.Parameter:
        return self.only.bias  # type: ignore[return-value]

    def forward(self, patches: Tensor) -> Tensor:
        self.shapes.append(tuple(patches.shape))
        return self.only(patches)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    return make_phantom(0, SMALL_SHAPE).images_CXYZ.astype(np.float32)


@pytest.fixture(scope="module")
def stack(images: npt.NDArray[np.float32]) -> SliceStack:
    return prepare_whole(images, "zscore-brain")


@pytest.mark.parametrize("patch_ZHW", [(16, 24, 16), (40, 56, 48), (64, 64, 64), (1, 16, 16)])
@pytest.mark.parametrize("cropped", [True, False])
def test_where_only_the_voxel_counts_the_patch_does_not(
    stack: SliceStack, patch_ZHW: tuple[int, int, int], cropped: bool
) -> None:
    network = Pointwise().eval()
    with torch.inference_mode():
        images_1CWHZ = torch.from_numpy(stack.slices_ZCHW.transpose(1, 3, 2, 0)[None].copy())
        wanted_KZHW = network.only(images_1CWHZ)[0].numpy().transpose(0, 3, 2, 1)
    told: list[tuple[int, int]] = []
    plan = replace(PLAN, patch_ZHW=patch_ZHW, cropped=cropped)
    found = predict_volume(network, stack, plan, lambda *each: told.append(each))
    inside = box_of(stack.brain_ZHW) if cropped else (slice(None),) * 3
    np.testing.assert_allclose(found.sum_KZHW[(slice(None), *inside)], wanted_KZHW[(slice(None), *inside)], atol=1e-5)
    outside = np.ones(stack.brain_ZHW.shape, np.bool_)
    outside[inside] = False
    assert not found.sum_KZHW[:, outside].any()
    z, h, w = patch_ZHW
    assert set(network.shapes) == {(1, 4, w, h, z)}
    assert told[-1] == (len(network.shapes), len(network.shapes))
    assert found.pixels == len(network.shapes) * z * h * w


def test_the_middle_of_a_patch_counts_most_and_its_corners_least() -> None:
    weight_ZHW = gaussian((8, 16, 1))
    assert weight_ZHW.shape == (8, 16, 1)
    assert weight_ZHW.max() == weight_ZHW[4, 8, 0] == 1
    assert weight_ZHW.min() == weight_ZHW[0, 0, 0] == pytest.approx(np.exp(-16))
    assert weight_ZHW[4, 6, 0] == pytest.approx(np.exp(-0.5)), "two of sixteen voxels are a standard deviation"
    assert gaussian((512, 512, 512)).min() > 0


def test_segresnet_gives_what_monais_own_inference_gives(images: npt.NDArray[np.float32]) -> None:
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import NormalizeIntensity

    theirs = models.segresnet()
    config = NetworkConfig(name="segresnet", width=8, outputs=3, patch="48x64x48")
    ours = build_patch_network(config)
    ours.load_state_dict({ours.authors_keys[key]: tensor for key, tensor in theirs.state_dict().items()})
    stack = prepare_whole(images, "zscore-brain", ("t1ce", "t1", "t2", "flair"))
    plan = plan_inference(config, stack.brain_ZHW.shape, MemoryBudget(None), "cpu", "fp32")
    found = predict_volume(ours.eval(), stack, plan)
    normal = NormalizeIntensity(nonzero=True, channel_wise=True)(images[[1, 0, 2, 3]])
    inferer = SlidingWindowInferer(roi_size=(48, 64, 48), sw_batch_size=1, overlap=0.5)
    with torch.inference_mode():
        wanted = inferer(torch.as_tensor(normal)[None], theirs)[0].numpy()
    np.testing.assert_allclose(found.sum_KZHW.transpose(0, 3, 2, 1), wanted, atol=1e-5)
    assert found.peak_bytes == plan.predicted_bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_other_copy_of_a_patch_lies_beside_its_maps(stack: SliceStack, precision: str) -> None:
    config = NetworkConfig(name="segresnet", width=8, outputs=3, patch="24x32x24")
    plan = plan_inference(config, stack.brain_ZHW.shape, MemoryBudget(None), "cpu", precision)
    found = predict_volume(build_patch_network(config).to(DTYPES[precision]).eval(), stack, plan)
    assert found.peak_bytes == plan.predicted_bytes


@pytest.mark.parametrize("dimensions", [3, 2])
def test_nnunet_gives_what_its_own_tiles_give(images: npt.NDArray[np.float32], dimensions: int) -> None:
    """Its own loop: tiles of the crop, each times the Gaussian, divided by the sum of the Gaussians."""
    stored = models.configuration(dimensions, patch=(16, 24, 16)[3 - dimensions :])
    theirs = models.authors_network(stored["architecture"], 3)
    name = stored["architecture"]["network_class_name"].rpartition(".")[2]
    told = {"class": name, "settings": stored["architecture"]["arch_kwargs"]}
    sides = stored["patch_size"] if dimensions == 3 else [1, *stored["patch_size"]]
    config = NetworkConfig(
        name="nnunet", outputs=3, architecture=models.json.dumps(told), patch="x".join(map(str, sides))
    )
    ours = build_patch_network(config)
    keys = ours.authors_keys
    ours.load_state_dict({keys[key]: tensor for key, tensor in theirs.state_dict().items() if keys[key]})
    stack = prepare_whole(images, "zscore-mask")
    inside = (slice(None), *box_of(stack.brain_ZHW))
    crop_CZHW = stack.slices_ZCHW.swapaxes(0, 1)[inside]
    size_ZHW = crop_CZHW.shape[1:]
    plan = plan_inference(config, stack.brain_ZHW.shape, MemoryBudget(None), "cpu", "fp32", brain_ZHW=size_ZHW)
    assert plan.patch_ZHW == tuple(sides)
    found = predict_volume(ours.eval(), stack, plan)
    total, counted = np.zeros((3, *size_ZHW)), np.zeros(size_ZHW)
    for z in range(size_ZHW[0]) if dimensions == 2 else steps(size_ZHW[0], sides[0]):
        for h in steps(size_ZHW[1], sides[1]):
            for w in steps(size_ZHW[2], sides[2]):
                place = (slice(z, z + sides[0]), slice(h, h + sides[1]), slice(w, w + sides[2]))
                tile = torch.from_numpy(crop_CZHW[(slice(None), *place)].copy())[None]
                with torch.inference_mode():
                    logits = theirs(tile.squeeze(2) if dimensions == 2 else tile)[0]
                total[(slice(None), *place)] += logits.view(3, *sides).numpy() * gaussian(sides)
                counted[place] += gaussian(sides)
    np.testing.assert_allclose(found.sum_KZHW[inside], total / counted, atol=1e-5)
    assert found.peak_bytes == plan.predicted_bytes


def steps(size: int, patch: int) -> list[int]:
    """Where tiles begin along an axis, by nnU-Net's own rule."""
    count = int(np.ceil((size - patch) / (patch * 0.5))) + 1
    return [round((size - patch) / max(count - 1, 1) * i) for i in range(count)]


def test_a_network_that_gives_nan_is_noticed(stack: SliceStack) -> None:
    network = Pointwise().eval()
    with torch.no_grad():
        network.only.bias[0] = torch.nan
    with pytest.raises(NotFinite):
        predict_volume(network, stack, PLAN)


def test_a_card_that_runs_out_of_memory_gets_half_the_batch(stack: SliceStack, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowmem_brats.engine import step

    plain, plan = step.predict_patches, replace(PLAN, patch_ZHW=(1, 16, 16), batch=4)
    wanted = predict_volume(Pointwise().eval(), stack, plan)

    def small_card(network: PatchNetwork, patches: Tensor) -> Tensor:
        if len(patches) > 2:
            raise torch.OutOfMemoryError
        return plain(network, patches)

    monkeypatch.setattr(step, "predict_patches", small_card)
    found = predict_volume(Pointwise().eval(), stack, plan)
    assert (wanted.batch, found.batch) == (4, 2)
    np.testing.assert_allclose(found.sum_KZHW, wanted.sum_KZHW, atol=1e-5)

    def smaller_card(network: PatchNetwork, patches: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "predict_patches", smaller_card)
    with pytest.raises(BudgetError, match="out of memory with the smallest plan"):
        predict_volume(Pointwise().eval(), stack, plan)

"""Read a MONAI bundle for BraTS: its metadata, its inference settings, and where its weights are.

Source of the layout: bundle `brats_mri_segmentation` of MONAI's model zoo. Expressions in the settings, which
begin with $ or @, are never evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowmem_brats.config import NetworkConfig
from lowmem_brats.config.network import sides_of
from lowmem_brats.errors import WeightsError
from lowmem_brats.weights.foreign import Foreign, check_carried, modalities_of, plain
from lowmem_brats.weights.pickled import read_checkpoint, tensors_in

KIND = "MONAI bundle"
CONFIGS, WEIGHTS = Path("configs"), Path("models", "model.pt")
FIXED = {"blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "in_channels": 4, "out_channels": 3}
FREE = {"_target_", "init_filters", "dropout_prob"}
"""Settings of the network that may have any value; dropout does nothing in prediction."""
DEFAULT = {"spatial_dims": 3, "num_groups": 8, "use_conv_final": True, "upsample_mode": "nontrainable"}
"""Settings that may be there, but with no other value."""
HARMLESS = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "ToTensord")
REGIONS = {
    **dict.fromkeys(("tumorcore", "tumourcore", "tc"), "tc"),
    **dict.fromkeys(("wholetumor", "wholetumour", "wt"), "wt"),
    **dict.fromkeys(("enhancingtumor", "enhancingtumour", "et"), "et"),
}


def read_bundle(folder: Path) -> Foreign:
    """Read a bundle's folder. Raises InputError listing what cannot be carried over, and WeightsError."""
    metadata, settings = (read_json(folder / CONFIGS / name) for name in ("metadata.json", "inference.json"))
    network, inferer = (settings.get(key) for key in ("network_def", "inferer"))
    network, inferer = (each if isinstance(each, dict) else {} for each in (network, inferer))
    data = metadata.get("network_data_format", {})
    channels, outputs = (_channel_names(data, *path) for path in (("inputs", "image"), ("outputs", "pred")))
    modalities, problems = modalities_of(channels)
    regions = tuple(REGIONS.get(plain(name), "") for name in outputs)
    if sorted(regions) != ["et", "tc", "wt"]:
        problems.append(f"outputs {', '.join(outputs) or 'none'}, not tumor core, whole tumor and enhancing tumor")
    problems += _problems_of_network(network) + _problems_of_preprocessing(settings.get("preprocessing"))
    roi = inferer.get("roi_size")
    patch = "x".join(map(str, reversed(roi))) if isinstance(roi, list) else ""
    if inferer.get("_target_") != "SlidingWindowInferer" or not sides_of(patch) or any(s % 8 for s in sides_of(patch)):
        problems.append(f"inferer {inferer.get('_target_')} of {roi}, not a sliding window of three multiples of 8")
    check_carried(folder, problems, KIND)
    return Foreign(
        kind=f"{KIND} {str(metadata.get('version', ''))[:20]}".strip(),
        network=NetworkConfig(name="segresnet", width=network["init_filters"], outputs=3, patch=patch),
        modalities=modalities,
        outputs=regions,
        checkpoints={plain(folder.resolve().name) or "bundle": folder / WEIGHTS},
        read=_tensors,
        facts={"spacing_mm": [1.0, 1.0, 1.0], "overlap": inferer.get("overlap", 0.25)},
    )


def read_json(path: Path) -> dict[str, Any]:
    """A table in a JSON file. Raises WeightsError."""
    try:
        if path.stat().st_size > 32 * 2**20:
            raise ValueError("larger than 32 MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = "no table"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)[:100]
    raise WeightsError(path, f"cannot be read ({reason})", "the JSON file of its authors", "Copy the folder again.")


def _channel_names(data: Any, *path: str) -> list[str]:
    """The names of channels in the metadata, by their numbers; none where they are not written as expected."""
    for key in (*path, "channel_def"):
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict) or set(data) != {str(i) for i in range(len(data))}:
        return []
    return [str(data[str(i)]) for i in range(len(data))]


def _problems_of_network(network: Mapping[str, Any]) -> list[str]:
    if str(network.get("_target_")).rpartition(".")[2] != "SegResNet":
        return [f"network {network.get('_target_')}, not SegResNet"]
    wrong = [f"{key} {network.get(key)}" for key, value in FIXED.items() if network.get(key) != value]
    wrong += [f"{key} {network[key]}" for key, value in DEFAULT.items() if network.get(key, value) != value]
    wrong += [f"{key} {network[key]}" for key in network if key not in {*FIXED, *DEFAULT, *FREE}]
    filters = network.get("init_filters")
    if type(filters) is not int or not 8 <= filters <= 128 or filters % 8:
        wrong.append(f"init_filters {filters}")
    return [f"network with {', '.join(wrong)}"] if wrong else []


def _problems_of_preprocessing(stored: Any) -> list[str]:
    transforms = stored.get("transforms") if isinstance(stored, dict) else None
    steps = [each for each in transforms or [] if isinstance(each, dict)]
    told = [each for each in steps if each.get("_target_") not in HARMLESS]
    normal = [each for each in told if each.get("_target_") == "NormalizeIntensityd"]
    if len(normal) == len(told) == 1 and normal[0].get("nonzero") is True and normal[0].get("channel_wise") is True:
        return []
    names = ", ".join(str(each.get("_target_")) for each in told) or "nothing"
    return [f"preprocessing by {names}, not by NormalizeIntensityd of each channel's non-zero voxels alone"]


def _tensors(path: Path) -> dict[str, Tensor]:
    found = read_checkpoint(path)
    inner = [found[key] for key in ("model", "state_dict") if isinstance(found.get(key), dict)]
    return tensors_in(inner[0] if inner else found, path)

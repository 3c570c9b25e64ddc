"""What a weights file says of itself, in the header of its safetensors; untrusted until it is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lowmem_brats.config import FUSIONS, MODALITIES, PREPROCESSING, PREPROCESSINGS, NetworkConfig, without_former
from lowmem_brats.data.labels import Region, groups_of, names_of, regions_of
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.networks import patches_of

FORMAT = "lowmem-brats/1"
OF_PATCHES = ("patch", "cropped", "tissues", "architecture")
"""Settings that only networks of patches have; in the headers of others they are left out."""
FUSION = "fusion"
"""In the header of a network of patches only: `WeightsFile.fusion`."""


@dataclass(frozen=True)
class WeightsFile:
    """The weights of one network: their file and what its header says."""

    path: Path
    regions: tuple[Region, ...]
    """The regions that the network segments, in the order of its outputs: one region, or WT, TC and ET."""
    network: NetworkConfig
    training: Mapping[str, Any]
    """How it was trained: data, steps, versions."""
    metrics: Mapping[str, Any]
    """The scores that it reached on its validation cases."""
    sha256: str = field(default="", compare=False)
    """Of the file; empty until it is opened through an index, which names it."""
    modalities: tuple[str, ...] = MODALITIES
    """The order of the channels; another than usual for imported networks only."""
    preprocessing: str = PREPROCESSING
    """One of PREPROCESSINGS."""
    fusion: str = FUSIONS[0]
    """One of FUSIONS."""

    @property
    def name(self) -> str:
        """The names of its regions: `wt`, or `wt tc et`."""
        return names_of(self.regions)


def header_of(file: WeightsFile) -> dict[str, str]:
    """The header of a file of weights, as it is stored."""
    network = {key: value for key, value in asdict(file.network).items() if value or key not in OF_PATCHES}
    return {
        **({FUSION: file.fusion} if patches_of(file.network) else {}),
        "format": FORMAT,
        "preprocessing": file.preprocessing,
        "modalities": " ".join(file.modalities),
        "region": file.name,
        "network": json.dumps(network),
        "training": json.dumps(dict(file.training)),
        "metrics": json.dumps(dict(file.metrics)),
    }


def read_header(path: Path) -> WeightsFile:
    """Read the header of a weights file. Raises WeightsError listing everything that this version cannot use."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(path, f"not a safetensors file ({error})", "sound weights", "Copy it again.") from error
    expected = {"format": FORMAT, "preprocessing": PREPROCESSING, "modalities": " ".join(MODALITIES)}
    if FUSION in header:  # of a network of patches, which may want the others otherwise
        expected = {"format": FORMAT}
    wrong = {key: (header.get(key), want) for key, want in expected.items() if header.get(key) != want}
    if wrong:
        found = ", ".join(f"{key} {found!r}" for key, (found, _) in wrong.items())
        wanted = ", ".join(f"{key} {want!r}" for key, (_, want) in wrong.items())
        raise WeightsError(path, found, wanted, "Use weights that were trained by this version.")
    try:
        network = _network(json.loads(header["network"]))
        if (patches_of(network) is not None) != (FUSION in header):  # which also shows that it can be built
            raise ValueError(f"{FUSION} {header.get(FUSION)!r} for {network.name}")
        training, metrics = json.loads(header["training"]), json.loads(header["metrics"])
        if not (isinstance(training, dict) and isinstance(metrics, dict)):
            raise TypeError("training and metrics are no tables")
        regions = regions_of(header["region"])
        if len(regions) != network.outputs or [regions] != groups_of(regions, network.outputs):
            raise ValueError(f"region {header['region']!r} for {network.outputs} outputs")
        file = WeightsFile(path, regions, network, training, metrics)
        return replace(file, **_ways_of_patches(header)) if FUSION in header else file
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError, InputError) as error:
        found = f"header not understood ({str(error)[:200]})"
        raise WeightsError(path, found, FORMAT, "Train or copy the file again.") from error


def _ways_of_patches(header: Mapping[str, str]) -> dict[str, Any]:
    """What only a network of patches may want otherwise. Raises ValueError for what this version does not know."""
    modalities = tuple(header["modalities"].split())
    known = {FUSION: FUSIONS, "preprocessing": PREPROCESSINGS}
    wrong = [f"{key} {header[key]!r}" for key, words in known.items() if header[key] not in words]
    if wrong or sorted(modalities) != sorted(MODALITIES):
        raise ValueError(", ".join([*wrong, f"modalities {header['modalities']!r}"]))
    return {"modalities": modalities, **{key: header[key] for key in known}}


def _network(stored: Any) -> NetworkConfig:
    """The settings of a header. Raises TypeError for a value of another kind than the setting has."""
    if not isinstance(stored, dict):
        raise TypeError("network is no table")
    settings = without_former(stored)
    for key, value in settings.items():
        if type(value) is not type(getattr(NetworkConfig, key, None)):
            raise TypeError(f"{key} {value!r}")
    return NetworkConfig(**settings)

"""Pages of small cases for tests, and what a page holds, read back from its HTML."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import Case, case_of
from lowmem_brats.data.labels import CONVENTIONS
from lowmem_brats.data.nifti import volume_of
from lowmem_brats.evaluate.pairs import LabelledVolume

SHAPE_XYZ = (24, 30, 20)
LPS = np.diag([-1.0, -1, 1, 1])


def small_case(
    shape: tuple[int, int, int] = SHAPE_XYZ, affine: np.ndarray = LPS, without: tuple[str, ...] = ()
) -> tuple[Case, LabelledVolume, LabelledVolume]:
    """A case of noise in a box, a label map of nested boxes, and a reference that lies one voxel further along X.

    `shape` and `affine` are those of the files.
    """
    rng = np.random.default_rng(0)
    brain = tuple(slice(n // 6, n - n // 6) for n in shape)
    images = {}
    for number, modality in enumerate(MODALITIES, 1):
        array = np.zeros(shape, np.float32)
        array[brain] = number * 1000 + rng.uniform(0, 500, array[brain].shape)
        images[modality] = nibabel.Nifti1Image(array, affine)
    case = case_of({m: image for m, image in images.items() if m not in without}, without, "small")
    label = np.zeros(shape, np.uint8)
    for share, value in ((0.3, 2), (0.36, 4), (0.42, 1)):
        label[tuple(slice(int(n * share), max(n - int(n * share), int(n * share) + 1)) for n in shape)] = value
    return case, labelled(label, affine), labelled(np.roll(label, 1, axis=0), affine, "ref.nii.gz")


def labelled(label: np.ndarray, affine: np.ndarray = LPS, name: str = "seg.nii.gz") -> LabelledVolume:
    """A label map of BraTS 2020, as read from a file."""
    return LabelledVolume(volume_of(nibabel.Nifti1Image(label, affine), name), CONVENTIONS["brats2020"], Path(name))


@dataclass
class Read(HTMLParser):
    """A page's elements as (tag, attributes), and its text by the element it stands in."""

    page: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def within(self, tag: str) -> list[str]:
        """The texts that follow a tag of this kind."""
        return [text for place, text in self.texts if place == tag and text.strip()]

    @property
    def scripts(self) -> dict[str, str]:
        """Id of each script element → its text; the viewer has none."""
        ids = [attrs.get("id") or "" for tag, attrs in self.tags if tag == "script"]
        return dict(zip(ids, self.within("script"), strict=True))

    @property
    def facts(self) -> Any:
        """What the viewer is told."""
        return json.loads(self.scripts["facts"])

    def volume(self, name: str) -> np.ndarray:
        """The bytes of a volume, [X, Y, Z] of the box that is shown."""
        packed = base64.b64decode(self.scripts[f"volume-{name}"], validate=True)
        return np.frombuffer(gzip.decompress(packed), np.uint8).reshape(self.facts["shape"], order="F")

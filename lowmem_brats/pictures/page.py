"""The page of a case: one HTML file to look through its images and label map, offline, and to read what was done.

`page.html` is its frame, `page.css` its look; `page_draw.js` and `page.js` are the viewer. All of them, and the
volumes, stand inside the page, which may not load anything. Array axes are LPS, as `X` `Y` `Z`; `C` modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import Case
from lowmem_brats.data.geometry import Volume, check_same_grid
from lowmem_brats.data.labels import Region, format_millilitres
from lowmem_brats.evaluate.metrics import HEADINGS
from lowmem_brats.evaluate.pairs import LabelledVolume, PatientScores, score_patient
from lowmem_brats.pictures import page_html as html
from lowmem_brats.pictures.curves import Bytes, Colour
from lowmem_brats.pictures.page_volumes import Scale, pack, scale_of, to_bytes
from lowmem_brats.pictures.preview import PLANES, TISSUE_COLOURS, brain_box, rank_tissues

Box = tuple[slice, slice, slice]
"""The part of the grid that a page shows."""
TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
REGIONS = {
    Region.WT: ("whole tumour", ("oedema", "enhancing tumour", "necrotic core")),
    Region.TC: ("tumour core", ("enhancing tumour", "necrotic core")),
    Region.ET: ("enhancing tumour", ("enhancing tumour",)),
}
"""Region → its name and its tissues."""
RANKS = {tissue: rank for rank, tissue in enumerate(TISSUE_COLOURS, start=1)}
DIFFERENCE: dict[str, Colour] = {
    "in both": (60, 200, 150),
    "label map only": (190, 130, 255),
    "reference only": (250, 160, 30),
}
"""What a map of differences shows, in colours that colour-blind readers tell apart."""


def draw_page(
    case: Case,
    found: LabelledVolume,
    subtitle: str,
    tables: Sequence[html.Table] = (),
    warnings: Sequence[str] = (),
    reference: LabelledVolume | None = None,
) -> str:
    """Draw a case with a label map as an HTML page that needs nothing else.

    `subtitle`: where the label map comes from. `tables`: any further facts. `reference`: a label map to compare it
    with; the page then shows both, where they differ, and the scores. Texts may hold any characters. Raises InputError
    for label maps of another grid than the images, or with labels that their convention does not know.
    """
    label_maps = {"found": found} | ({"reference": reference} if reference else {})
    for each in label_maps.values():
        check_same_grid(each.volume, each.path, case.reference, Path(case.case_id))
    scores = score_patient(case.case_id, found, reference) if reference else None
    box = _box(case, [each.volume for each in label_maps.values()])
    ranks = {name: rank_tissues(each.volume.data[box], each.convention, each.path) for name, each in label_maps.items()}
    scales, packed = _packed(case.images_CXYZ[(slice(None), *box)], ranks)
    parts = {
        "kind": "compared" if reference else "alone",
        "case_id": html.text(case.case_id),
        "subtitle": html.text(subtitle),
        "warnings": html.warnings_box(warnings),
        "modalities": html.choice("modality", ((m, title, m in scales) for m, title in TITLES.items())),
        "planes": "".join(html.plane_figure(plane.name) for plane in PLANES),
        "values": "".join(html.reading(title, f"value-{m}") for m, title in TITLES.items() if m in scales),
        **_volumes(ranks, float(np.prod(case.spacing_mm)) / 1000),
        "difference": "".join(f"<li>{html.swatch(colour)}{what}</li>" for what, colour in DIFFERENCE.items()),
        "scores": _scores(scores) if scores else "",
        "tables": "".join(map(html.facts_table, tables)),
        "facts": html.data(_facts(case, box, scales, reference is not None)),
        "volumes": "".join(html.volume(name, text) for name, text in packed.items()),
    }
    return html.fill_frame(parts)


def _box(case: Case, label_maps: Sequence[Volume]) -> Box:
    """The part of the grid that holds brain or labels, and a margin."""
    filled_XYZ = case.brain_XYZ
    for each in label_maps:
        filled_XYZ |= each.data != 0
    return brain_box(filled_XYZ, case.spacing_mm)


def _packed(
    images_CXYZ: npt.NDArray[np.float32], ranks: Mapping[str, Bytes]
) -> tuple[dict[str, Scale], dict[str, str]]:
    """Modality → scale, for those that were given; name of each volume → its packed bytes."""
    with ThreadPoolExecutor() as workers:  # numpy and zlib let go of Python's lock
        found = zip(MODALITIES, workers.map(scale_of, images_CXYZ), images_CXYZ, strict=True)
        given = {modality: (scale, image_XYZ) for modality, scale, image_XYZ in found if scale}
        packing = {name: workers.submit(pack, rank_XYZ) for name, rank_XYZ in ranks.items()}
        for modality, (scale, image_XYZ) in given.items():
            packing[modality] = workers.submit(lambda image, scale: pack(to_bytes(image, scale)), image_XYZ, scale)
        return {m: scale for m, (scale, _) in given.items()}, {name: each.result() for name, each in packing.items()}


def _facts(case: Case, box: Box, scales: Mapping[str, Scale], compared: bool) -> dict[str, object]:
    """What the viewer needs to know."""
    first_XYZ = [part.start for part in box]
    affine = case.reference.affine.copy()
    affine[:3, 3] = (affine @ [*first_XYZ, 1])[:3]
    return {
        "shape": [part.stop - part.start for part in box],
        "spacing_mm": case.spacing_mm,
        "affine": affine[:3].tolist(),
        "file_axes": _file_axes(case.reference, first_XYZ),
        "planes": [asdict(plane) for plane in PLANES],
        "images": {modality: asdict(scale) for modality, scale in scales.items()},
        "tissues": [{"name": tissue, "colour": html.css(colour)} for tissue, colour in TISSUE_COLOURS.items()],
        "regions": {region.name: [RANKS[tissue] for tissue in tissues] for region, (_, tissues) in REGIONS.items()},
        "difference": [{"name": what, "colour": html.css(colour)} for what, colour in DIFFERENCE.items()],
        "reference": compared,
    }


def _file_axes(reference: Volume, first_XYZ: Sequence[int]) -> list[dict[str, int]]:
    """For X, Y, Z: the axis of the file on disk that runs along it, the index there of the box's edge, and the step."""
    axes = []
    for (axis, step), first, count in zip(reference.to_disk.astype(int), first_XYZ, reference.data.shape, strict=True):
        axes.append({"axis": int(axis), "first": first if step > 0 else count - 1 - first, "step": int(step)})
    return axes


def _volumes(ranks: Mapping[str, Bytes], voxel_ml: float) -> dict[str, str]:
    """The tables of volumes: of each tissue, with the box that shows or hides it, and of each region."""
    counts = [
        {tissue: np.count_nonzero(rank_XYZ == rank) for tissue, rank in RANKS.items()} for rank_XYZ in ranks.values()
    ]
    columns = ["mL", "reference, mL"][: len(counts)]

    def millilitres(tissues: Sequence[str]) -> list[str]:
        return [format_millilitres(sum(count[tissue] for tissue in tissues) * voxel_ml) for count in counts]

    def box_of(tissue: str) -> str:
        box = f'<input type="checkbox" data-rank="{RANKS[tissue]}" checked>'
        return f"<label>{box}{html.swatch(TISSUE_COLOURS[tissue])}{tissue}</label>"

    tissues = [(box_of(tissue), *millilitres([tissue])) for tissue in TISSUE_COLOURS]
    regions = [(f"{region.name}, {name}", *millilitres(tissues)) for region, (name, tissues) in REGIONS.items()]
    return {
        "tissues": html.numbers("Tissues", ["shown", *columns], tissues),
        "regions": html.numbers("Regions", ["", *columns], regions),
    }


def _scores(scores: PatientScores) -> str:
    rows = [(region.name, *score.shown()) for region, score in scores.regions.items()]
    return html.numbers("Scores", ("", *HEADINGS), rows)

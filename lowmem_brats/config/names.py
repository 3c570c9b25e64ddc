"""Names and numbers that the whole program shares."""

from __future__ import annotations

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The channels C of every array and network, in this order."""

PREPROCESSING = "zscore-brain"
"""Name of the intensity scheme: z-score per modality over its non-zero voxels, background 0 (stored with weights)."""

PREPROCESSINGS = (PREPROCESSING, "zscore-mask", "zscore-all")
"""The schemes that imported networks may need: over the voxels where any modality is not 0, with holes filled, and over
all voxels of the brain's bounding box."""

FUSIONS = ("nested", "painted")
"""How regions become labels: TC counts inside WT only and ET inside TC only; or WT, TC and ET are painted in turn."""

BRATS_SHAPE = (240, 240, 155)
"""Voxels X, Y, Z of a BraTS volume, 1 mm each."""

BRAIN_SHAPE = (138, 170, 138)
"""Voxels X, Y, Z of a brain's bounding box in BraTS: the median that nnU-Net's paper gives."""

NETWORKS = {
    "unet2d": "U-Net, Ronneberger 2015",
    "emcad-b0": "EMCAD decoder, Rahman 2024, over a PVT v2 encoder, Wang 2022",
    "emcad-b2": "the same with a larger encoder",
    "resunet2d": "residual U-Net of Med-DANet, Wang 2022",
    "transbts2d-light": "the same with a transformer layer, as TransBTS, Wang 2021",
    "transbts2d": "with four",
    "transunet": "TransUNet, Chen 2021, with R50-ViT-B/16",
    "segresnet2d": "SegResNet, Myronenko 2018, in two dimensions",
    "segresnet": "the same in three, which sees patches of a volume",
    "nnunet": "a network of nnU-Net, Isensee 2021, imported",
}
"""Name → what it is and whose; README and NOTICE name the same papers, and `networks.NETWORKS` builds them."""

PRECISIONS = ("auto", "fp32", "fp16", "bf16")

LABELS = ("brats2020", "brats2023", "msd")
"""The names of `labels.CONVENTIONS`."""

REGIONS = ("wt", "tc", "et")
"""The values of `labels.Region`."""

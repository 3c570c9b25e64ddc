"""What tests of files share: volumes stored in any axis order, and checks that a file's voxels lie where they did."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
SPACED_AFFINE = np.array([[-0.8, 0, 0, 31.5], [0, -1.1, 0, -7.25], [0, 0, 2.5, 12.0], [0, 0, 0, 1]])
"""LPS with three different spacings and a translation."""


def numbered(*shape: int) -> npt.NDArray[np.uint8]:
    """An array in which every voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def store_as(
    data_XYZ: npt.NDArray[np.generic], lps_affine: Affine, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[npt.NDArray[np.generic], Affine]:
    """An LPS volume in another axis order: axis k on disk is axis `axes[k]`, backwards if `flips[k]`."""
    lps_from_disk = np.zeros((4, 4))
    lps_from_disk[3, 3] = 1
    for k, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        lps_from_disk[axis, k] = -1 if flip else 1
        lps_from_disk[axis, 3] = data_XYZ.shape[axis] - 1 if flip else 0
    stored = np.flip(data_XYZ.transpose(axes), [k for k in range(3) if flips[k]])
    return stored, lps_affine @ lps_from_disk


def assert_same_grid(path: Path, original: Path) -> None:
    """Everything that places a 3-D file's voxels is the same, for readers that prefer sform and for those of qform."""
    ours, theirs = nibabel.load(path), nibabel.load(original)
    assert ours.shape == theirs.shape[:3]
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.get_qform(), theirs.get_qform(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.get_sform(), theirs.get_sform(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.header.get_zooms(), theirs.header.get_zooms()[:3], rtol=1e-6)
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert ours.header[name] == theirs.header[name], name


def assert_same_places(path: Path, label_XYZ: npt.NDArray[np.uint8], lps_affine: Affine) -> None:
    """Each voxel of the file holds the label that lies at its world coordinates."""
    image = nibabel.load(path)
    indices_LPS = np.indices(label_XYZ.shape).reshape(3, -1)
    worlds = lps_affine[:3, :3] @ indices_LPS + lps_affine[:3, 3:]
    voxels = np.linalg.solve(image.affine[:3, :3], worlds - image.affine[:3, 3:])
    i, j, k = np.rint(voxels).astype(int)
    np.testing.assert_allclose(voxels, [i, j, k], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[i, j, k], label_XYZ[tuple(indices_LPS)])

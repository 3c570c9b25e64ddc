"""The networks of slices, for tests that take seconds each; those with tens of millions of parameters are slow ones."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from lowmem_brats.networks import NETWORKS

LARGE = ("emcad-b2", "transbts2d", "transunet")
OF_PATCHES = ("segresnet", "nnunet")
WITHOUT_MONAI = pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed")
MARKS = dict.fromkeys(LARGE, pytest.mark.slow) | {"segresnet2d": WITHOUT_MONAI}
EACH_NETWORK = [
    pytest.param(name, marks=MARKS[name]) if name in MARKS else name for name in NETWORKS if name not in OF_PATCHES
]

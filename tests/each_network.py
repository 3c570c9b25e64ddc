"""The rows of NETWORKS for tests that take seconds each; those with tens of millions of parameters are slow ones."""

from __future__ import annotations

import pytest

from lowmem_brats.networks import NETWORKS

LARGE = ("emcad-b2", "transbts2d", "transunet")
EACH_NETWORK = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NETWORKS]

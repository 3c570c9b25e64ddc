"""The rows of NETWORKS for tests that take seconds each; EMCAD-B2, B0 with more and wider blocks, is a slow one."""

from __future__ import annotations

import pytest

from lowmem_brats.networks import NETWORKS

EACH_NETWORK = [pytest.param(name, marks=pytest.mark.slow) if name == "emcad-b2" else name for name in NETWORKS]

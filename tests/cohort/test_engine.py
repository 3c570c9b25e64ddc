"""Work handed to Dask's workers; `tests/cli/test_many_cases.py` runs real commands with them."""

from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from lowmem_brats.cohort.engine import results
from lowmem_brats.errors import InputError

distributed = pytest.importorskip("distributed")


def test_a_lost_scheduler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise CancelledError("scheduler-connection-lost")

    monkeypatch.setattr(distributed.Future, "exception", lost)
    with (
        distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client,
        pytest.raises(InputError, match=r"the scheduler was lost.*the same command goes on with the rest"),
    ):
        list(results(client, abs, [-1]))

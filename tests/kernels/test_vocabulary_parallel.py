"""A head that is split over the vocabulary among processes: the checks of shard_checks.py, each with 2 and 3 of them."""

from __future__ import annotations

import pytest
from cases import usable
from shard_checks import CHECKS
from shard_processes import results

BACKENDS = ("reference", *usable("linear_cross_entropy, shards"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards(backend, processes, name):
    found = results(processes, backend)
    assert name in found, "the processes ended before it"
    assert not found[name], found[name]

"""A head that is split over the vocabulary among 2 and 3 processes: the checks of shard_checks.py and of
shard_argument_checks.py."""

from __future__ import annotations

import pytest
from cases import usable
from shard_argument_checks import CHECKS
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

"""A head that is split over the vocabulary among 2 and 3 processes: the checks of shard_checks.py and of
shard_argument_checks.py."""

from __future__ import annotations

import itertools

import pytest
from cases import device_of, interpreted, usable
from kernel_processes import results
from shard_argument_checks import CHECKS

BACKENDS = ("reference", *(name for name in usable("linear_cross_entropy, shards") if device_of(name) == "cpu"))
QUICK = ("entries_that_are_ruled_out", "all_processes_have_the_same_bits", "one_collective_per_chunk")
"""Of Triton's interpreter, which takes minutes for all; test_shard_kernels.py has its kernels without processes."""


def cases():
    for backend in BACKENDS:
        quick = backend != "reference" and interpreted(backend)
        names = QUICK if quick else tuple(CHECKS)
        for processes, name in itertools.product([2] if quick else [2, 3], names):
            often = processes == 2 and backend == ("cpp" if "cpp" in BACKENDS else "torch")
            marks = pytest.mark.slow if often else pytest.mark.nightly
            yield pytest.param(backend, processes, names, name, id=f"{backend}-{processes}-{name}", marks=marks)


@pytest.mark.parametrize("backend, processes, names, name", list(cases()))
def test_shards(backend, processes, names, name):
    found = results(processes, backend, names)
    assert name in found, "the processes ended before it"
    assert not found[name], found[name]

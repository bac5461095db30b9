"""Divergences of heads that are split over the vocabulary by Triton's kernels, in processes of gloo: each gives what
one process gives. Cross-entropy and log-probabilities are with those of all backends in test_vocabulary_parallel.py.
"""

from __future__ import annotations

import pytest
import test_vocabulary_parallel_divergence as divergences
import test_vocabulary_parallel_groups as groups
import torch
from cases import interpreted, usable
from divergence_cases import KINDS, NEARLY_THE_TEACHER, make
from processes import run_in_processes

pytestmark = pytest.mark.skipif(
    "triton" not in usable("linear_divergence, shards") or not interpreted("triton"),
    reason="needs Triton's interpreter: these processes have no GPU each",
)
SPLITS = [(70, 61), (7, 0)]
CONDITIONS = [{}, divergences.OPTIONS]


def of_rows(form: str, kinds: list[dict]) -> None:
    for sizes in SPLITS:
        inputs = make(5, 16, sum(sizes), form=form)
        for turn, kind in enumerate(kinds):
            options = CONDITIONS[turn % 2]
            divergences.check(
                divergences.biased(inputs) if options else inputs,
                torch.float32,
                sizes,
                backend="triton",
                **kind,
                **options,
            )


def of_groups() -> None:
    for sizes in SPLITS:
        inputs = groups.make(2, 3, vocabulary=sum(sizes))
        equal = groups.make(2, 3, vocabulary=sum(sizes), spread=0.0)
        many = groups.make(1, 10, vocabulary=sum(sizes))
        for case, options in (
            (groups.biased(inputs), groups.CONDITIONED),
            (equal, {}),
            (groups.biased(groups.as_mixture(inputs)), {}),
            (groups.biased(inputs), {"kind": "jeffreys"}),
            (many, {}),
        ):
            groups.check(groups.groups, case, torch.float32, sizes, backend="triton", **options)
    joint = groups.biased(groups.make_joint(sum(SPLITS[0])))
    for backend in ("triton", "triton_streaming"):
        groups.check(groups.joint, joint, torch.float32, SPLITS[0], backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        pytest.param(of_rows, ("head", [*KINDS, *KINDS[-1:], *NEARLY_THE_TEACHER[:2]]), id="head"),
        pytest.param(of_rows, ("list", KINDS[:4]), id="list"),
        pytest.param(of_groups, (), id="groups"),
    ],
)
def test_it_is_that_of_one_process(function, arguments):
    run_in_processes(2, function, *arguments)

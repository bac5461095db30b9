"""Cases of `make chaos` with fixed seeds, and faults that were planted for it to find."""

from __future__ import annotations

import dataclasses

import pytest

from tests.chaos import planted
from tests.chaos.__main__ import row_of
from tests.chaos.cases import Outcome, benches
from tests.chaos.disturbances import Disturbance

pytestmark = pytest.mark.nightly
SEEDS = {"generate": (1, 2), "generate, vLLM": (1, 2), "judge": (1, 2), "filter": (1, 2), "train": (1, 2)}
"""Those whose starts take a second or three; the others are left to `make chaos`."""


def test_nothing_is_lost_bought_twice_or_broken():
    with benches(list(SEEDS)) as each:
        for bench in each:
            for seed in SEEDS[bench.name]:
                outcome = bench.case(seed)
                assert not outcome.violations, (bench.name, seed, outcome.violations, outcome.said)
                assert outcome.ended.total() == len(outcome.disturbances)


def test_planted_faults_are_found():
    with benches(["filter", "generate, vLLM"]) as each:
        for bench in each:
            if bench.name == "filter":
                bench.command = dataclasses.replace(bench.command, prefix=planted.written_in_place)
                found = []
                for operation in range(bench.reference.operations[0], 0, -1):
                    outcome = Outcome("filter", 0)
                    with bench.disk() as disk:
                        bench.disturb(disk, Disturbance("kill at an operation", 0, "SIGKILL", operation), outcome)
                    found += outcome.violations
                    if found:
                        break
                assert any("is there and not whole" in text for text in found)
            else:
                bench.command = dataclasses.replace(bench.command, prefix=planted.forgets)
                assert any("another result: answers" in text for text in bench.case(1).violations)


def test_a_row_tells_how_to_repeat_the_first_case():
    bad = Outcome("grade", 7, violations=["the key is printed"])
    row = row_of("grade", [Outcome("grade", 6), bad])
    assert row["seed"] == 7 and row["violations"] == 1 and row["cases"] == 2
    assert row["again"] == "make chaos ARGS=\"--commands 'grade' --runs 1 --seed 7 --say\""

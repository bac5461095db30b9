"""What the tokens of a run cost. That they are counted: test_every_method.py."""

from __future__ import annotations

from mind.run.work import flops


def test_what_tokens_cost():
    work = {"padded": 99, "packed": 9, "shared": 9, "trained": 10, "observed": 5, "generated": 3, "encoded": 2}
    assert flops(work, 100, 100, {}) == 6 * 100 * 10 + 2 * 100 * (5 + 3 + 2)
    # 96 that are frozen and 4 of adapters: forward and backward through all, and the gradient of the latter.
    assert flops({"trained": 10, "observed": 5}, 100, 4, {}) == 10 * (4 * 96 + 6 * 4) + 5 * 2 * 100
    scored = work | {"teacher_scored": 7}
    others = {"teacher_scored": 1000, "encoded": 50}
    assert flops(scored, 100, 100, others) == 6 * 100 * 10 + 2 * 100 * (5 + 3) + 2 * 50 * 2 + 2 * 1000 * 7

"""Every argument of every operator of the CPU library, wrong in every way: an error names it, and nothing is written.

Operators and arguments come from the dispatcher, valid calls from public functions: a new one needs no line here.
"""

from __future__ import annotations

import functools
import random

import pytest

from mind_kernels import extension
from tests.fuzz import calls
from tests.fuzz.calls import Call, public_call, watched
from tests.fuzz.spoilt import check, spoilt

MOST_CALLS = 400  # of public functions, until each operator has been called with each of its tensors
OPERATORS = {} if extension.unavailable("cpp") else calls.operators()
ARGUMENTS = [(name, argument.name) for name, operator in OPERATORS.items() for argument in operator._schema.arguments]


@functools.cache
def recorded() -> dict[tuple[str, str], Call]:
    """For each argument of each operator a call that has it, of those with the smallest tensors."""
    found: dict[tuple[str, str], Call] = {}
    choose = random.Random(0).choice

    def record(call: Call) -> object:
        if all(tensor.numel() for tensor in call.tensors.values()):
            kept = call.copied()  # before it has written
            for argument, value in call.arguments.items():
                if value is not None:
                    found.setdefault((call.name, argument), kept)
        return call()

    with watched(record):
        for seed in range(MOST_CALLS):
            if len(found) == len(ARGUMENTS):
                break
            public_call(choose, seed)()
    return found


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
def test_a_wrong_argument_is_named(operator, argument):
    call = recorded().get((operator, argument))
    assert call is not None, f"no public call in tests/fuzz/calls.py reaches {operator} with {argument}"
    call.copied()()
    for fault in spoilt(call, argument):
        check(call, fault, argument)


def test_a_check_that_is_missing_is_seen():
    (_, call), *_ = recorded().items()
    taken = next(spoilt(call, next(iter(call.tensors))))._replace(call=call.copied())
    with pytest.raises(AssertionError, match="taken"):
        check(call, taken, "target")

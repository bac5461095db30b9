"""Which cases of a parametrized test `make test` runs: as few as hold every value of every parameter."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

Case = Mapping[str, Any]
"""The value of each parameter, by its name."""


def chosen(name: str, cases: Sequence[Case]) -> list[int]:
    """The places of the cases that stay, in order; `name` of the test decides between equals, the same each time.

    Each one adds the most values that no case before it has. All values of a single parameter stay (questions and their
    answers, say); what goes are products, of backends, dtypes and options. `make nightly` runs all of them.
    """
    values = [{(parameter, _key(value)) for parameter, value in case.items()} for case in cases]
    order = list(range(len(cases)))
    random.Random(name).shuffle(order)  # else every choice would prefer the first values of the other parameters
    missing = set().union(*values)
    found = order[:1] if not missing else []
    while missing:
        best = max(order, key=lambda place: len(values[place] & missing))
        found.append(best)
        missing -= values[best]
    return sorted(found)


def _key(value: object) -> Hashable:
    """The value, or which object it is if it is of no built-in type."""
    if isinstance(value, str | int | float | None):
        return type(value), value
    return repr(value) if isinstance(value, dict | list | tuple) else id(value)

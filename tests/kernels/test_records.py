"""Records as the flat arguments of an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mind_kernels.records import Layout

A, B, C = (torch.full((1,), float(value)) for value in range(3))


@dataclass(frozen=True)
class Inner:
    tensor: Tensor
    number: float | None = None


@dataclass(frozen=True)
class Other:
    ids: Tensor
    count: int


class Outer(NamedTuple):
    first: Tensor
    inner: Inner
    either: Inner | Other
    maybe: Other | None
    name: str
    flag: bool
    last: Tensor | None


def test_leaves_are_the_schema():
    assert Layout(Outer).leaves == {
        "first": "Tensor",
        "inner.tensor": "Tensor",
        "inner.number": "float?",
        "either.tensor": "Tensor?",
        "either.number": "float?",
        "either.ids": "Tensor?",
        "either.count": "SymInt?",
        "maybe.ids": "Tensor?",
        "maybe.count": "SymInt?",
        "name": "str",
        "flag": "bool",
        "last": "Tensor?",
    }


@pytest.mark.parametrize(
    ("record", "flat"),
    [
        (
            Outer(A, Inner(B, 2.0), Inner(C), None, "x", True, None),
            [A, B, 2.0, C, None, None, None, None, None, "x", True, None],
        ),
        (
            Outer(A, Inner(B), Other(C, 0), Other(A, 4), "", False, B),
            [A, B, None, None, None, C, 0, A, 4, "", False, B],
        ),
    ],
)
def test_what_is_flattened_is_restored(record, flat):
    layout = Layout(Outer)
    assert all(found is expected for found, expected in zip(layout.flatten(record), flat, strict=True))
    assert layout.restore(flat) == record

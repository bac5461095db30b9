"""The implementations of a kernel protocol on this machine, for the suites that test them all alike.

Beside the backends there are the instruction sets of the CPU that this process would not choose by itself, each in a
process of its own, and the CUDA kernels in an emulator if there is no GPU for them. The fixture `implementation` of
conftest.py makes one ready.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cpu_capability
import pytest
import torch
from cases import device_of, interpreted, usable

from mind_kernels import backend
from tests import cuda_emulator


@dataclass(frozen=True)
class Implementation:
    """A backend, and what stands for the operators of its library."""

    name: str
    backend: str
    operators: Callable[[], Any] | None = None  # None: the library's own
    unavailable: str = ""  # why it cannot be tested here; empty if it can

    @property
    def interpreted(self) -> bool:
        return interpreted(self.backend)

    @property
    def slow(self) -> bool:
        """Whether a program takes milliseconds: in Triton's interpreter, and in the emulator of CUDA."""
        return self.interpreted or self.operators is cuda_emulator.operators

    @property
    def device(self) -> str:
        return "cpu" if self.operators else device_of(self.backend)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of hidden states, heads and logits. Triton's interpreter multiplies no bfloat16 matrices."""
        if self.interpreted:
            return torch.float32, torch.float16
        wide = (torch.float64,) if self.backend == "torch" else ()
        return (*wide, torch.float32, torch.bfloat16, torch.float16)

    def kernels(self, operation: str) -> Any:
        """The kernels of an operation, as its loop gets them."""
        return backend.kernels(operation, self.backend)


def of(operation: str) -> list[Implementation]:
    """Those of every backend that the operation has; test_backend.py fails if one is missing that should not be."""
    out = []
    for name in importlib.import_module(f"mind_kernels.{operation}.op").BACKENDS:
        if name == "cuda" and not usable([name]):
            out.append(Implementation("cuda-emulated", name, cuda_emulator.operators, cuda_emulator.UNAVAILABLE))
        elif usable([name]):
            out.append(Implementation(name, name))
            for capability in cpu_capability.others() if name == "cpp" else ():
                operators = functools.partial(cpu_capability.operators, capability)
                out.append(Implementation(f"cpp-{capability}", name, operators))
    return out


def each(
    *axes: Sequence[Any], of: Iterable[Implementation], names: str = "", dtypes: Collection[torch.dtype] = ()
) -> pytest.MarkDecorator:
    """A test's cases: each implementation of `of` with every combination of values of the axes, which have these names.

    If `dtypes` are given, those of the implementation among them are the first axis. Slow implementations get every
    combination of the first two axes, and of the other axes the values in turn.
    """
    cases = []
    for implementation in of:
        of_each = ([dtype for dtype in implementation.dtypes if dtype in dtypes], *axes) if dtypes else axes
        combine = in_turn if implementation.slow else itertools.product
        for values in combine(*of_each):
            words = [str(value).removeprefix("torch.").replace(" ", "") for value in values]
            cases.append(pytest.param(implementation, *values, id="-".join([implementation.name, *words])))
    arguments = ["implementation", *["dtype"] * bool(dtypes), *names.split()]
    return pytest.mark.parametrize(arguments, cases, indirect=["implementation"])


def in_turn(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every pair of values of the first two axes, each with the next value of the others; no value is left out."""
    pairs = list(itertools.product(*axes[:2]))
    count = max([len(pairs), *map(len, axes)])
    return [
        (*pairs[k % len(pairs)], *(axis[(k + k // len(axis)) % len(axis)] for axis in axes[2:])) for k in range(count)
    ]

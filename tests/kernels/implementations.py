"""The implementations of a kernel protocol on this machine, for the suites that test them all alike.

Beside the backends there are the instruction sets of the CPU that this process would not choose by itself, and the CUDA
kernels in an emulator if there is no GPU for them. The fixture `implementation` of
conftest.py makes one ready.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import device_of, interpreted

from mind_kernels import backend, extension
from tests import cuda_emulator

_CAPABILITIES = ("baseline", "avx2", "avx512")  # each needs a processor that has the ones before it


@dataclass(frozen=True)
class Implementation:
    """A backend, with an instruction set of the CPU or in the emulator."""

    name: str
    backend: str
    capability: str = ""  # the instruction set; empty: the one that the library chose
    emulated: bool = False
    unavailable: str = ""  # why it cannot be tested here; empty if it can

    @property
    def interpreted(self) -> bool:
        return interpreted(self.backend)

    @property
    def slow(self) -> bool:
        """Whether a program takes milliseconds: in Triton's interpreter, and in the emulator of CUDA."""
        return self.interpreted or self.emulated

    @property
    def device(self) -> str:
        return "cpu" if self.emulated else device_of(self.backend)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of hidden states, heads and logits. Triton's interpreter multiplies no bfloat16 matrices."""
        if self.interpreted:
            return torch.float32, torch.float16
        wide = (torch.float64,) if backend.BACKENDS[self.backend].float64 else ()
        return (*wide, torch.float32, torch.bfloat16, torch.float16)

    def kernels(self, operation: str) -> Any:
        """The kernels of an operation, as its loop gets them."""
        return backend.kernels(operation, self.backend)


def of(operation: str) -> list[Implementation]:
    """Those of every backend that the operation has; test_backend.py fails if one is missing that should not be."""
    out = []
    for name in backend.backends_of(operation):
        here = backend.BACKENDS[name].availability().available
        if name == "cuda" and not here:
            out.append(Implementation("cuda-emulated", name, emulated=True, unavailable=cuda_emulator.UNAVAILABLE))
        elif here:
            out.append(Implementation(name, name))
            if name == "cpp":
                out += [Implementation(f"cpp-{other}", name, other) for other in _other_capabilities()]
    return out


def _other_capabilities() -> tuple[str, ...]:
    """The instruction sets below the one that this process has chosen; none if the variable made the choice."""
    if "MIND_KERNELS_CPU_CAPABILITY" in os.environ:
        return ()
    return _CAPABILITIES[: _CAPABILITIES.index(extension.capability())]


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

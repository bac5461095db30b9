"""Which backend is tested in which dtype, and where: Triton on the GPU if there is one, else in its interpreter.

All of it is read from `mind_kernels.backend.BACKENDS`: a new backend is tested because it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mind_kernels import RowStats
from mind_kernels.autograd import Operator
from mind_kernels.backend import BACKENDS as TABLE
from mind_kernels.backend import backends_of
from mind_kernels.linear_cross_entropy.contract import RowValues

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def usable(operation: str) -> tuple[str, ...]:
    """Backends of an operation that can run on this machine; test_backend.py fails where one is not there that should
    be."""
    return tuple(name for name in backends_of(operation) if TABLE[name].availability().available)


def device_of(backend: str) -> str:
    return "cuda" if TABLE[backend].tensors == "cuda" and torch.cuda.is_available() else "cpu"


def runs(backend: str, dtype: torch.dtype) -> bool:
    """Triton's interpreter multiplies no bfloat16 matrices."""
    if dtype == torch.float64:
        return TABLE[backend].float64
    return not (backend == "triton_streaming" and dtype == torch.bfloat16 and interpreted(backend))


def interpreted(backend: str) -> bool:
    return TABLE[backend].interpreter and not torch.cuda.is_available()


BACKENDS = usable("linear_cross_entropy")
# For cases that are too large for the interpreter.
COMPILED_BACKENDS = tuple(name for name in BACKENDS if not interpreted(name))
# For tests that take seconds in the interpreter: one of its backends, the other at night.
QUICKER_BACKENDS = [
    pytest.param(name, marks=[pytest.mark.nightly] * (interpreted(name) and name == "triton")) for name in BACKENDS
]


def fit(backend: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(rows, size, vocabulary) for a backend: the interpreter takes milliseconds for what a GPU does in nanoseconds."""
    if not interpreted(backend):
        return shape
    rows, size, vocabulary = shape
    return min(rows, 13), min(size, 24), min(vocabulary, 101)


def cases(*shapes: tuple[int, int, int]) -> list:
    """Every backend in every dtype that it has, at every shape, of which the interpreter sees few."""
    fitted = {backend: dict.fromkeys(fit(backend, shape) for shape in shapes) for backend in BACKENDS}
    return [
        pytest.param(*values.values, shape, id=f"{values.id}-{'x'.join(map(str, shape))}")
        for values in BACKENDS_AND_DTYPES
        for shape in fitted[values.values[0]]
    ]


def with_dtypes(backends: Sequence[str]) -> list:
    """Each backend in every dtype that it has."""
    return [
        pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
        for backend in backends
        for dtype in DTYPES
        if runs(backend, dtype)
    ]


BACKENDS_AND_DTYPES = with_dtypes(BACKENDS)


def on(device: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def row_statistics(stats: RowStats) -> dict[str, torch.Tensor]:
    """The statistics (N,) of rows that are numbers in the accumulation dtype, by name."""
    statistics = {name: getattr(stats, name) for name in RowValues._fields if name != "loss"}
    return {name: value for name, value in statistics.items() if value.is_floating_point()}


def opcheck(operator: Operator, arguments: Any) -> None:
    """torch.library's checks of an operator, called with a record of its arguments."""
    torch.library.opcheck(operator.overload, tuple(operator.flat(arguments)))


def assert_compiles_whole(step: Callable[..., torch.Tensor], *tensors: torch.Tensor, dynamic: bool = False) -> None:
    """Loss and gradients of step(*tensors) under torch.compile(fullgraph=True), bit by bit those of eager mode."""
    torch.compiler.reset()  # a test compiles few forms: those of others do not count towards its limit of them
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic or None)):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        loss = function(*leaves)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=0)

"""Random tensors for the operators of mind_kernels._cpp, in every layout that they take.

A tensor lies in a buffer of its own with a margin on both sides, whose bytes must be the same after the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MARGIN = 64  # elements
GUARD = 0x5A


@dataclass
class Arena:
    """Where the tensors of one call lie."""

    generator: torch.Generator
    _buffers: list[tuple[Tensor, int, int]] = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, gap: int = 0) -> Tensor:
        """Contiguous, or a matrix whose rows are `gap` elements apart; its contents are the guard's bytes."""
        row = shape[-1] + gap if len(shape) == 2 else 0
        count = shape[0] * row if row else torch.Size(shape).numel()
        buffer = torch.full(((count + 2 * MARGIN) * dtype.itemsize,), GUARD, dtype=torch.uint8)
        first, last = MARGIN * dtype.itemsize, (MARGIN + count) * dtype.itemsize
        inside = buffer[first:last].view(dtype)
        self._buffers.append((buffer, first, last))
        return inside.view(shape[0], row)[:, : shape[1]] if row else inside.view(shape)

    def put(self, values: Tensor, *, gap: int = 0) -> Tensor:
        """The values, in such a place."""
        return self.empty(tuple(values.shape), values.dtype, gap=gap).copy_(values)

    def like(self, tensor: Tensor) -> Tensor:
        """A copy in such a place, its elements as far apart."""
        tensor = tensor.detach()
        reach = 1 + sum((n - 1) * k for n, k in zip(tensor.shape, tensor.stride(), strict=True))
        memory = self.put(tensor.as_strided((reach if tensor.numel() else 0,), (1,)))
        return memory.as_strided(tensor.shape, tensor.stride())

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, max(1, high), shape, generator=self.generator).to(dtype)

    def check_margins(self) -> None:
        """Raises AssertionError where a byte outside a tensor has changed."""
        for buffer, first, last in self._buffers:
            assert bool((buffer[:first] == GUARD).all() and (buffer[last:] == GUARD).all()), "written out of bounds"


@st.composite
def arenas(draw: Callable) -> Arena:
    return Arena(torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))


def logits(draw: Callable, arena: Arena, rows: int, columns: int) -> Tensor:
    """(rows, columns) of any dtype, scale and row stride; here and there a number that is none."""
    dtype, scale = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((0.0, 1.0, 8.0, 1e4)))
    values = arena.normal(rows, columns, scale=scale, dtype=dtype)
    if draw(st.integers(0, 9)) == 0 and values.numel():
        place = int(arena.integers(values.numel(), 1))
        values.view(-1)[place] = draw(st.sampled_from((float("nan"), float("inf"), -float("inf"))))
    return arena.put(values, gap=draw(st.sampled_from((0, 0, 1, 5, 16))))

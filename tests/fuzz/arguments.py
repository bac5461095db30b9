"""Random tensors for the operators of mind_kernels._cpp, well-formed in every layout that they take, or spoilt.

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


def _other_dtype(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int16)


def _longer(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1] if len(tensor) else tensor.new_zeros(1, *tensor.shape[1:])])


def _one_dimension_more(tensor: Tensor) -> Tensor:
    return tensor[None]


def _elements_apart(tensor: Tensor) -> Tensor:
    """The same values, the elements of a row not next to one another."""
    return torch.stack([tensor, tensor], -1)[..., 0]


SPOILERS = {"dtype": _other_dtype, "longer": _longer, "dimension": _one_dimension_more, "apart": _elements_apart}


# What one operator takes all the same: a matrix with more rows, a factor with any strides.
_HARMLESS = {("matrix", "longer"), ("left", "apart")}


def spoil(draw: Callable, arguments: dict[str, object]) -> str | None:
    """Makes one tensor unacceptable, most times none; says which and how."""
    if draw(st.integers(0, 3)):
        return None
    name = draw(st.sampled_from([key for key, value in arguments.items() if isinstance(value, Tensor)]))
    kind, tensor = draw(st.sampled_from(list(SPOILERS))), arguments[name]
    one_element = kind == "apart" and (tensor.numel() <= 1 or tensor.shape[-1] <= 1)  # is next to itself
    if one_element or (name, kind) in _HARMLESS:
        return None
    arguments[name] = SPOILERS[kind](tensor)
    return f"{name}: {kind}"

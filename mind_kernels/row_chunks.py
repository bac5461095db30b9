"""How many rows make a chunk, which of them need a gradient, and how their losses are weighted and reduced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

# Bytes of one chunk of logits. Every further chunk reads and writes the whole dW once more (8VD bytes in float32), so
# chunks want to be large; on a CPU memory decides: 48 MiB are 256 rows at V 49152, D 576, whose products are 43 GFLOP
# beside 226 MB of that traffic, and the whole stays below a tenth of eager's memory.
_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
# The sparse gradient accumulates no dW, so that smaller chunks cost nothing; two of them are in flight on a GPU.
_SPARSE_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 192 << 20}
# Bytes of the block on which a row kernel's elementwise passes run: on a CPU it is to stay in the cache between passes.
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}

Rows = slice | Tensor
"""Rows of a matrix: a slice without a step, or their indices (n,) int64."""


def _rows_within(budget: dict[str, int], vocabulary: int, device: torch.device, itemsize: int) -> int:
    available = budget["cpu" if device.type == "cpu" else "cuda"]
    return max(1, available // (vocabulary * itemsize))


def rows_per_chunk(vocabulary: int, device: torch.device, itemsize: int = 4, *, sparse: bool = False) -> int:
    """Rows of one logits chunk: as many as fit the byte budget of the device, at least one.

    From 128 on a multiple of 128, the height of a tile of the products.
    """
    rows = _rows_within(_SPARSE_CHUNK_BYTES if sparse else _CHUNK_BYTES, vocabulary, device, itemsize)
    return rows if rows < 128 else rows - rows % 128


def rows_per_block(vocabulary: int, device: torch.device) -> int:
    """Rows of one block of a row kernel's passes (float32), at least one."""
    return _rows_within(_BLOCK_BYTES, vocabulary, device, 4)


@overload
def chunks(rows: int, size: int) -> Iterator[slice]: ...
@overload
def chunks(rows: Tensor, size: int) -> Iterator[Tensor]: ...
@overload
def chunks(rows: Tensor | int, size: int) -> Iterator[Rows]: ...
def chunks(rows: Tensor | int, size: int) -> Iterator[Rows]:
    """Chunks of at most `size` rows: slices of range(rows) for a count, index tensors for a list of rows."""
    if isinstance(rows, int):
        yield from (slice(start, min(start + size, rows)) for start in range(0, rows, size))
    elif rows.numel():
        yield from rows.split(size)


def write_rows(values: Sequence[Tensor], rows: Rows, found: Sequence[Tensor]) -> None:
    """values[i][rows] = found[i]."""
    for column, value in zip(values, found, strict=True):
        column[rows] = value


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses, statistics and sums: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a gradient until the upstream gradient has scaled it: that of the input, float32 for float16, which
    cannot hold it before."""
    return torch.float32 if dtype == torch.float16 else dtype


@overload
def flat_rows(values: Tensor, dims: int = 0) -> Tensor: ...
@overload
def flat_rows(values: None, dims: int = 0) -> None: ...
@overload
def flat_rows(values: Tensor | None, dims: int = 0) -> Tensor | None: ...
def flat_rows(values: Tensor | None, dims: int = 0) -> Tensor | None:
    """Values (...) of rows of any leading shape as (N,), integers as int64; `dims` more dimensions stay as they are."""
    if values is None:
        return None
    return (values if values.is_floating_point() else values.long()).flatten(0, -1 - dims)


def row_weights(
    row_weight: Tensor | None,  # (N,) floating; None: one each
    valid: Tensor | None,  # (N,) bool; None: all
    hidden: Tensor,  # (N, D)
) -> Tensor:
    """(N,) in the accumulation dtype of hidden, contiguous; zero where not valid."""
    dtype = accumulation_dtype(hidden.dtype)
    if row_weight is None:
        return hidden.new_ones(hidden.shape[0], dtype=dtype) if valid is None else valid.to(dtype)
    row_weight = row_weight.to(dtype)
    return row_weight.contiguous() if valid is None else torch.where(valid, row_weight, 0)


def upstream_weights(upstream: Tensor, row_weight: Tensor | None) -> Tensor:
    """(N,): in a sum of losses (N,), the weights for which its gradient is that of `upstream` (N,)."""
    return upstream.contiguous() if row_weight is None else upstream * row_weight.to(upstream.dtype)


def may_be_nan(values: Tensor) -> bool:
    """Whether the sum of the values is nan; True on a GPU, which would have to report it first."""
    return values.device.type != "cpu" or math.isnan(float(values.sum()))


def known_finite(values: Tensor) -> bool:
    """Whether the sum of the values is finite; False on a GPU, which would have to report it first."""
    return values.device.type == "cpu" and math.isfinite(float(values.sum()))


def has_gradient(
    valid: Tensor,  # (N,) bool, where hidden is or on the host
    has_weight: Tensor,  # (N,) bool, where hidden is
) -> Tensor:
    """(N,) bool: the rows that take part in the gradient products.

    A row of weight zero needs none, but to know these rows would make the host wait for a GPU: there every valid row
    takes part.
    """
    return valid & has_weight if has_weight.device.type == "cpu" else valid


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """weight * losses (N,), and 0 where the weight is, whatever the loss."""
    return torch.where(weight == 0, 0, weight * losses)


def reduced(losses: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """Weighted losses (N,) as they are for "none", their sum for "sum", that over the sum of the weights for "mean"."""
    if reduction == "none":
        return losses
    return losses.sum() / weight.sum() if reduction == "mean" else losses.sum()


def row_major(matrix: Tensor) -> Tensor:
    """The matrix with contiguous rows; the input itself if its rows are contiguous already."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()

"""Helpers for chunks of rows: their size, which rows need a gradient, and how losses are weighted and reduced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

# Bytes of one chunk of logits. Each chunk reads and writes the whole dW once (8VD bytes in float32), so large chunks
# are faster; on a CPU memory is the limit: 48 MiB are 256 rows at V 49152, D 576, with 43 GFLOP of products and 226 MB
# of that traffic, and less than a tenth of eager's memory in all. HeadGradients.rows_per_chunk adds to it on a GPU.
_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
# The sparse gradient does not accumulate dW per chunk, so smaller chunks cost nothing; a GPU works on two of them.
_SPARSE_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 192 << 20}
# Bytes of a block for the elementwise passes of a row kernel: small enough to stay in a CPU's cache between passes.
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}

Rows = slice | Tensor
"""Rows of a matrix: a slice without a step, or their indices (n,) int64."""


def _rows_within(budget: dict[str, int], vocabulary: int, device: torch.device, itemsize: int, spare: int = 0) -> int:
    available = budget["cpu" if device.type == "cpu" else "cuda"] + spare
    return max(1, available // (vocabulary * itemsize))


def rows_per_chunk(
    vocabulary: int, device: torch.device, itemsize: int = 4, *, sparse: bool = False, spare: int = 0
) -> int:
    """The number of rows of a chunk of logits: as many as fit the byte budget of the device, at least one.

    From 128 rows on it is a multiple of 128, the height of a tile of the products. `spare` bytes add to the budget.
    """
    rows = _rows_within(_SPARSE_CHUNK_BYTES if sparse else _CHUNK_BYTES, vocabulary, device, itemsize, spare)
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
    """The dtype of a gradient before it is multiplied by the upstream gradient: that of the input, but float32 for
    float16, in which it would underflow."""
    return torch.float32 if dtype == torch.float16 else dtype


@overload
def flat_rows(values: Tensor, dims: int = 0) -> Tensor: ...
@overload
def flat_rows(values: None, dims: int = 0) -> None: ...
@overload
def flat_rows(values: Tensor | None, dims: int = 0) -> Tensor | None: ...
def flat_rows(values: Tensor | None, dims: int = 0) -> Tensor | None:
    """Reshapes values (...) to (N,) and integers to int64; the last `dims` dimensions are kept."""
    if values is None:
        return None
    return (values if values.is_floating_point() else values.long()).flatten(0, -1 - dims)


def row_weights(
    row_weight: Tensor | None,  # (N,) floating; None: one each
    valid: Tensor | None,  # (N,) bool; None: all
    hidden: Tensor,  # (N, D)
    reduction: str = "sum",
) -> Tensor:
    """(N,) in the accumulation dtype of hidden, contiguous; zero where not valid.

    For "mean", which depends on their proportions alone, weights of float64 that float32 might not hold are divided by
    the largest of them.
    """
    dtype = accumulation_dtype(hidden.dtype)
    if row_weight is None:
        return hidden.new_ones(hidden.shape[0], dtype=dtype) if valid is None else valid.to(dtype)
    if valid is not None:
        row_weight = torch.where(valid, row_weight, 0)
    if reduction == "mean" and row_weight.dtype == torch.float64 != dtype and row_weight.numel():
        largest = row_weight.abs().amax()
        row_weight = row_weight / torch.where((largest > 0) & largest.isfinite(), largest, 1)
    return row_weight.to(dtype).contiguous()


def upstream_weights(upstream: Tensor, row_weight: Tensor | None) -> Tensor:
    """(N,): the row weights for which the sum of the weighted losses has the gradient of losses with this `upstream`
    (N,)."""
    return upstream.contiguous() if row_weight is None else upstream * row_weight.to(upstream.dtype)


def may_be_nan(values: Tensor) -> bool:
    """Whether the sum of the values is nan; always True on a GPU, for which the host would have to wait."""
    return values.device.type != "cpu" or math.isnan(float(values.sum()))


def known_finite(values: Tensor) -> bool:
    """Whether the sum of the values is finite; always False on a GPU, for which the host would have to wait."""
    return values.device.type == "cpu" and math.isfinite(float(values.sum()))


def selects_by_weight(device: torch.device) -> bool:
    """Whether the host leaves rows of weight zero out of the gradient products: on a GPU it would have to wait to find
    them."""
    return device.type == "cpu"


def has_gradient(
    valid: Tensor,  # (N,) bool, where hidden is or on the host
    has_weight: Tensor,  # (N,) bool, where hidden is
) -> Tensor:
    """(N,) bool: the rows that take part in the gradient products; all valid ones if weights do not select them."""
    return valid & has_weight if selects_by_weight(has_weight.device) else valid


def without_spoilt(hidden: Tensor, has_weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Hidden states (N, D) for the gradient products, and which rows (N,) bool have others in their place; None: none.

    A row of weight zero has no gradient, whatever it holds; but if it takes part, 0 times nan would be nan.
    """
    if selects_by_weight(hidden.device):
        return hidden, None
    spoilt = ~(has_weight | hidden.isfinite().all(1))
    return torch.where(spoilt[:, None], 0, hidden), spoilt


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """weight * losses (N,), and 0 for a weight of 0, even if the loss is not finite."""
    return torch.where(weight == 0, 0, weight * losses)


def scale_of_rows(weight: Tensor, reduction: str) -> Tensor:
    """The factors (N,) of the rows' losses: their weights or, for "mean", their shares in the sum of the weights."""
    if reduction != "mean":
        return weight
    total = weight.sum(dtype=torch.float64)  # it may be beyond float32's numbers, and so may weight * loss
    return torch.where(total.isinf(), torch.nan, weight.double() / total).to(weight.dtype)


def reduced(losses: Tensor, scale: Tensor, reduction: str) -> Tensor:
    """For "none" the losses times their `scale_of_rows` (N,), else the sum of that; the mean of no rows is nan."""
    scaled = weighted(losses, scale)
    if reduction == "mean" and not losses.numel():
        return scaled.sum() + math.nan
    return scaled if reduction == "none" else scaled.sum()


def row_major(matrix: Tensor) -> Tensor:
    """The matrix with contiguous rows; the input itself if its rows are contiguous already."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()

"""Weighted sums of gathered matrix rows in Triton, by which sparse matrix products are computed.

One program per output row ("bag") and block of columns, in one pass; no memory but the result. Sums in float32, in a
fixed order.

Count for 573,000 entries (16384 rows x 35), D 3584, bfloat16: 4.1 GB are gathered. Programs of one block of columns run
together and read the same part of the matrix. For 16384 hidden states it has 16.8 MB and stays in the L2 cache, so the
time of dW is that of writing its V x D result. For an LM head it has 155 MB, of which the frequent rows stay in the
cache.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.triton_math import cdiv, jit, next_power_of_2, row_pointer
from mind_kernels.triton_variant import DTYPES, Variant

# Bytes of a matrix row that a program reads at once, and rows that it reads at once: 16 KiB in flight per program, of
# which four share a multiprocessor. 2 KiB are 16 bytes for each of the 128 threads, so that a thread has all entries of
# its columns and sums them without the others. A bag of thousands of entries goes through one program, about 1 us for
# 8.
_ROW_BYTES = 1 << 11
_ENTRIES = 8


def gather_launch(size: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile and warps for rows of `size` elements."""
    return {
        "ENTRIES": _ENTRIES,
        "COLUMNS": min(_ROW_BYTES // dtype.itemsize, max(16, next_power_of_2(size))),
        "num_warps": 4,
    }


@jit
def _gather_kernel(
    values,  # (nnz,)
    indices,  # (nnz,)
    offsets,  # (bags + 1,)
    matrix,  # (M, D)
    matrix_stride,
    left,  # (bags, RANK)
    left_stride,
    left_column_stride,
    right,  # (RANK, D)
    right_stride,
    out,  # (bags, D)
    out_stride,
    size,
    RANK: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < size
    first, last = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    if first < last:  # most tokens of a large vocabulary have no entry
        products = tl.zeros((ENTRIES, COLUMNS), tl.float32)  # summed over the entries once, at the end
        for start in range(first, last, ENTRIES):
            entry = start + tl.arange(0, ENTRIES)
            listed = entry < last
            index = tl.load(indices + entry, mask=listed, other=0)
            value = tl.load(values + entry, mask=listed, other=0.0)
            row = row_pointer(matrix, index, matrix_stride)
            tile = tl.load(row[:, None] + columns[None, :], mask=listed[:, None] & inside[None, :], other=0.0)
            products += value[:, None] * tile.to(tl.float32)
        total = tl.sum(products, axis=0)
    for k in tl.static_range(RANK):
        factor = tl.load(row_pointer(left, bag, left_stride) + k * left_column_stride).to(tl.float32)
        total += factor * tl.load(right + k * right_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(row_pointer(out, bag, out_stride) + columns, total, mask=inside)


_TYPES = {
    "values": "*fp32",
    "indices": "*i32",
    "offsets": "*i64",
    "matrix_stride": "i32",
    "left": "*fp32",
    "left_stride": "i32",
    "left_column_stride": "i32",
    "right_stride": "i32",
    "out": "*fp32",
    "out_stride": "i32",
    "size": "i32",
}


def variants() -> list[Variant]:
    """Each dtype, a plain gather, and a matrix whose rows do not begin at multiples of 16 bytes."""

    def variant(label, dtype, options, unaligned=()):
        types = _TYPES | dict.fromkeys(("matrix", "right"), f"*{DTYPES[dtype]}")
        launch = options | gather_launch(3584, dtype)
        name = label.format(DTYPES[dtype])
        return Variant(name, _gather_kernel, types, launch, wide=("matrix", "out"), unaligned=unaligned)

    plain = {"RANK": 0, "left": None, "right": None}
    unaligned = ("matrix", "matrix_stride", "out", "out_stride", "size", "values", "indices")
    return [
        *(variant("gather and product {}", dtype, {"RANK": 2}) for dtype in DTYPES),
        variant("gather {}", torch.float32, plain),
        variant("gather {}, unaligned", torch.float32, plain, unaligned),
    ]


def gather_rows(
    values: Tensor,  # (nnz,) float32
    indices: Tensor,  # (nnz,) int32
    offsets: Tensor,  # (bags + 1,) int64, into values and indices
    matrix: Tensor,  # (M, D), stride(1) == 1
    left: Tensor,  # (bags, k)
    right: Tensor,  # (k, D), stride(1) == 1
    out: Tensor,  # (bags, D), stride(1) == 1, any dtype
) -> None:
    """out[b] = sum over offsets[b] <= i < offsets[b + 1] of values[i] matrix[indices[i]], plus left[b] @ right.

    `left` and `right` add a product of small rank k, which costs no pass of its own.
    """
    bags, size, rank = offsets.numel() - 1, matrix.shape[1], left.shape[1]
    product = (left, *left.stride(), right, right.stride(0)) if rank else (None, 0, 0, None, 0)
    launch = gather_launch(size, matrix.dtype)
    _gather_kernel[(bags, cdiv(size, launch["COLUMNS"]))](
        values, indices, offsets, matrix, matrix.stride(0), *product, out, out.stride(0), size, RANK=rank, **launch
    )

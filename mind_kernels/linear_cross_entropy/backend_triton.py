"""Linear cross-entropy with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

Exact: the logits of a chunk are read twice and overwritten once by their gradient. Sparse: they are read twice for
statistics and counts, and once more for the kept entries; two chunks are processed at a time, so that the GPU does not
wait while the host reads the counts of one. Logits in the input's dtype, everything after the product in float32.
"""

from __future__ import annotations

from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.entries import background, entries
from mind_kernels.linear_cross_entropy._triton.rows import count, row_kernel_
from mind_kernels.linear_cross_entropy._triton.shards import count_shard, shard_gradient_, shard_sums
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues
from mind_kernels.linear_cross_entropy.logits_rows import LogitsRows
from mind_kernels.sparse_gradient import sort_entries
from mind_kernels.triton_gather import gather_rows

__all__ = [
    "SPARSE_CHUNKS",
    "STREAMED_CHUNKS",
    "background",
    "count_shard",
    "entries",
    "gather_rows",
    "row_kernel_",
    "shard_gradient_",
    "shard_sums",
    "sort_entries",
    "sparse_rows",
    "statistics",
]

SPARSE_CHUNKS = 1
STREAMED_CHUNKS = 1


def statistics(hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
    """See `contract.RowKernels`."""
    return row_kernel_(spec.head.project(hidden), target, None, spec)


def sparse_rows(hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> LogitsRows:
    """See `contract.RowKernels`."""
    return LogitsRows(_LogitsKernels(), hidden, target, spec)


class _LogitsKernels:
    """See `logits_rows.LogitsKernels`."""

    row_kernel_ = staticmethod(row_kernel_)
    count = staticmethod(count)
    entries = staticmethod(entries)
    background = staticmethod(background)

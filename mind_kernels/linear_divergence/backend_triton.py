"""Divergences with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

The logits of a chunk, float32 whatever the input's dtype, are read three times and overwritten once; see `_triton` for
the passes. PyTorch gathers and scatters the T listed tokens per row of a teacher's list.
"""

from __future__ import annotations

from functools import partial

from mind_kernels.linear_divergence._triton.listed import others, spread_
from mind_kernels.linear_divergence._triton.rows import divergence_
from mind_kernels.linear_divergence._triton.shards import shard_gradient_, shard_parts_, shard_sums_
from mind_kernels.linear_divergence.listed_rows import listed_divergence_by

__all__ = [
    "divergence_",
    "listed_divergence_",
    "others",
    "shard_gradient_",
    "shard_parts_",
    "shard_sums_",
    "spread_",
]

listed_divergence_ = partial(listed_divergence_by, others, spread_)
"""See `contract.RowKernels`."""

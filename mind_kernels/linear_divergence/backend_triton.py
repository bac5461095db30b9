"""Divergences with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

The logits of a chunk, float32 whatever the input's dtype, are read three times and overwritten once; see `_triton` for
the passes. The listed tokens of a teacher's list, T per row, are gathered and scattered by PyTorch.
"""

from __future__ import annotations

from functools import partial

from mind_kernels.linear_divergence._triton.listed import LISTED, others, spread_
from mind_kernels.linear_divergence._triton.rows import divergence_
from mind_kernels.linear_divergence.listed_rows import listed_divergence_by

__all__ = ["divergence_", "listed_divergence_"]

listed_divergence_ = partial(listed_divergence_by, others, spread_, LISTED.value)
"""See `contract.RowKernels`."""

"""Linear cross-entropy with the compiled row kernels for the CPU."""

from __future__ import annotations

from mind_kernels.linear_cross_entropy.compiled_rows import CompiledRows

_rows = CompiledRows("cpp")
SPARSE_CHUNKS = _rows.SPARSE_CHUNKS
row_kernel_, statistics, sparse_rows, gather_rows = (
    _rows.row_kernel_,
    _rows.statistics,
    _rows.sparse_rows,
    _rows.gather_rows,
)

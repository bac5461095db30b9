"""Linear cross-entropy with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

Exact: the logits of a chunk are read twice and overwritten once by their gradient. Sparse: read twice for statistics
and counts, once more for the kept entries; two chunks are under way, so that the GPU never waits while the host reads
the counts of one. Logits in the input's dtype, everything after the product in float32.
"""

from __future__ import annotations

from torch import Tensor

from mind_kernels.linear_cross_entropy._triton import entries as triton_entries
from mind_kernels.linear_cross_entropy._triton import rows as triton_rows
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import LogitsRows
from mind_kernels.triton_gather import gather_rows

__all__ = ["SPARSE_CHUNKS", "gather_rows", "row_kernel_", "sparse_rows", "statistics"]

SPARSE_CHUNKS = 1


def row_kernel_(
    logits: Tensor,  # (n, V), projected
    target: Tensor,  # (n,), in [0, V)
    weights: RowWeights | None,  # (n,)
    spec: RowSpec,
) -> RowValues:
    """See `contract.RowKernels`."""
    scale, entropy_scale = (None, None) if weights is None else (weights.loss, weights.entropy)
    return RowValues(
        *triton_rows.row_kernel_(logits, target, scale, entropy_scale, spec.head, spec.label_smoothing, spec.z_loss)
    )


def statistics(hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
    """See `contract.RowKernels`."""
    return row_kernel_(spec.head.project(hidden), target, None, spec)


def sparse_rows(hidden: Tensor, target: Tensor, spec: RowSpec) -> LogitsRows:
    """See `contract.RowKernels`."""
    return LogitsRows(_Kernels(), hidden, target, spec)


class _Kernels:
    """See `logits_rows.LogitsKernels`."""

    row_kernel_ = staticmethod(row_kernel_)

    def count(self, logits: Tensor, target: Tensor, spec: RowSpec) -> tuple[RowValues, Tensor, Tensor, Tensor]:
        values, normalizer, kept, kept_mass = triton_rows.statistics(
            logits, target, spec.head, spec.label_smoothing, spec.z_loss, spec.gradient_threshold
        )
        return RowValues(*values), normalizer, kept.long(), kept_mass

    def entries(
        self,
        logits: Tensor,
        target: Tensor,
        normalizer: Tensor,
        values: RowValues,
        weights: RowWeights,
        spec: RowSpec,
        offsets: Tensor,
        total: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return triton_entries.entries(
            logits,
            target,
            normalizer,
            values.entropy,
            weights.loss,
            weights.entropy,
            spec.head,
            spec.label_smoothing,
            spec.z_loss,
            spec.gradient_threshold,
            offsets,
            total,
        )

    def background(
        self, logits: Tensor, rows: Tensor, target: Tensor, normalizer: Tensor, weight: Tensor, spec: RowSpec
    ) -> Tensor:
        return triton_entries.background(logits, rows, target, normalizer, weight, spec.head, spec.gradient_threshold)

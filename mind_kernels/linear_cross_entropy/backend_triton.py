"""Linear cross-entropy with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

Exact: the logits of a chunk are read twice and overwritten once by their gradient. Sparse: read twice for statistics
and counts, once more for the kept entries; two chunks are under way, so that the GPU never waits while the host reads
the counts of one. Logits in the input's dtype, everything after the product in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy import triton_entries, triton_rows
from mind_kernels.linear_cross_entropy.rows import RowLoss, RowValues, RowWeights
from mind_kernels.sparse_gradient import Entries, offsets_of
from mind_kernels.triton_gather import gather_rows

__all__ = ["SPARSE_CHUNKS", "gather_rows", "row_kernel_", "sparse_rows", "statistics"]

SPARSE_CHUNKS = 1


def row_kernel_(
    logits: Tensor,  # (n, V), projected
    target: Tensor,  # (n,), in [0, V)
    weights: RowWeights | None,  # (n,)
    loss: RowLoss,
    conditioned: bool = False,
) -> RowValues:
    """See `rows.RowKernels`."""
    scale, entropy_scale = (None, None) if weights is None else (weights.loss, weights.entropy)
    return RowValues(*triton_rows.row_kernel_(logits, target, scale, entropy_scale, loss.head, loss.label_smoothing,
                                              loss.z_loss, conditioned))


def statistics(hidden: Tensor, target: Tensor, loss: RowLoss) -> RowValues:
    """See `rows.RowKernels`."""
    return row_kernel_(loss.head.project(hidden), target, None, loss)


def sparse_rows(hidden: Tensor, target: Tensor, loss: RowLoss) -> _SparseRows:
    """See `rows.RowKernels`."""
    return _SparseRows(hidden, target, loss)


class HostSums:
    """Sums of the rows' kept entries and dropped mass on their way to the host: asked for now, read later."""

    def __init__(self, kept: Tensor, dropped_mass: Tensor) -> None:
        self._rows = len(kept)
        self._sums = torch.stack([kept.sum().double(), dropped_mass.double().sum()])
        self._ready = None
        if self._sums.is_cuda:
            self._sums = torch.empty(2, dtype=torch.float64, pin_memory=True).copy_(self._sums, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def _read(self) -> tuple[float, float]:
        if self._ready is not None:
            self._ready.synchronize()
        return tuple(self._sums.tolist())

    def means(self) -> tuple[float, float]:
        kept, dropped_mass = self._read()
        return kept / self._rows, dropped_mass / self._rows

    def kept(self) -> int:
        return int(self._read()[0])


class _SparseRows:
    """See `rows.SparseRows`."""

    def __init__(self, hidden: Tensor, target: Tensor, loss: RowLoss) -> None:
        self._loss, self._target = loss, target
        self._logits = loss.head.project(hidden)
        values, self._normalizer, kept, kept_mass = triton_rows.statistics(
            self._logits, target, loss.head, loss.label_smoothing, loss.z_loss, loss.gradient_threshold)
        self.values, self.kept = RowValues(*values), kept.long()
        self.dropped_mass = (1 - kept_mass).clamp_(min=0)
        self._sums = HostSums(self.kept, self.dropped_mass)

    def means(self) -> tuple[float, float]:
        return self._sums.means()

    def entries(self, weights: RowWeights) -> Entries:
        offsets = offsets_of(self.kept)
        loss = self._loss
        columns, values, kept_sum = triton_entries.entries(
            self._logits, self._target, self._normalizer, self.values.entropy, weights.loss, weights.entropy, loss.head,
            loss.label_smoothing, loss.z_loss, loss.gradient_threshold, offsets, self._sums.kept())
        return Entries(self.kept, columns, values, kept_sum)

    def background(self, rows: Tensor, weight: Tensor) -> Tensor:
        return triton_entries.background(self._logits, rows, self._target, self._normalizer, weight, self._loss.head,
                                         self._loss.gradient_threshold)

    def dense(self, weights: RowWeights) -> Tensor:
        row_kernel_(self._logits, self._target, weights, self._loss)
        return self._logits

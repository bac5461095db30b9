"""Linear cross-entropy with a streaming forward pass in Triton: no logits are written, in no chunk.

Statistics come from one pass with the logits tile in registers. With the sparse gradient that pass also leaves tile
maxima, and the few tiles above the threshold are computed once more: at 2^-12 about 1.2 products in all, and no chunk
of logits. An exact gradient needs all logits, so there this backend is `triton`. All arithmetic after a product is
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton import entries as triton_entries
from mind_kernels.linear_cross_entropy._triton.pieces import kept_pieces, piece_entries, piece_logits, piece_statistics
from mind_kernels.linear_cross_entropy._triton.stream import stream_statistics
from mind_kernels.linear_cross_entropy.backend_triton import gather_rows, row_kernel_
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import HostSums
from mind_kernels.sparse_gradient import Entries, offsets_of

__all__ = ["SPARSE_CHUNKS", "gather_rows", "row_kernel_", "sparse_rows", "statistics"]

# Rows of a chunk beside those of the chunked form: tile maxima and kept pieces are a tenth of its logits. Not more,
# since a chunk that falls back to the exact gradient does need logits.
SPARSE_CHUNKS = 4


def statistics(hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
    """See `contract.RowKernels`."""
    values, _, _ = stream_statistics(hidden, spec.head, target, spec.label_smoothing, spec.z_loss, tile_maxima=False)
    return RowValues(*values)


def sparse_rows(hidden: Tensor, target: Tensor, spec: RowSpec) -> _SparseRows:
    """See `contract.RowKernels`."""
    return _SparseRows(hidden, target, spec)


class _SparseRows:
    """See `contract.SparseRows`. `means` waits for the device twice: for the number of pieces, and for the means."""

    kept: Tensor
    dropped_mass: Tensor

    def __init__(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> None:
        self._hidden, self._target, self._spec = hidden, target, spec
        values, self._normalizer, self._tile_maxima = stream_statistics(
            hidden, spec.head, target, spec.label_smoothing, spec.z_loss, tile_maxima=True
        )
        self.values = RowValues(*values)

    def means(self) -> tuple[float, float]:
        threshold = self._spec.gradient_threshold
        self._pieces = kept_pieces(self._tile_maxima, self.values.lse, self._target, threshold)
        self._logits = piece_logits(self._hidden, self._spec.head, self._pieces)
        kept, kept_mass = piece_statistics(self._pieces, self._logits, self._normalizer, self._target, threshold)
        self.kept, self.dropped_mass = kept.long(), (1 - kept_mass).clamp_(min=0)
        self._sums = HostSums(self.kept, self.dropped_mass)
        return self._sums.means()

    def entries(self, weights: RowWeights) -> Entries:
        spec, values = self._spec, self.values
        columns, entry_values, kept_sum = piece_entries(
            self._pieces,
            self._logits,
            self._target,
            self._normalizer,
            values.entropy,
            weights.loss,
            weights.entropy,
            spec.head,
            spec.label_smoothing,
            spec.z_loss,
            spec.gradient_threshold,
            offsets_of(self.kept),
            self._sums.kept(),
        )
        return Entries(self.kept, columns, entry_values, kept_sum)

    def background(self, rows: Tensor, weight: Tensor) -> Tensor:
        # A few sampled rows, whose logits are a small product.
        logits = self._spec.head.project(self._hidden[rows])
        normalizer = self._normalizer[:, rows].contiguous()
        return triton_entries.background(
            logits,
            torch.arange(len(rows), device=rows.device),
            self._target[rows],
            normalizer,
            weight,
            self._spec.head,
            self._spec.gradient_threshold,
        )

    def dense(self, weights: RowWeights) -> Tensor:
        logits = self._spec.head.project(self._hidden)
        row_kernel_(logits, self._target, weights, self._spec)
        return logits

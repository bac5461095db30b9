"""Linear cross-entropy with a streaming forward pass in Triton, which stores no logits at all.

Statistics are computed in one pass with a tile of logits in registers. For the sparse gradient that pass also stores
tile maxima, and the few tiles above the threshold are computed again: at 2^-12 about 1.2 products in all, and no chunk
of logits. An exact gradient needs all logits, so this backend then works as `triton`. For a head that is split over
processes it streams only the statistics, and works as `triton` for gradients. All arithmetic after a product is
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.pieces import kept_pieces, piece_entries, piece_logits, piece_statistics
from mind_kernels.linear_cross_entropy._triton.stream import stream_statistics, stream_sums
from mind_kernels.linear_cross_entropy._triton.stream import stream_values as statistics
from mind_kernels.linear_cross_entropy.backend_triton import (
    background,
    count_shard,
    entries,
    gather_rows,
    row_kernel_,
    shard_gradient_,
    shard_sums,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import HostSums
from mind_kernels.sparse_gradient import Entries, offsets_of, sort_entries

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
    "stream_sums",
]

# Chunks of the chunked form per chunk of this one: tile maxima and kept pieces are a tenth of the logits.
SPARSE_CHUNKS = 4
STREAMED_CHUNKS = 1


def sparse_rows(hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> _SparseRows:
    """See `contract.RowKernels`."""
    return _SparseRows(hidden, target, spec)


class _SparseRows:
    """See `contract.SparseRows`. `means` waits for the device twice: for the number of pieces, and for the means."""

    kept: Tensor
    dropped_mass: Tensor

    def __init__(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> None:
        self._hidden, self._target, self._spec = hidden, target, spec
        self._streamed = stream_statistics(hidden, target, spec)
        self.values = self._streamed.values

    def means(self) -> tuple[float, float]:
        self._pieces = kept_pieces(self._streamed, self._target, self._spec)
        self._logits = piece_logits(self._hidden, self._spec.head, self._pieces)
        found = piece_statistics(self._pieces, self._logits, self._target, self._streamed, self._spec)
        self.kept, self.dropped_mass = found
        self._sums = HostSums(self.kept, self.dropped_mass, self._streamed.normalizer[2], self.values.lse)
        return self._sums.means()

    def entries(self, weights: RowWeights) -> Entries:
        offsets, total = offsets_of(self.kept), self._sums.kept()
        found = piece_entries(
            self._pieces, self._logits, self._target, self._streamed, weights, self._spec, offsets, total
        )
        return Entries(self.kept, found.columns, found.values, found.kept_sum)

    def background(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # A few sampled rows, whose logits are a small product.
        logits = self._spec.head.project(self._hidden[rows])
        every = torch.arange(len(rows), device=rows.device)
        normalizer = self._streamed.normalizer[:, rows].contiguous()
        out = background(logits, every, self._target[rows], normalizer, weight, self._spec)
        return out, weight @ self.dropped_mass[rows]

    def logits(self) -> Tensor:
        return self._spec.head.project(self._hidden)

    def dense(self, part: slice, weights: RowWeights) -> Tensor:
        logits = self._spec.head.project(self._hidden[part])
        row_kernel_(logits, self._target[part], weights, self._spec)
        return logits

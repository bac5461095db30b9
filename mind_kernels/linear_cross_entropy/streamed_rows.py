"""Row kernels of backend `cpp`: on logits in memory, and directly from hidden states (csrc/cpu/stream.h).

Statistics without a gradient, and the forward pass of the sparse gradient, keep no logits: beside their results they
need hidden states in float32 (4 N D bytes) and the lists of kept entries. The exact gradient needs all logits and
computes them chunk by chunk (csrc/cpu/gradient.h). All of these use this package's own matrix products, in float32 for
every dtype of the input. For a head that is split over processes, exact gradient and statistics both use the chunks of
logits of csrc/cpu/gradient.h, and the sparse gradient uses PyTorch's product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mind_kernels.compiled_head import FEWEST_ROWS
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.batch_rows import SPAN, BatchRows
from mind_kernels.linear_cross_entropy.compiled_rows import (
    ROW_NUMBERS,
    CompiledRows,
    conditions,
    outputs,
    shard_outputs,
    values_of,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights, SparseRows
from mind_kernels.linear_cross_entropy.logits_rows import HostSums
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.sparse_gradient import ByColumn, Entries, most_kept, offsets_of

# Logits are stored in whole blocks of the vocabulary (kBlock in csrc/cpu/kernels.h) and whole vectors of rows.
_BLOCK, _LANES = 96, 16
# A chunk of logits for an exact gradient: strips of 48 rows (AVX-512; a multiple of the 16 of AVX2), as many as fit a
# budget, at least one and at most four. More rows would reduce the traffic of dW, which overlaps with the products
# anyway, but their hidden states and dH would not fit the L2 cache.
_STRIP, _MOST_STRIPS, _CHUNK_BYTES = 48, 4, 48 << 20


def _are_streamed(hidden: Tensor) -> bool:
    """Whether the statistics are streamed: from FEWEST_ROWS on, a vector of rows. At 16 rows this takes 0.5 to 0.8 of
    the time of a product and a pass over its logits, at one row 1.7 (V 8192 to 49152, D 576 and 2048). Half precision
    is always streamed: its logits in memory would be rounded, and no result may depend on the number of rows. D has to
    be above 0."""
    return hidden.shape[1] > 0 and (hidden.dtype != torch.float32 or len(hidden) >= FEWEST_ROWS)


class StreamedRows(CompiledRows):
    """See `contract.RowKernels`."""

    STREAMED_CHUNKS = 8

    def statistics(self, hidden: Tensor, target: Tensor, spec: RowSpec, temperature: Tensor | None = None) -> RowValues:
        if _are_streamed(hidden):
            numbers, correct = outputs(hidden)
            self.operators.stream_statistics(*_inputs(hidden, target, spec), temperature, numbers, correct, None)
            return values_of(numbers, correct)
        if temperature is None:
            return super().statistics(hidden, target, spec)
        logits = spec.head.to_logits_(spec.head.project_wide(hidden)).div_(temperature[:, None])
        return self.row_kernel_(logits, target, None, spec.with_head(Head(spec.head.weight)))

    def sparse_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> SparseRows:
        if keep_logits or not _are_streamed(hidden):
            return super().sparse_rows(hidden, target, spec)
        # There are more candidates than entries kept in the end; above twice the limit per row on average, the search
        # ends.
        most = 2 * math.ceil(most_kept(spec.head.vocabulary, hidden.device))
        return _SparseRows(self, hidden, target, spec, None, most)

    def listed_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec, log_cuts: Tensor, most: int) -> BatchRows:
        """See `batch_rows.BatchKernels`."""
        return _SparseRows(self, hidden, target, spec, log_cuts, most)

    def exact_rows(self, rows: int, hidden: Tensor, spec: RowSpec) -> _ExactRows | None:
        """See `contract.OwnProducts`."""
        if not _are_streamed(hidden[:rows]):
            return None
        return _ExactRows(self, rows, hidden, spec, spec.head.vocabulary)

    def exact_shards(self, rows: int, hidden: Tensor, spec: RowSpec, largest: int) -> _ExactShards | None:
        """See `shard_contract.OwnShardProducts`."""
        return _ExactShards(self, rows, hidden, spec, largest) if _are_streamed(hidden[:rows]) else None

    def sort_entries(self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int) -> ByColumn:
        return self.sort_large_entries(rows, offsets, columns, values, vocabulary, -1.0)

    def sort_large_entries(
        self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int, least: float
    ) -> ByColumn:
        """See `batch_rows.BatchKernels`."""
        return ByColumn(*self.operators.sort_entries(rows.argsort(), rows, offsets, columns, values, vocabulary, least))


class _ExactMemory:
    """The memory for the chunks of an exact gradient, which all of them use, since fresh pages would cost time."""

    def __init__(self, kernels: StreamedRows, rows: int, hidden: Tensor, spec: RowSpec, largest: int) -> None:
        """For `rows` rows, in chunks of the size for a vocabulary of `largest` entries."""
        strips = min(max(_CHUNK_BYTES // (4 * _up_to_multiple(largest, _BLOCK) * _STRIP), 1), _MOST_STRIPS)
        self.size = max(min(rows, strips * _STRIP), 1)
        vocabulary = _up_to_multiple(spec.head.vocabulary, _BLOCK)
        self.logits = hidden.new_empty(vocabulary, _up_to_multiple(self.size, _LANES), dtype=torch.float32)
        self.kernels, self.spec = kernels, spec


class _ExactRows(_ExactMemory):
    """See `contract.ExactRows`."""

    def chunk(self, hidden: Tensor, target: Tensor) -> _ExactChunk:
        return _ExactChunk(self, hidden, target)


class _ExactChunk:
    """See `contract.ExactChunk`. The projected logits are stored transposed."""

    def __init__(self, rows: _ExactRows, hidden: Tensor, target: Tensor) -> None:
        self._rows, self._hidden, self._target = rows, hidden, target
        self._numbers, correct = outputs(hidden)
        rows.kernels.operators.stream_statistics(
            *_inputs(hidden, target, rows.spec), None, self._numbers, correct, rows.logits
        )
        self.values = values_of(self._numbers, correct)

    def write_products(
        self,
        weights: RowWeights,
        at_target: Tensor | None,
        of_hidden: Tensor | None,
        of_weight: Tensor | None,
        add_weight: bool,
        of_bias: Tensor | None,
    ) -> None:
        spec = self._rows.spec
        self._rows.kernels.operators.exact_products(
            self._rows.logits,
            self._hidden,
            spec.head.weight,
            self._target,
            weights.loss,
            weights.entropy,
            at_target,
            *conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            self._numbers,
            of_hidden,
            of_weight,
            add_weight,
            of_bias,
        )


class _ExactShards(_ExactMemory):
    """See `shard_contract.ExactShards`."""

    def chunk(self, hidden: Tensor, target: Tensor) -> _ShardChunk:
        return _ShardChunk(self, hidden, target)


class _ShardChunk:
    """See `shard_contract.ShardChunk`. The projected logits are stored transposed."""

    def __init__(self, shards: _ExactShards, hidden: Tensor, target: Tensor) -> None:
        self._shards, self._hidden, self._target = shards, hidden, target
        head, adds_logits = shards.spec.head, shards.spec.label_smoothing != 0
        sums, argmax = shard_outputs(hidden)
        shards.kernels.operators.stream_shard_sums(
            hidden, head.weight, head.bias, target, *conditions(head), adds_logits, sums, argmax, shards.logits
        )
        self.sums = RowSums._make([*sums, argmax])

    def write_products(
        self,
        terms: GradientTerms,
        of_hidden: Tensor | None,
        of_weight: Tensor | None,
        add_weight: bool,
        of_bias: Tensor | None,
    ) -> None:
        head = self._shards.spec.head
        self._shards.kernels.operators.shard_products(
            self._shards.logits,
            self._hidden,
            head.weight,
            self._target,
            *conditions(head),
            *terms,
            of_hidden,
            of_weight,
            add_weight,
            of_bias,
        )


class _SparseRows:
    """See `contract.SparseRows`; with `log_cuts`, see `batch_rows.BatchRows`."""

    def __init__(
        self,
        kernels: StreamedRows,
        hidden: Tensor,
        target: Tensor,
        spec: RowSpec,
        log_cuts: Tensor | None,  # (n,); None: the spec's threshold
        most: int,  # candidates per row on average
    ) -> None:
        self._kernels, self._hidden, self._target, self._spec = kernels, hidden, target, spec
        self._numbers, correct = outputs(hidden)
        self.kept, self.dropped_mass = torch.empty_like(target), torch.empty_like(self._numbers[0])
        self.span_mass = self._numbers.new_empty(len(target), -(-spec.head.vocabulary // SPAN))
        self._columns, self._projected = kernels.operators.stream_kept(
            *_inputs(hidden, target, spec),
            0.0 if log_cuts is not None else spec.log_threshold,
            log_cuts,
            None if log_cuts is None else _target_logits(hidden, target, spec.head),
            most,
            self._numbers,
            correct,
            self.kept,
            self.dropped_mass,
            self.span_mass,
        )
        self.values = values_of(self._numbers, correct)
        self._sums = HostSums(self.kept, self.dropped_mass, self._numbers[ROW_NUMBERS.index("others")], self.values.lse)

    def means(self) -> tuple[float, float]:
        return self._sums.means()

    def entries(self, weights: RowWeights) -> Entries:
        return self.small_entries(weights, -1.0)[0]

    def small_entries(self, weights: RowWeights, least: float) -> tuple[Entries, Tensor]:
        spec = self._spec
        values, kept_sum = torch.empty_like(self._projected), torch.empty_like(self.values.lse)
        small_sum = torch.empty_like(self.span_mass)
        self._kernels.operators.kept_values(
            self._columns,
            self._projected,
            self._target,
            weights.loss,
            weights.entropy,
            *conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            spec.head.vocabulary,
            self._numbers,
            offsets_of(self.kept),
            values,
            kept_sum,
            least,
            small_sum,
        )
        return Entries(self.kept, self._columns, values, kept_sum), small_sum

    def background(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("the logits of these rows were not to be kept")

    def logits(self) -> Tensor:
        raise NotImplementedError("the logits of these rows were not to be kept")

    def dense(self, part: slice, weights: RowWeights) -> Tensor:
        logits = self._spec.head.project(self._hidden[part])
        self._kernels.row_kernel_(logits, self._target[part], weights, self._spec)
        return logits


def _target_logits(hidden: Tensor, target: Tensor, head: Head) -> Tensor:
    """The logit of each row's target (n,), limited to the row's log-sum-exp."""
    logits = torch.linalg.vecdot(hidden.float(), head.weight[target].float())
    if head.bias is not None:
        logits += head.bias[target]
    return head.to_logits_(logits)


def _inputs(hidden: Tensor, target: Tensor, spec: RowSpec) -> tuple[Any, ...]:
    head = spec.head
    return hidden, head.weight, head.bias, target, *conditions(head), spec.label_smoothing, spec.z_loss


def _up_to_multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


CPP = StreamedRows("cpp")

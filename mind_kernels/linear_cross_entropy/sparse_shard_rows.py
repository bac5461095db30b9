"""The sparse pass over rows for a head that is split over the vocabulary; a backend supplies `SparseShardKernels`.

The same entries are kept as on one device: those above the threshold of the whole row, and the target's, each in the
process that has it. Each chunk of rows needs two collectives. The first is that of the exact pass, after which every
process knows the sums of whole rows (`shard_rows.join`). With them it counts the kept entries of its shard, and sums
the probability of the others. The second collective gathers both, so that all processes make the same decision: to
compute the gradient from the kept entries, or the exact one. On a GPU, the logits of the next chunk are computed while
the sums are exchanged, and those of the chunk after it while the counts are, so that three chunks of logits are in
memory.

The dropped part of a row is replaced by D_r q, as on one device, with D_r of the whole row and q over the whole
vocabulary, of which each process has its shard's part. D_r is the dropped probability times its factor in the gradient.
With entropy weights it is the difference between the row's known sum and the kept gradients of all processes, which
needs one more collective per call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients
from mind_kernels.linear_cross_entropy import extra_stats
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import Counted, EntryKernels, HostSums
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums, ShardKernels
from mind_kernels.linear_cross_entropy.shard_rows import JoinedRows, gather, join
from mind_kernels.row_chunks import Rows, chunks, rows_per_chunk
from mind_kernels.shards import Shard
from mind_kernels.sparse_gradient import ByColumn, Entries, SparseGradient, offsets_of, sampled_rows, worth_it


class SparseShardKernels(ShardKernels, EntryKernels, Protocol):
    """The kernels that a backend has to supply for the sparse gradient of a shard; targets may be -1."""

    def count_shard(self, logits: Tensor, target: Tensor, joined: JoinedRows, spec: RowSpec) -> Counted:
        """Counts kept and dropped entries of this shard's projected logits (n, V_r), which are not changed. Kept are
        entries with z > joined.lse_others + spec.log_threshold, and the target's. The values and `others` are those of
        the whole rows."""
        ...

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        """See `sparse_gradient.Gather`."""
        ...

    def sort_entries(self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int) -> ByColumn:
        """See `sparse_gradient.Sort`."""
        ...


@dataclass
class _Chunk:
    """A chunk of n rows, and the results for it so far."""

    rows: Rows
    sample: range  # the positions of the rows for the background distribution
    hidden: Tensor  # (n, D)
    target: Tensor  # (n,) of this shard, or -1
    logits: Tensor  # (n, V_r)
    joined: JoinedRows
    counted: Counted  # of this shard
    kept: Tensor  # (n,), of whole rows, as the following ones
    dropped_mass: Tensor  # (n,)
    sums: HostSums


@dataclass
class _Collected:
    """A chunk whose gradient is computed from its kept entries, at the end."""

    rows: Tensor  # (n,) int64
    entries: Entries | None  # None for an empty shard
    residual: Tensor  # (n,), the sum of what is left out; this process's part, if it has to be summed over the group
    uniform: Tensor | None


def run_sparse_shards(
    kernels: SparseShardKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,) in [0, V)
    weights: RowWeights | None,  # None: statistics only
    spec: RowSpec,  # of this shard's head
    terms: RowTerms,
    gradients: HeadGradients,
    extra: str,
    shard: Shard,
) -> None:
    """Fills `terms` for the rows, with the `extra` statistics, and adds their gradient products: the shard's, and the
    shard's part of dH."""
    _Pass(kernels, hidden, target, weights, spec, terms, gradients, extra, shard).run(rows)


class _Pass:
    def __init__(
        self,
        kernels: SparseShardKernels,
        hidden: Tensor,
        target: Tensor,
        weights: RowWeights | None,
        spec: RowSpec,
        terms: RowTerms,
        gradients: HeadGradients,
        extra: str,
        shard: Shard,
    ) -> None:
        self._extra = extra
        self._kernels, self._hidden, self._target, self._weights = kernels, hidden, target, weights
        self._spec, self._terms, self._gradients, self._shard = spec, terms, gradients, shard
        self._sparse = SparseGradient(spec.head, hidden) if shard.size else None
        self._collected: list[_Collected] = []

    def run(self, rows: Tensor | int) -> None:
        under_way: deque[Iterator[None]] = deque()
        for chunk in self._chunks(rows):
            under_way.append(chunk)
            next(chunk)
            if not _overlaps(self._hidden):
                _complete(under_way.popleft())
            elif len(under_way) == 2:
                next(under_way[0])
            elif len(under_way) == 3:
                oldest = under_way.popleft()
                next(oldest)
                next(under_way[0])  # queued behind the numbers that the host reads: the GPU has work meanwhile
                _complete(oldest)
        for chunk in under_way:
            _complete(chunk)
        self._finish()

    def _chunks(self, rows: Tensor | int) -> Iterator[Iterator[None]]:
        hidden = self._hidden
        size = rows_per_chunk(self._shard.largest, hidden.device, hidden.element_size(), sparse=True)
        start, total = 0, rows if isinstance(rows, int) else rows.numel()
        for chunk in chunks(rows, size):
            count = min(size, total - start)
            yield self._steps(chunk, sampled_rows(start, count, total))
            start += count

    def _steps(self, rows: Rows, sample: range) -> Iterator[None]:
        """The steps for a chunk; between them data are sent to other processes or to the host."""
        spec, shard, hidden, kernels = self._spec, self._shard, self._hidden[rows], self._kernels
        target = shard.local(self._target[rows])
        logits = spec.head.project(hidden)
        sums = kernels.shard_sums(logits, target, spec) if shard.size else RowSums.empty(len(hidden), hidden)
        gathered = gather(sums, shard, extra_stats.sums_of_shard(logits, spec.head, self._extra))
        yield
        joined = join(gathered.wait(), self._target[rows], spec, shard, self._extra)
        self._terms.write(rows, joined.values)
        self._terms.extra.write(rows, joined.extra, self._extra)
        counted = kernels.count_shard(logits, target, joined, spec) if shard.size else _nothing(joined)
        gathered = shard.gather(torch.stack([counted.kept.to(joined.others.dtype), counted.dropped_mass]))
        yield
        kept, dropped_mass = gathered.wait().sum(0)
        on_host = HostSums(kept, dropped_mass, joined.others, joined.values.lse, counted.kept)
        yield
        self._take_gradient(_Chunk(rows, sample, hidden, target, logits, joined, counted, kept, dropped_mass, on_host))

    def _take_gradient(self, chunk: _Chunk) -> None:
        """Computes the gradient of a chunk, sparse or exact."""
        spec, vocabulary, device = self._spec, self._shard.vocabulary, self._hidden.device
        kept, share = chunk.sums.means()
        use_entries = spec.suits_entries and worth_it(kept, share, vocabulary, device)
        self._terms.kept_entries[chunk.rows] = chunk.kept.long() if use_entries else vocabulary
        self._terms.dropped_mass[chunk.rows] = chunk.dropped_mass if use_entries else 0
        if self._weights is None:
            return
        weights = self._weights[chunk.rows]
        self._add_background(chunk, weights.magnitude())
        terms = chunk.joined.terms(weights, spec, vocabulary)
        if use_entries:
            self._collect(chunk, weights, terms)
        elif self._shard.size:
            self._kernels.shard_gradient_(chunk.logits, chunk.target, terms, spec)
            self._gradients.add(chunk.rows, chunk.hidden, chunk.logits)

    def _add_background(self, chunk: _Chunk, weight: Tensor) -> None:
        """Adds the background of sampled rows without nan or infinity, also if the chunk's own gradient is exact:
        others may drop entries."""
        if self._sparse is None or not chunk.sample:
            return
        sample = torch.arange(chunk.sample.start, chunk.sample.stop, chunk.sample.step, device=weight.device)

        def background(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            normalizer, spec = chunk.counted.normalizer, self._spec
            found = self._kernels.background(chunk.logits, rows, chunk.target, normalizer, weight, spec)
            return found, weight @ chunk.dropped_mass[rows]

        self._sparse.add_sample(sample, weight[sample], chunk.joined.values.lse, background)

    def _collect(self, chunk: _Chunk, weights: RowWeights, terms: GradientTerms) -> None:
        rows, spec, values = chunk.rows, self._spec, chunk.joined.values
        rows = torch.arange(rows.start, rows.stop, device=values.lse.device) if isinstance(rows, slice) else rows
        of_kernel, found = weights.of_kernel, None
        residual = terms.a * chunk.dropped_mass
        if of_kernel.entropy is not None:  # one process adds the known sum, all subtract their kept entries
            residual = of_kernel.total(values.lse, spec) if self._shard.rank == 0 else torch.zeros_like(residual)
        if self._shard.size:
            counts = chunk.counted.kept
            found = self._kernels.entries(
                chunk.logits,
                chunk.target,
                chunk.counted.normalizer,
                values,
                of_kernel,
                spec,
                offsets_of(counts),
                chunk.sums.kept(),
            )
            found = Entries(counts, found.columns, found.values, found.kept_sum)
            if weights.lse is not None:
                # Of the target's own logit: as lse - nll, a small one would lose its digits.
                at_target = chunk.logits.gather(1, chunk.target.clamp(min=0)[:, None]).squeeze(1)
                logit = spec.head.to_logits(at_target.to(values.lse.dtype))
                found.put_at(chunk.target, terms.at_target * spec.head.slope(logit))
            if of_kernel.entropy is not None:
                residual = residual - found.kept_sum
        self._collected.append(_Collected(rows, found, residual, terms.uniform))

    def _finish(self) -> None:
        """Adds the gradient of everything collected."""
        collected = self._collected
        if not collected:
            return
        residuals = [each.residual for each in collected]
        if self._weights is not None and self._weights.entropy is not None:
            residuals = self._shard.sum_(torch.cat(residuals)).split([len(part) for part in residuals])
        if self._sparse is None:
            return
        for each, residual in zip(collected, residuals, strict=True):
            assert each.entries is not None
            self._sparse.add(each.rows, each.entries, residual[:, None], each.uniform)
        self._sparse.finish(self._hidden, self._gradients, self._kernels.gather_rows, self._kernels.sort_entries)


def _overlaps(hidden: Tensor) -> bool:
    """Whether several chunks are processed at a time: on a CPU they would compete for the caches."""
    return hidden.is_cuda


def _complete(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def _nothing(joined: JoinedRows) -> Counted:
    """The counts of an empty shard."""
    zeros = torch.zeros_like(joined.others)
    return Counted(joined.values, zeros, zeros.long(), zeros, joined.others)

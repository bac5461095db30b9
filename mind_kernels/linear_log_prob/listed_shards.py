"""The loop of `listed` (several ids or a temperature per row) for a head that is split over the vocabulary.

The likeliest id is known only after all processes have exchanged their logits of the ids: with several ids a chunk
needs two collectives, one after the other, else one. Peak memory: that of `listed`, on a GPU twice as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients, scale_
from mind_kernels.linear_cross_entropy import extra_stats
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms
from mind_kernels.linear_cross_entropy.shard_contract import RowSums, ShardKernels
from mind_kernels.linear_cross_entropy.shard_rows import gather, join
from mind_kernels.linear_log_prob.listed import Ids, KnownIds, ListWeights, itemsize_of
from mind_kernels.row_chunks import Rows, accumulation_dtype, rows_per_chunk, write_rows
from mind_kernels.shards import Gathered, Shard, run_ahead


@dataclass(frozen=True)
class _Started:
    """A chunk of rows whose sums are being exchanged."""

    logits: Tensor  # (n, V_r)
    slope: Tensor | float  # of the logits, if the kernel does not apply it
    spec: RowSpec  # the spec for the kernel
    known: KnownIds
    sums: Gathered


def run_listed_shards(
    kernels: ShardKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    listed: Ids,  # of all N rows
    temperature: Tensor | None,  # (N,), with a head whose own is 1
    weights: ListWeights | None,  # divided by the temperature; None: statistics only
    spec: RowSpec,  # of this shard's head
    log_prob: Tensor,  # (N, K)
    terms: RowTerms,
    gradients: HeadGradients,
    extra: str,
    shard: Shard,
) -> None:
    """Fills `log_prob` and `terms` for the rows, and adds their gradient products, for dH the shard's part."""
    head = spec.head

    def start(chunk: Rows, part: Tensor) -> _Started:
        of_chunk, slope = spec, 1.0
        if temperature is None:
            logits = head.project(part)
        else:  # softcap and temperature have been applied to the kernel's logits
            logits, of_chunk = head.to_logits_(head.project_wide(part)), RowSpec(Head(head.weight))
            if weights is not None:
                slope = head.slope(logits)
            logits.div_(temperature[chunk, None])
        ids = listed[chunk]
        known = KnownIds(ids, _logits_of(shard.local(ids.ids), logits, of_chunk.head, shard), shard.vocabulary)
        local = shard.local(known.likeliest)
        sums = kernels.shard_sums(logits, local, of_chunk) if shard.size else RowSums.empty(len(part), logits)
        more = extra_stats.sums_of_shard(logits, of_chunk.head, extra)
        return _Started(logits, slope, of_chunk, known, gather(sums, shard, more))

    def finish(chunk: Rows, part: Tensor, started: _Started) -> None:
        known, of_chunk, logits = started.known, started.spec, started.logits
        joined = join(started.sums.wait(), known.likeliest, of_chunk, shard, extra)
        terms.extra.write(chunk, joined.extra, extra)
        write_rows([*terms.values, log_prob], chunk, [*joined.values, known.log_prob(-joined.values.nll)])
        if weights is None or not shard.size:
            return
        of_rows = weights[chunk]
        of_gradient = joined.terms(of_rows.rows, of_chunk, shard.vocabulary)
        at_likeliest = known.at_likeliest(of_rows, joined.values)
        kernels.shard_gradient_(
            logits, shard.local(known.likeliest), of_gradient._replace(at_target=at_likeliest), of_chunk
        )
        local, added = shard.local(listed.ids[chunk]), known.of_others(of_rows, of_chunk.head)
        logits.scatter_add_(1, local.clamp(min=0), torch.where(local >= 0, added, 0).to(logits.dtype))
        gradients.add(chunk, part, scale_(logits, started.slope))

    size = rows_per_chunk(shard.largest, hidden.device, itemsize_of(hidden, head, temperature))
    run_ahead(rows, size, hidden, start, finish)


def _logits_of(local: Tensor, logits: Tensor, head: Head, shard: Shard) -> Tensor:
    """The logits (n, K) of ids, given as entries of this shard or -1, in all processes, in the accumulation dtype.
    Zeros for one id per row, since there is nothing to compare."""
    wide = accumulation_dtype(logits.dtype)
    found = logits.new_zeros(local.shape, dtype=wide)
    if local.shape[1] == 1:
        return found
    if shard.size:
        found = torch.where(local >= 0, head.to_logits(logits.gather(1, local.clamp(min=0)).to(wide)), 0)
    return shard.sum_(found)

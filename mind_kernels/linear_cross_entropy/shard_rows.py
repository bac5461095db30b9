"""The exact pass over rows for a head that is split over the vocabulary; a backend supplies `ShardKernels`.

For each chunk: the logits of the shard (product 1), their sums, and one collective that gathers the sums of all
processes. Then as on one device: the gradient in place of the logits, and two products, for the shard's rows of dW and
for its part of dH, which the caller sums over the group. Every chunk makes that collective, whatever is needed of it.
Peak memory: one chunk of logits (two on a GPU) beside the gradients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients
from mind_kernels.linear_cross_entropy import extra_stats
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.shard_contract import (
    ExactShards,
    GradientTerms,
    OwnShardProducts,
    RowSums,
    ShardKernels,
    StreamedShards,
)
from mind_kernels.row_chunks import Rows, chunks, rows_per_chunk
from mind_kernels.shards import Gathered, Shard, chunks_ahead, run_ahead


class JoinedRows(NamedTuple):
    """Values of n whole rows, (n,) each."""

    values: RowValues
    maximum: Tensor
    log_total: Tensor  # lse - maximum
    others: Tensor  # 1 - p_y, without cancellation
    lse_others: Tensor  # log-sum-exp without the target; inf if all others have probability 0, so that none is above it
    here: Tensor  # the probability of this shard's entries but the target's
    extra: dict[str, Tensor]  # extra statistics by name; may have more than those requested

    def terms(self, weights: RowWeights, spec: RowSpec, vocabulary: int) -> GradientTerms:
        """The terms of the gradient for the rows' weights; `vocabulary` is V."""
        a, b, at_target = weights.of_kernel.coefficients(self.values, self.others, spec)
        if weights.lse is not None:
            at_target = weights.at_target(self.values)
        uniform = weights.uniform(spec, vocabulary)
        return GradientTerms(self.maximum, self.log_total, a, b, at_target, uniform)


def gather(sums: RowSums, shard: Shard, more: Sequence[Tensor] = ()) -> Gathered:
    """Starts to gather the sums of all processes, and `more` numbers per row, for `join`."""
    dtype = sums.maximum.dtype
    argmax = sums.argmax if dtype == torch.float64 else sums.argmax.int()
    return shard.gather(torch.stack([*sums[:-1], argmax.view(dtype), *more]))  # gathering does not change bits


def join(gathered: Tensor, target: Tensor, spec: RowSpec, shard: Shard, extra: str = "") -> JoinedRows:
    """The values of whole rows, from the sums of all processes in the format of `gather`, and targets (n,) in [0, V).

    With `extra` statistics, `more` has to be the sums that they need."""
    sums, more = gathered.split([len(RowSums._fields), gathered.shape[1] - len(RowSums._fields)], 1)
    maximum, others, moment, at_target, z_sum, argmax = sums.unbind(1)  # (processes, n) each
    first = argmax.view(torch.int64 if argmax.dtype == torch.float64 else torch.int32) + shard.starts[:, None]
    owner = shard.owner(target)[None]
    z_y = at_target.gather(0, owner).squeeze(0)
    top = maximum.amax(0)
    below, of_target = z_y - top, (z_y - top).exp()
    distance = maximum - top  # minus infinity if a shard has no probability
    scale = distance.exp()
    others_of_shard = others * scale  # in units of e^top
    shard_total = others_of_shard.scatter_add(0, owner, of_target[None])
    moments = torch.where(scale == 0, 0, scale * moment + distance * shard_total).sum(0)
    others = others_of_shard.sum(0)
    total = others + of_target
    log_total = torch.where(below == 0, others.log1p(), total.log())
    nll = log_total - below
    lse = torch.where(top == -torch.inf, top, log_total + top)
    loss = nll
    if spec.label_smoothing:
        mean = log_total - (z_sum.sum(0) / shard.vocabulary - top)
        loss = (1 - spec.label_smoothing) * nll + spec.label_smoothing * mean
    if spec.z_loss:
        loss = loss + spec.z_loss * lse.square()
    largest = (maximum == top) | maximum.isnan()
    predicted = torch.where(largest, first, shard.vocabulary - 1).amin(0)
    correct = (predicted == target) & nll.isfinite()
    values = RowValues(loss, nll, lse, log_total - moments / total, correct)
    lse_others = torch.where(others > 0, top + others.log(), torch.inf)
    here = others_of_shard[shard.rank] / total
    found = extra_stats.join(more, maximum, shard.vocabulary, extra) | {"predicted": predicted}
    return JoinedRows(values, top, log_total, others / total, lse_others, here, found)


def run_shards(
    kernels: ShardKernels,
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
    count = rows if isinstance(rows, int) else rows.numel()
    if not extra and isinstance(kernels, OwnShardProducts):  # processes may differ in whether they have weights
        exact = kernels.exact_shards(count, hidden, spec, shard.largest)
        if exact is not None:
            _run_exact(exact, rows, hidden, target, weights, spec, terms, gradients, shard)
            return
    size = rows_per_chunk(shard.largest, hidden.device, hidden.element_size())
    if weights is None and not extra and isinstance(kernels, StreamedShards):
        _run_streamed(kernels, rows, size, hidden, target, spec, terms, shard)
        return
    memory = deque(hidden.new_empty(min(size, count), shard.size) for _ in range(1 + chunks_ahead(hidden)))

    def start(chunk: Rows, part: Tensor) -> tuple[Tensor, Gathered]:
        memory.rotate()
        logits = spec.head.project_into(part, memory[0][: len(part)])
        local = shard.local(target[chunk])
        sums = kernels.shard_sums(logits, local, spec) if shard.size else RowSums.empty(len(part), logits)
        return logits, gather(sums, shard, extra_stats.sums_of_shard(logits, spec.head, extra))

    def finish(chunk: Rows, part: Tensor, started: tuple[Tensor, Gathered]) -> None:
        logits, sums = started
        y = target[chunk]
        joined = join(sums.wait(), y, spec, shard, extra)
        terms.write(chunk, joined.values)
        terms.extra.write(chunk, joined.extra, extra)
        if weights is not None and shard.size:
            of_rows = joined.terms(weights[chunk], spec, shard.vocabulary)
            kernels.shard_gradient_(logits, shard.local(y), of_rows, spec)
            gradients.add(chunk, part, logits)

    run_ahead(rows, size, hidden, start, finish)


def rows_of_shard_(
    kernels: ShardKernels,
    logits: Tensor,  # (n, V_r), projected
    target: Tensor,  # (n,) in [0, V)
    weights: RowWeights | None,  # (n,)
    spec: RowSpec,
    shard: Shard,
) -> RowValues:
    """As `contract.RowKernels.row_kernel_`, for whole rows, by one collective: with weights, overwrites the logits by
    their gradient."""
    local = shard.local(target)
    sums = kernels.shard_sums(logits, local, spec) if shard.size else RowSums.empty(len(logits), logits)
    joined = join(gather(sums, shard).wait(), target, spec, shard)
    if weights is not None and shard.size:
        kernels.shard_gradient_(logits, local, joined.terms(weights, spec, shard.vocabulary), spec)
    return joined.values


def _run_exact(
    exact: ExactShards,
    rows: Tensor | int,
    hidden: Tensor,
    target: Tensor,
    weights: RowWeights | None,
    spec: RowSpec,
    terms: RowTerms,
    gradients: HeadGradients,
    shard: Shard,
) -> None:
    """`run_shards` with the backend's own products."""
    for chunk in chunks(rows, exact.size):
        part, y = hidden[chunk], target[chunk]
        found = exact.chunk(part, shard.local(y)) if shard.size else None
        sums = RowSums.empty(len(part), part) if found is None else found.sums
        joined = join(gather(sums, shard).wait(), y, spec, shard)
        terms.write(chunk, joined.values)
        if weights is not None and found is not None:
            of_rows = joined.terms(weights[chunk], spec, shard.vocabulary)
            gradients.write_products(chunk, len(part), partial(found.write_products, of_rows))


def _run_streamed(
    kernels: StreamedShards,
    rows: Tensor | int,
    size: int,
    hidden: Tensor,
    target: Tensor,
    spec: RowSpec,
    terms: RowTerms,
    shard: Shard,
) -> None:
    """`run_shards` for statistics only. The chunks are the same, since another process may need a gradient."""

    def start(chunk: Rows, part: Tensor) -> Gathered:
        local = shard.local(target[chunk])
        return gather(kernels.stream_sums(part, local, spec) if shard.size else RowSums.empty(len(part), part), shard)

    def finish(chunk: Rows, part: Tensor, sums: Gathered) -> None:
        terms.write(chunk, join(sums.wait(), target[chunk], spec, shard).values)

    run_ahead(rows, size, hidden, start, finish)

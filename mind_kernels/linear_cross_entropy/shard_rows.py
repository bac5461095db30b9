"""The exact pass over rows of a head that is split over the vocabulary; a backend supplies `ShardKernels`.

A chunk: logits of the shard (product 1), their sums, one collective that gathers the sums of all processes, and then as
on one device: the gradient in place and two products, for the shard's rows of dW and a part of dH that the caller sums
over the group. On a GPU the next chunk's logits are computed while the sums travel, so that two chunks of logits are in
memory. Every chunk makes one collective, whatever is needed of it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums, ShardKernels
from mind_kernels.row_chunks import Rows, chunks, rows_per_chunk
from mind_kernels.shards import Gathered, Shard


class JoinedRows(NamedTuple):
    """What is known of n whole rows, (n,) each."""

    values: RowValues
    maximum: Tensor
    log_total: Tensor  # lse - maximum
    others: Tensor  # 1 - p_y, without cancellation
    predicted: Tensor  # int64 in [0, V): the first of the largest entries

    def terms(self, weights: RowWeights, spec: RowSpec, vocabulary: int) -> GradientTerms:
        """Of the gradient for the rows' weights; `vocabulary` is V."""
        a, b, at_target = weights.of_kernel.coefficients(self.values, self.others, spec)
        if weights.lse is not None:
            at_target = weights.at_target(self.values)
        uniform = weights.loss * (spec.label_smoothing / vocabulary) if spec.label_smoothing else None
        return GradientTerms(self.maximum, self.log_total, a, b, at_target, uniform)


def gather(sums: RowSums, shard: Shard) -> Gathered:
    """Starts to gather the sums of all processes, for `join`."""
    dtype = sums.maximum.dtype
    argmax = sums.argmax if dtype == torch.float64 else sums.argmax.int()
    return shard.gather(torch.stack([*sums[:-1], argmax.view(dtype)]))  # a gather leaves the bits alone


def join(gathered: Tensor, target: Tensor, spec: RowSpec, shard: Shard) -> JoinedRows:
    """Whole rows from the sums of all processes, as `gather` has packed them, and targets (n,) in [0, V)."""
    maximum, others, moment, at_target, z_sum, argmax = gathered.unbind(1)  # (processes, n) each
    first = argmax.view(torch.int64 if argmax.dtype == torch.float64 else torch.int32) + shard.starts(target)[:, None]
    owner = shard.owner(target)[None]
    z_y = at_target.gather(0, owner).squeeze(0)
    top = maximum.amax(0)
    below, of_target = z_y - top, (z_y - top).exp()
    distance = maximum - top  # minus infinity where a shard has no probability
    scale = distance.exp()
    others = others * scale
    shard_total = others.scatter_add(0, owner, of_target[None])  # in units of e^top
    moments = torch.where(scale == 0, 0, scale * moment + distance * shard_total).sum(0)
    others = others.sum(0)
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
    predicted = torch.where(maximum == top, first, shard.vocabulary - 1).amin(0)
    correct = (predicted == target) & nll.isfinite()
    values = RowValues(loss, nll, lse, log_total - moments / total, correct)
    return JoinedRows(values, top, log_total, others / total, predicted)


class _Waiting(NamedTuple):
    """A chunk whose sums travel."""

    rows: Rows
    logits: Tensor
    hidden: Tensor
    sums: Gathered


def run_shards(
    kernels: ShardKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,) in [0, V)
    weights: RowWeights | None,  # None: statistics only
    spec: RowSpec,  # of this shard's head
    terms: RowTerms,
    gradients: HeadGradients,
    shard: Shard,
) -> None:
    """Fills `terms` for the rows, and adds their gradient products: the shard's, and the shard's part of dH."""
    size = rows_per_chunk(shard.largest, hidden.device, hidden.element_size())
    count = rows if isinstance(rows, int) else rows.numel()
    ahead = 1 if hidden.is_cuda else 0
    memory = deque(hidden.new_empty(min(size, count), shard.size) for _ in range(1 + ahead))
    waiting: deque[_Waiting] = deque()

    def finish(chunk: _Waiting) -> None:
        joined = join(chunk.sums.wait(), target[chunk.rows], spec, shard)
        terms.write(chunk.rows, joined.values)
        if weights is None or not shard.size:
            return
        of_rows = joined.terms(weights[chunk.rows], spec, shard.vocabulary)
        kernels.shard_gradient_(chunk.logits, shard.local(target[chunk.rows]), of_rows, spec)
        gradients.add(chunk.rows, chunk.hidden, chunk.logits)

    for chunk in chunks(rows, size):
        part = hidden[chunk]
        memory.rotate()
        logits = memory[0][: len(part)]
        if shard.size:
            spec.head.project_into(part, logits)
            sums = kernels.shard_sums(logits, shard.local(target[chunk]), spec)
        else:
            sums = RowSums.empty(len(part), hidden)
        waiting.append(_Waiting(chunk, logits, part, gather(sums, shard)))
        if len(waiting) > ahead:
            finish(waiting.popleft())
    while waiting:
        finish(waiting.popleft())

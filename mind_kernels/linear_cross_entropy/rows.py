"""The passes of linear cross-entropy over its rows, exact and sparse; a backend supplies the row kernels.

Exact: the loop of `row_loop`, with the backend's own products if it has them (`OwnProducts`). Sparse
(`gradient_threshold`): for each chunk logits, statistics and kept entries, and after the last chunk two gathers.
Kernels that stream (`STREAMED_CHUNKS`) first get the rows for the background distribution, as chunks of logits, and
then all others, with gathers whenever there are enough entries. Peak memory: one chunk of logits (two on a GPU for the
sparse gradient, so that it need not wait for the host) beside the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy.batch_rows import BatchPass
from mind_kernels.linear_cross_entropy.contract import (
    ExactRows,
    OwnProducts,
    RowKernels,
    RowSpec,
    RowTerms,
    RowValues,
    RowWeights,
    SparseRows,
)
from mind_kernels.linear_cross_entropy.shard_rows import run_shards
from mind_kernels.linear_cross_entropy.sparse_shard_rows import SparseShardKernels, run_sparse_shards
from mind_kernels.row_chunks import Rows, chunks, row_weights, rows_per_chunk, without_spoilt
from mind_kernels.row_loop import loss_of_rows, run_rows
from mind_kernels.shards import Shard
from mind_kernels.sparse_gradient import MOST_ENTRIES, SparseGradient, sampled_rows, worth_it


def forward(
    kernels: Any,  # RowKernels; for a shard ShardKernels
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,), on the CPU or on the device of hidden
    row_weight: Tensor | None,  # (N,)
    spec: RowSpec,
    needs: list[bool],
    *,
    ignore_index: int,
    reduction: str,
    extra: str,
    shard: Shard | None = None,
) -> tuple[Tensor, RowTerms, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' terms, and the gradients that are needed.

    For a shard, the gradient of the hidden states is the shard's part."""
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=spec.is_sparse, extra=extra)
    gradients = HeadGradients(hidden, spec.head, needs)
    valid, index = target != ignore_index, target.to(hidden.device).contiguous()
    weight = row_weights(row_weight, valid.to(hidden.device), hidden, reduction)
    spoilt = None
    if row_weight is not None and gradients.wanted:
        hidden, spoilt = without_spoilt(hidden, weight != 0)

    def run(rows: Tensor | int, scale: Tensor | None) -> None:
        weights = None if scale is None else RowWeights(scale)
        if shard is None:
            run_terms(kernels, rows, hidden, index, weights, spec, terms, gradients, extra, alone=True)
        else:
            run_shard_terms(kernels, rows, hidden, index, weights, spec, terms, gradients, extra, shard)

    loss = loss_of_rows(valid, weight, reduction, terms.values.loss, gradients, run, z_loss=spec.z_loss)
    if spoilt is not None:
        terms = terms._replace(values=terms.values.without(spoilt & valid.to(hidden.device)))
    return loss, terms, gradients


def run_terms(
    kernels: RowKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    weights: RowWeights | None,  # None: statistics only
    spec: RowSpec,
    terms: RowTerms,
    gradients: HeadGradients,
    extra: str = "",
    *,
    alone: bool = False,
) -> None:
    """Fills `terms` for the rows, with the `extra` statistics, and adds their gradient products. `alone`: nothing else
    adds to the gradients."""
    if spec.gradient_threshold is not None:
        _SparsePass(kernels, hidden, target, weights, spec, terms, gradients, extra).run(rows)
        return

    if spec.batch_threshold is not None and weights is not None:
        if hidden.shape[1]:
            BatchPass(kernels, hidden, target, weights.loss, spec, terms, gradients, extra).run(rows)
            return
        terms.kept_entries[slice(rows) if isinstance(rows, int) else rows] = spec.head.vocabulary
    size = rows_per_chunk(spec.head.vocabulary, hidden.device, hidden.element_size())
    if weights is None and not extra:

        def statistics(chunk: Rows, part: Tensor, weights: RowWeights | None) -> tuple[RowValues, None]:
            return kernels.statistics(part, target[chunk], spec), None

        run_rows(rows, kernels.STREAMED_CHUNKS * size, hidden, weights, statistics, terms.values, gradients)
        return
    count = rows if isinstance(rows, int) else rows.numel()
    if weights is not None and not extra and isinstance(kernels, OwnProducts):
        exact = kernels.exact_rows(count, hidden, spec)
        if exact is not None:
            _run_exact(exact, rows, hidden, target, weights, spec, terms, gradients)
            return
    if weights is not None:
        bytes_per_row = spec.head.vocabulary * hidden.element_size()
        size = gradients.rows_per_chunk(count, bytes_per_row, alone=alone)
    # All chunks use the same memory: on a CPU, fresh pages would add a fifth to the time of the product.
    memory = hidden.new_empty(min(size, count), spec.head.vocabulary)

    def kernel(chunk: Rows, part: Tensor, weights: RowWeights | None) -> tuple[RowValues, Tensor | None]:
        y = target[chunk]
        logits = spec.head.project_into(part, memory[: len(part)])
        terms.extra.read(chunk, logits, spec.head, extra)
        values = kernels.row_kernel_(logits, y, None if weights is None else weights.of_kernel, spec)
        if weights is None:
            return values, None
        _put_at_target(logits, part, y, weights, values, spec)
        return values, logits

    run_rows(rows, size, hidden, weights, kernel, terms.values, gradients)


def run_shard_terms(
    kernels: SparseShardKernels,
    rows: Tensor | int,
    hidden: Tensor,
    target: Tensor,
    weights: RowWeights | None,
    spec: RowSpec,  # of this shard's head
    terms: RowTerms,
    gradients: HeadGradients,
    extra: str,
    shard: Shard,
) -> None:
    """`run_terms` for a head that is split: the gradients are the shard's dW and db, and the shard's part of dH."""
    run = run_shards if spec.gradient_threshold is None else run_sparse_shards
    run(kernels, rows, hidden, target, weights, spec, terms, gradients, extra, shard)


def _run_exact(
    exact: ExactRows,
    rows: Tensor | int,
    hidden: Tensor,
    target: Tensor,
    weights: RowWeights,
    spec: RowSpec,
    terms: RowTerms,
    gradients: HeadGradients,
) -> None:
    """`run_terms` with the backend's own products."""

    def kernel(chunk: Rows, part: Tensor, weights: RowWeights | None) -> tuple[RowValues, None]:
        assert weights is not None
        found = exact.chunk(part, target[chunk])
        at_target = None if weights.lse is None else _at_target(weights, found.values, part, target[chunk], spec.head)
        gradients.write_products(chunk, len(part), partial(found.write_products, weights.of_kernel, at_target))
        return found.values, None

    run_rows(rows, exact.size, hidden, weights, kernel, terms.values, gradients)


def _at_target(weights: RowWeights, values: RowValues, hidden: Tensor, target: Tensor, head: Head) -> Tensor:
    """The gradient of the target's projected logit (n,), from hidden (n, D) and target (n,)."""
    gradient = weights.at_target(values)
    if head.softcap is None:
        return gradient / head.temperature
    # Not from lse - nll: a small logit would lose its digits.
    return gradient * head.slope(head.logits_of(target[:, None], hidden).squeeze(1))


def _put_at_target(
    dlogits: Tensor, hidden: Tensor, target: Tensor, weights: RowWeights, values: RowValues, spec: RowSpec
) -> None:
    """Adds the gradient of lse to a kernel's gradient (n, V) of projected logits."""
    if weights.lse is not None:
        at_target = _at_target(weights, values, hidden, target, spec.head)
        dlogits.scatter_(1, target[:, None], at_target[:, None].to(dlogits.dtype))


class _SparsePass:
    """Computes the gradient of a chunk from its kept entries if that is faster and accurate enough, else the exact
    one."""

    def __init__(
        self,
        kernels: RowKernels,
        hidden: Tensor,  # (N, D)
        target: Tensor,  # (N,)
        weights: RowWeights | None,
        spec: RowSpec,
        terms: RowTerms,
        gradients: HeadGradients,
        extra: str,
    ) -> None:
        self._extra = extra
        self._kernels, self._hidden, self._target = kernels, hidden, target
        self._weights, self._spec, self._terms, self._gradients = weights, spec, terms, gradients
        self._sparse = SparseGradient(spec.head, hidden)
        self._size = rows_per_chunk(spec.head.vocabulary, hidden.device, hidden.element_size(), sparse=True)
        # True for extra statistics, and after a chunk had to use the exact gradient.
        self._needs_logits = bool(extra)

    def run(self, rows: Tensor | int) -> None:
        hidden, pending = self._hidden, []
        for chunk, sample in self._visits(rows):
            keep_logits = bool(sample) or self._needs_logits
            found = self._kernels.sparse_rows(hidden[chunk], self._target[chunk], self._spec, keep_logits)
            self._terms.write(chunk, found.values)
            if self._extra:
                self._terms.extra.read(chunk, found.logits(), self._spec.head, self._extra)
            pending.append((chunk, found, sample))
            # The host reads the means of a chunk when the GPU is already computing the next one.
            if hidden.device.type == "cpu" or len(pending) == 2:
                self._take_gradient(*pending.pop(0))
            if self._kernels.STREAMED_CHUNKS > 1 and not sample and self._sparse.collected > MOST_ENTRIES:
                self._finish(last=False)
        for waiting in pending:
            self._take_gradient(*waiting)
        self._finish(last=True)

    def _finish(self, *, last: bool) -> None:
        kernels = self._kernels
        self._sparse.finish(self._hidden, self._gradients, kernels.gather_rows, kernels.sort_entries, last=last)

    def _visits(self, rows: Tensor | int) -> Iterator[tuple[Rows, range]]:
        """The chunks of the rows, and the positions in them of the rows for the background distribution."""
        kernels, total = self._kernels, rows if isinstance(rows, int) else rows.numel()
        if kernels.STREAMED_CHUNKS == 1:
            start = 0
            for chunk in chunks(rows, kernels.SPARSE_CHUNKS * self._size):
                count = chunk.stop - chunk.start if isinstance(chunk, slice) else chunk.numel()
                yield chunk, sampled_rows(start, count, total)
                start += count
            return
        every = torch.arange(rows, device=self._hidden.device) if isinstance(rows, int) else rows
        step = sampled_rows(0, total, total).step
        sample = every[::step].contiguous()
        for chunk in chunks(sample, kernels.SPARSE_CHUNKS * self._size):
            yield chunk, range(chunk.numel())
        # All others, without a mask, for which the host would have to wait for a GPU.
        index = torch.arange(total - sample.numel(), device=every.device)
        rest = every[index + index // max(1, step - 1) + 1]
        while rest.numel():  # only now is it known whether the last chunk needed the exact gradient
            at_once = kernels.SPARSE_CHUNKS if self._needs_logits else kernels.STREAMED_CHUNKS
            yield rest[: at_once * self._size], range(0)
            rest = rest[at_once * self._size :]

    def _take_gradient(self, chunk: Rows, found: SparseRows, sample: range) -> None:
        """Computes the gradient of a chunk, sparse or exact; `sample`: the positions of its rows for the background
        distribution."""
        spec, vocabulary, device = self._spec, self._spec.head.vocabulary, self._hidden.device
        kept, share = found.means()
        use_entries = spec.suits_entries and worth_it(kept, share, vocabulary, device)
        self._needs_logits = bool(self._extra) or not use_entries
        self._terms.kept_entries[chunk] = found.kept if use_entries else vocabulary
        self._terms.dropped_mass[chunk] = found.dropped_mass if use_entries else 0
        if self._weights is None:
            return
        weights = self._weights[chunk]
        rows = torch.arange(chunk.start, chunk.stop, device=device) if isinstance(chunk, slice) else chunk
        if sample:  # also if the chunk's own gradient is exact, since other chunks may drop entries
            positions = torch.arange(sample.start, sample.stop, sample.step, device=device)
            self._sparse.add_sample(positions, weights.magnitude()[positions], found.values.lse, found.background)
        if not use_entries:
            for part in chunks(len(rows), self._size):
                self._add_exact(rows[part], part, found, weights[part])
            return
        of_kernel, target = weights.of_kernel, self._target[chunk]
        entries = found.entries(of_kernel)
        if weights.lse is not None:
            entries.put_at(target, _at_target(weights, found.values, self._hidden[chunk], target, spec.head))
        residual = of_kernel.total(found.values.lse, spec) - entries.kept_sum
        self._sparse.add(rows, entries, residual[:, None], of_kernel.uniform(spec))

    def _add_exact(self, rows: Tensor, part: slice, found: SparseRows, weights: RowWeights) -> None:
        """Adds the exact gradient of `part` of a chunk, which has these rows."""
        dlogits = found.dense(part, weights.of_kernel)
        values = RowValues(*(value[part] for value in found.values))
        hidden = self._hidden[rows]
        _put_at_target(dlogits, hidden, self._target[rows], weights, values, self._spec)
        self._gradients.add(rows, hidden, dlogits)

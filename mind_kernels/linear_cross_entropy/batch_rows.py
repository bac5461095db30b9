"""The sparse gradient for a batch as a whole (`gradient_error`): drops what is small relative to all rows' gradient.

`gradient_threshold` keeps the error of each row small relative to the row's own gradient, and so keeps as many entries
of a row that is nearly right as of one that is wrong. Here an entry is kept if |w_r| p_rv > t S, where S is the root
mean square of |w_r| (1 - p_ry) over a sample of the rows. This needs half as many entries for the same error of the
whole gradient; rows whose gradient is a thousandth of the others' lose most of it. Two more things make it cheap:

- The dropped part of a row is replaced separately in each span of the vocabulary (`SPAN`), by a background distribution
of the span times the row's exact sum there, which the pass over the logits computes. A tokenizer numbers its tokens
roughly by frequency, and the error with one distribution for all of them would mostly be in one direction, from rare to
frequent. Spans reduce the error of dH by a third.
- The gradient of the weight, whose error is a fourth, keeps only entries `WEIGHT_SHARE` times as large.

Everything else is as in sparse_gradient.py. First, S and the background are computed from the logits of about a hundred
sampled rows; then the lists of kept entries of all rows from their hidden states, one chunk at a time. Peak memory
beside the gradients: the logits of the sampled rows, and lists of about `_MOST_ENTRIES` entries at a time.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowKernels, RowSpec, RowTerms, RowWeights, SparseRows
from mind_kernels.row_chunks import chunks, rows_per_block, rows_per_chunk
from mind_kernels.sparse_gradient import (
    ByColumn,
    Entries,
    SparseGradient,
    is_too_coarse,
    most_of_batch,
    sampled_of_batch,
    worth_it_in_batch,
)

# When so many entries are collected, their gradients are computed: 28 bytes per entry while they are sorted.
_MOST_ENTRIES = 1 << 24

SPAN = 6144
"""Vocabulary entries per span, whose dropped part is replaced separately: kSpan of csrc/cpu/kernels.h."""

WEIGHT_SHARE = 4
"""How much larger an entry has to be for the gradient of the weight, whose error is then that of the hidden states'."""


class BatchRows(SparseRows, Protocol):
    """A chunk of n rows, like `SparseRows` but without `background` and `logits`."""

    span_mass: Tensor
    """(n, spans), the part of dropped_mass in each `SPAN` entries of the vocabulary."""

    def small_entries(self, weights: RowWeights, least: float) -> tuple[Entries, Tensor]:
        """`entries`; and (n, spans): the sum of d(loss) / dz over those whose value is no larger than `least`."""
        ...


@runtime_checkable
class BatchKernels(Protocol):
    """The kernels that a backend needs for this, in addition to `RowKernels`."""

    def listed_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec, log_cuts: Tensor, most: int) -> BatchRows:
        """The kept entries of rows with hidden (n, D) and target (n,): the target's, and those with log p > log_cuts
        (n,).

        If there are more than `most` candidates per row on average, none are collected, and `means` says V.
        """
        ...

    def sort_large_entries(
        self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int, least: float
    ) -> ByColumn:
        """`sort_entries` of only those entries whose absolute value is larger than `least`."""
        ...


class BatchPass:
    """Computes the gradient of all rows of a batch."""

    def __init__(
        self,
        kernels: RowKernels,
        hidden: Tensor,  # (N, D)
        target: Tensor,  # (N,)
        weight: Tensor,  # (N,)
        spec: RowSpec,
        terms: RowTerms,
        gradients: HeadGradients,
        extra: str,
    ) -> None:
        assert isinstance(kernels, BatchKernels) and spec.batch_threshold is not None
        self._kernels, self._hidden, self._target, self._weight = kernels, hidden, target, weight
        self._spec, self._terms, self._gradients, self._extra = spec, terms, gradients, extra
        self._threshold, self._least = spec.batch_threshold, 0.0
        self._sparse = SparseGradient(spec.head, hidden, SPAN)
        self._size = rows_per_chunk(spec.head.vocabulary, hidden.device, hidden.element_size(), sparse=True)

    def run(self, rows: Tensor | int) -> None:
        rows = torch.arange(rows, device="cpu") if isinstance(rows, int) else rows
        if len(rows) == 0:
            return
        log_cuts = self._log_cuts(rows)
        for chunk in chunks(torch.arange(len(rows), device="cpu"), self._kernels.STREAMED_CHUNKS * self._size):
            self._take(rows[chunk], log_cuts[chunk])
            if self._sparse.collected > _MOST_ENTRIES:
                self._finish(last=False)
        self._finish(last=True)

    def _finish(self, *, last: bool) -> None:
        sort = partial(self._kernels.sort_large_entries, least=self._least)
        self._sparse.finish(self._hidden, self._gradients, self._kernels.gather_rows, sort, last=last)

    def _log_cuts(self, rows: Tensor) -> Tensor:
        """(n,): the log of the probability above which an entry of the rows (n,) is kept; collects the background
        too."""
        spec, sample = self._spec, rows[sampled_of_batch(len(rows))]
        projected = spec.head.project_wide(self._hidden[sample])
        target, size = self._target[sample], self._weight[sample].abs()
        values = self._kernels.row_kernel_(projected, target, None, spec)
        known = values.lse.isfinite() & size.isfinite() & ~is_too_coarse(values.lse)  # the others would spoil every row
        projected, target, size = projected[known], target[known], size[known]
        lse, others = values.lse[known, None], -torch.expm1(-values.nll[known])
        mean = (size * others).double().square().mean().nan_to_num(0).sqrt()  # without any such row, everything is kept
        least = WEIGHT_SHARE * self._threshold * float(mean) / spec.head.temperature
        self._least = min(least, torch.finfo(torch.float32).max)
        log_cut = math.log(self._threshold) + mean.log()
        log_cuts = (log_cut - self._weight[rows].abs().double().log()).float()
        log_p = (log_cut - size.double().log()).float()
        for block in chunks(len(size), rows_per_block(spec.head.vocabulary, projected.device)):
            z = spec.head.to_logits(projected[block])
            dropped = torch.where(z > lse[block] + log_p[block, None], 0, (z - lse[block]).exp_())
            dropped.scatter_(1, target[block, None], 0)
            mass = torch.cat([size[None, block] @ part.sum(1) for part in dropped.split(SPAN, 1)])
            self._sparse.add_background(size[block] @ dropped.mul_(spec.head.slope(z)), mass)
        return log_cuts

    def _take(self, rows: Tensor, log_cuts: Tensor) -> None:
        """Computes the statistics and collects the gradient of rows (n,)."""
        spec, vocabulary, hidden, target = (
            self._spec,
            self._spec.head.vocabulary,
            self._hidden[rows],
            self._target[rows],
        )
        most = most_of_batch(vocabulary)
        found = self._kernels.listed_rows(hidden, target, spec, log_cuts, math.ceil(2 * most))
        weights = RowWeights(self._weight[rows])
        self._terms.write(rows, found.values)
        if self._extra:
            for part in chunks(len(rows), self._size):
                self._terms.extra.read(rows[part], spec.head.project(hidden[part]), spec.head, self._extra)
        kept, _ = found.means()
        if not worth_it_in_batch(
            kept, weights.loss.abs(), found.dropped_mass, found.values.lse, found.values.nll, most
        ):
            self._terms.kept_entries[rows] = vocabulary
            for part in chunks(len(rows), self._size):
                self._gradients.add(rows[part], hidden[part], found.dense(part, weights[part]))
            return
        self._terms.kept_entries[rows], self._terms.dropped_mass[rows] = found.kept, found.dropped_mass
        entries, small_sum = found.small_entries(weights, self._least)
        per_mass = weights.loss * (1 + 2 * spec.z_loss * found.values.lse)
        residual = per_mass[:, None] * found.span_mass
        self._sparse.add(rows, entries, residual, weights.uniform(spec), residual + small_sum)

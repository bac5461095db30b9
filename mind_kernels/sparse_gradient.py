"""The sparse gradient: keeps a few entries per row, corrects for the others, and gathers rows of W and H.

With a trained model, most entries of the gradient of a row's loss with respect to its logits are almost zero: a few
tokens hold nearly all the probability. Entries with p_v > threshold (1 - p_y), and the target's, are kept and computed
exactly. The dropped part of row r is replaced by D_r q, where D_r is its exact sum, and q a background distribution for
the whole batch, the mean dropped probability of about 256 sampled rows. So rows still sum to zero. dH and dW become
gathers of a few rows of W and H, plus an outer product of rank one (two with label smoothing, whose uniform part is
exact).

1 - p_y, the probability of all entries but the target's, is the size of the row's gradient p - y: half its L1 norm.
Since the threshold is a share of it, at most 1 / threshold entries are kept beside the target, and the error of each
row is bounded, however confident the row is: the entries e_v of the dropped part sum to D <= 1 - p_y, and each is at
most threshold (1 - p_y), so |e|_2 <= (threshold D / (1 - p_y))^1/2 |p - y|_2 even without the correction. No step may
cancel: 1 - p_y is a sum without the target, the target's gradient is computed from it, and D_r from the kept gradient
(see `RowWeights.coefficients`).

The size is taken as 1 - p_y with every option, for d(loss) / dz, before the slope of a softcap. A z-loss scales all
entries but the target's by the same factor, a temperature all of them. Label smoothing's uniform part is exact, and at
least a third of the L1 norm remains if no more is dropped than `worth_it` allows. For an entropy H, a dropped entry's
gradient is its probability times |log p_v + H|, and so is its error.

Peak memory: 12 bytes per kept entry, and 20 (backend `cpp`) or about 40 while they are sorted by column. A pass that
samples its rows first need not collect the entries of all rows: see `MOST_ENTRIES`. If there are too many entries or
too much dropped mass, the caller computes the dense gradient instead: see `worth_it`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients
from mind_kernels.row_chunks import accumulation_dtype, chunks, gradient_dtype, rows_per_block

# Number of sampled rows for the background distribution: this many up to twice as many.
SAMPLE_ROWS = 256
# At most this many with a threshold for the whole batch, for which the background matters less.
BATCH_SAMPLE_ROWS = 128
# Kept entries per row, as a share of V, above which two dense products are faster than two gathers. An entry costs 2 D
# elements of traffic, a dense row 4 V D flops, so the share depends on the ratio of bandwidth to arithmetic rate. On a
# CPU an entry costs 0.13 us (float32, D 576), sorting included, and a dense row of 49152 0.9 ms, as much as V / 7
# entries. The limit is half of that, since this ratio was measured on one processor: on another, an entry may cost
# twice as much in relation to a dense row.
_DENSITY_LIMIT = {"cpu": 1 / 16, "cuda": 1 / 256}
# The same for a threshold for the whole batch: there a small error needs lists so long that both take equally long.
_BATCH_DENSITY_LIMIT = 1 / 8
# The mean of `dropped_share` over a chunk's rows above which the correction is too inaccurate. Measured on real rows
# flattened by a temperature, at 2^-12: if 2 %, 17 %, 45 %, 69 % are dropped, the error of dH is 2.9e-3, 1.4e-2, 2.5e-2,
# 2.9e-2, and that of dense bfloat16 arithmetic 1.4e-2, 1.1e-2, 6.7e-3, 3.7e-3.
_MASS_LIMIT = 1 / 16

# Once a pass has collected more entries, and if no more is added to the background distribution, it computes their
# gradients. That reads and writes all of dW once more: 5.63 s in place of 5.60 (N 16384, V 49152, D 576, two cores with
# AVX2).
MOST_ENTRIES = 1 << 21

# A row with a smaller 1 - p_y counts as having no gradient: in float32, exponentials below 1e-38 are 0 or subnormal.
_NO_GRADIENT = 1e-30

Gather = Callable[..., None]
"""gather(values (n,), indices (n,), offsets (bags + 1,), matrix (m, D), left (bags, k), right (k, D), out (bags, D)):
out[b] = sum over offsets[b] <= i < offsets[b + 1] of values[i] matrix[indices[i]], plus left[b] @ right."""


class ByColumn(NamedTuple):
    """Entries sorted by column and, within one, by row."""

    offsets: Tensor  # (V + 1,) int64
    rows: Tensor  # (entries,) int32
    values: Tensor  # (entries,)


Sort = Callable[[Tensor, Tensor, Tensor, Tensor, int], ByColumn]
"""sort(rows (n,), offsets (n + 1,), columns (entries,), values (entries,), V): the entries of n rows by column; all of
them, or only those that the weight's gradient keeps."""


def dropped_share(dropped_mass: Tensor, others: Tensor, lse: Tensor) -> Tensor:
    """(n,): the dropped mass as a share of the size of a row's gradient, `others` = 1 - p_y; 0 if it has none, and
    infinite if `lse` cannot tell which entries to keep."""
    share = torch.where(others > _NO_GRADIENT, dropped_mass / others, 0)
    return share.masked_fill(is_too_coarse(lse), torch.inf)


def is_too_coarse(lse: Tensor) -> Tensor:
    """(n,) bool: rows whose log-sum-exp is so large, above 2^22 in float32, that its neighbors are more than half a nat
    away. An entry is kept if its logit exceeds a number near it."""
    return lse.isfinite() & (lse.abs() * torch.finfo(lse.dtype).eps > 0.5)


def worth_it(kept: float, share: float, vocabulary: int, device: torch.device) -> bool:
    """Whether a chunk gets the sparse gradient, given the means over its rows of kept entries and `dropped_share`."""
    return kept <= most_kept(vocabulary, device) and not share > _MASS_LIMIT


def most_kept(vocabulary: int, device: torch.device) -> float:
    """Kept entries per row up to which two gathers are faster than two dense products."""
    return _DENSITY_LIMIT["cpu" if device.type == "cpu" else "cuda"] * vocabulary


def most_of_batch(vocabulary: int) -> float:
    """`most_kept` for a threshold for the whole batch, on a CPU."""
    return _BATCH_DENSITY_LIMIT * vocabulary


def worth_it_in_batch(kept: float, weight: Tensor, dropped_mass: Tensor, lse: Tensor, nll: Tensor, most: float) -> bool:
    """`worth_it` for a threshold for the whole batch, on a CPU: the dropped share is that of all rows (n,) together,
    and at most `most` entries per row are kept."""
    others = -torch.expm1(-nll)
    share = float(weight @ dropped_mass) / max(float(weight @ others), _NO_GRADIENT)
    return kept <= most and not share > _MASS_LIMIT and not bool(is_too_coarse(lse).any())


def sampled_of_batch(total: int) -> Tensor:
    """Which of the `total` rows with a gradient are sampled first for a threshold for the whole batch, (m,) int64.

    In increasing order: one at a random place in each of m equal stretches, which depends on `total` only. Their size
    decides what is kept. Every k-th row would be a bad sample if rows repeat with period k, as in turns of equal
    length.
    """
    count = min(total, BATCH_SAMPLE_ROWS)
    edges = torch.arange(count + 1, device="cpu") * total // max(1, count)
    places = torch.rand(count, generator=torch.Generator().manual_seed(total), dtype=torch.float32, device="cpu")
    return edges[:-1] + (places.double() * edges.diff()).long()


def sampled_rows(start: int, count: int, total: int) -> range:
    """The rows of a chunk that are sampled for the background distribution, as positions in the chunk.

    The chunk has the rows start, ..., start + count - 1 of all `total` rows with a gradient, in the order in which they
    are visited. The first of all rows is sampled, and every k-th after it. They decide what replaces the dropped
    entries, not which are dropped, so it matters little if they are all of one kind.
    """
    stride = max(1, total // SAMPLE_ROWS)
    return range(-start % stride, count, stride)


@dataclass(frozen=True)
class Entries:
    """The kept entries of a chunk of n rows: d(loss) / d(projected logits), without a uniform part."""

    counts: Tensor  # (n,) int64, entries of each row, which follow one another in increasing column order
    columns: Tensor  # (entries,) int32
    values: Tensor  # (entries,), accumulation dtype
    kept_sum: Tensor  # (n,), their sum of d(loss) / dz, without a uniform part (see `RowWeights.coefficients`)

    def put_at(self, columns: Tensor, values: Tensor) -> None:
        """Replaces the entries of the rows in these columns (n,), which are kept entries, by values (n,).

        `kept_sum` need not change, since the sum over all entries does not either, and only their difference is used.
        """
        rows = torch.arange(len(columns), device=columns.device)
        rows = torch.repeat_interleave(rows, self.counts, output_size=self.columns.numel())
        self.values.copy_(torch.where(self.columns == columns[rows], values[rows], self.values))


class SparseGradient:
    """Collects the kept entries of many chunks and adds their dH, dW and db to a HeadGradients.

    The dropped part of a row is replaced separately in each span of `span` vocabulary entries, or by one distribution
    over the whole vocabulary.
    """

    collected: int
    """Entries that `finish` has not yet added to the gradients."""

    def __init__(self, head: Head, hidden: Tensor, span: int | None = None) -> None:
        dtype, device = accumulation_dtype(hidden.dtype), hidden.device
        self.head, self.collected = head, 0
        self._span = head.vocabulary if span is None else span
        self._rows: list[Tensor] = []
        self._entries: list[Entries] = []
        self._residual: list[Tensor] = []  # D_r, by span
        self._weight_residual: list[Tensor] = []  # the same for the gradient of the weight
        self._uniform: list[Tensor] = []  # subtracted from every logit of a row
        self._background = torch.zeros(head.vocabulary, dtype=dtype, device=device)
        self._background_mass = torch.zeros(-(-head.vocabulary // self._span), dtype=dtype, device=device)

    def add(
        self,
        rows: Tensor,
        entries: Entries,
        residual: Tensor,
        uniform: Tensor | None,
        weight_residual: Tensor | None = None,
    ) -> None:
        """Adds the entries of `rows` (n,) int64. residual (n, spans): the sum of the left-out d(loss) / dz over each
        span, without a uniform part. `weight_residual`: the same for the gradient of the weight, if its `sort` leaves
        out more."""
        self.collected += entries.columns.numel()
        self._rows.append(rows)
        self._entries.append(entries)
        self._residual.append(residual)
        self._weight_residual.append(residual if weight_residual is None else weight_residual)
        if uniform is not None:
            self._uniform.append(uniform)

    def add_background(self, background: Tensor, mass: Tensor) -> None:
        """Adds the weighted dropped probability (V,) of sampled rows, times the slope of the logits, and its sum
        (spans,) without the slope."""
        self._background += background
        self._background_mass += mass

    def add_sample(
        self,
        rows: Tensor,  # (m,) int64, the sampled rows of a chunk of n
        weight: Tensor,  # (m,)
        lse: Tensor,  # (n,)
        background: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        """Calls `add_background` with `background(rows, weight)`, but for rows with nan, infinity or a log-sum-exp that
        is too coarse: they would spoil the gradient of every row of the batch."""
        known = lse[rows].isfinite() & weight.isfinite() & ~is_too_coarse(lse[rows])
        # They are replaced by the first good row with weight 0, since selecting rows would make the host wait for a
        # GPU, as would an index without dimensions.
        rows = torch.where(known, rows, rows[known.int().argmax(keepdim=True)])
        found, mass = (torch.where(known.any(), value, 0) for value in background(rows, torch.where(known, weight, 0)))
        self.add_background(found, mass[None])

    def finish(
        self, hidden: Tensor, gradients: HeadGradients, gather: Gather, sort: Sort, *, last: bool = True
    ) -> None:
        """Adds everything collected to `gradients`, and forgets all but the background. `last`: no other gradient will
        be added."""
        if not self._rows:
            return
        rows = torch.cat(self._rows)
        counts, columns, values = (
            torch.cat([getattr(e, name) for e in self._entries]) for name in ("counts", "columns", "values")
        )
        offsets = offsets_of(counts)
        right = self._distributions()
        left = self._corrections(self._residual)
        if gradients.hidden is not None:
            out = hidden.new_empty(rows.numel(), hidden.shape[1], dtype=gradient_dtype(hidden.dtype))
            of_weight = _product(right, self.head.weight)
            for run in _runs(rows):
                part = offsets[run.start : run.stop + 1]
                _gather_and_correct(gather, values, columns, part, self.head.weight, left[run], of_weight, out[run])
            gradients.add_hidden(rows, out)
        if gradients.needs_weight:
            by_column = sort(rows, offsets, columns, values, self.head.vocabulary)
            of_weight = self._corrections(self._weight_residual)
            self._add_weight(hidden, rows, by_column, of_weight, right, gradients, gather, last)
        if gradients.bias is not None:
            gradients.bias.index_add_(0, columns, values)
            gradients.bias += left.sum(0) @ right
        for collected in (self._rows, self._entries, self._residual, self._weight_residual, self._uniform):
            collected.clear()
        self.collected = 0

    def _corrections(self, residual: list[Tensor]) -> Tensor:
        """C (n, k): the correction of the gradient of the logits is C B."""
        left = [torch.cat(residual)]
        if self._uniform:
            left.append(torch.cat(self._uniform).neg()[:, None])
        return torch.cat(left, 1)

    def _distributions(self) -> Tensor:
        """B (k, V), whose rows sum to 1 / temperature at most (of a shard, its part), since no slope of the logits is
        larger."""
        right = self._background.new_zeros(len(self._background_mass) + bool(self._uniform), self.head.vocabulary)
        for of_span, span in enumerate(chunks(self.head.vocabulary, self._span)):
            # A mass that is a difference of larger sums may have lost what is dropped.
            least = self._background[span].sum() * self.head.temperature
            mass = torch.maximum(self._background_mass[of_span], least)
            right[of_span, span] = self._background[span] / torch.where(mass == 0, 1, mass)
        if self._uniform:
            right[-1] = 1 / self.head.temperature
        return right

    def _add_weight(
        self,
        hidden: Tensor,
        rows: Tensor,
        entries: ByColumn,
        left: Tensor,
        right: Tensor,
        gradients: HeadGradients,
        gather: Gather,
        last: bool,
    ) -> None:
        """dW by vocabulary entry, a block of the vocabulary at a time."""
        if rows.numel() == hidden.shape[0]:
            correction = _product(torch.empty_like(left).index_copy_(0, rows, left).T, hidden)
        else:
            correction = _product(left.T, hidden[rows])

        def compute(block: slice, out: Tensor) -> None:
            part = entries.offsets[block.start : block.stop + 1]
            _gather_and_correct(gather, entries.values, entries.rows, part, hidden, right[:, block].T, correction, out)

        gradients.add_weight_blocks(rows_per_block(hidden.shape[1], hidden.device), compute, last=last)


def offsets_of(counts: Tensor) -> Tensor:
    """(n + 1,): the position of the first entry of each row, from the counts (n,)."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def sort_entries(rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int) -> ByColumn:
    """See `Sort`; within a column the entries keep their order."""
    indices = torch.repeat_interleave(rows.int(), offsets.diff(), output_size=columns.numel())
    columns, order = torch.sort(columns, stable=True)
    ends = torch.arange(vocabulary + 1, dtype=columns.dtype, device=columns.device)
    return ByColumn(torch.searchsorted(columns, ends), indices[order], values[order])


def _runs(rows: Tensor) -> list[slice]:
    """On a CPU, the stretches in which the row numbers increase (sampled rows may come first), so that neighboring
    entries gather neighboring rows. On a GPU, for which the host would have to wait, a single stretch."""
    breaks = (rows.diff() < 0).nonzero().flatten() + 1 if rows.device.type == "cpu" else rows.new_empty(0)
    return [slice(*ends) for ends in pairwise([0, *breaks.tolist(), rows.numel()])]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left (k, m) @ right (m, D) in the dtype of `right`; in float32 where that is float16, a tile at a time."""
    if right.dtype != torch.float16:
        return left.to(right.dtype) @ right
    out = left.new_zeros(left.shape[0], right.shape[1])
    for tile in chunks(len(right), rows_per_block(right.shape[1], right.device)):
        out.addmm_(left[:, tile], right[tile].float())
    return out


def _gather_and_correct(
    gather: Gather,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    matrix: Tensor,
    left: Tensor,
    right: Tensor,
    out: Tensor,
) -> None:
    """`gather`; computes the product separately if `right` is float32 and the matrix float16: a kernel has one
    dtype."""
    if right.dtype == matrix.dtype:
        gather(values, indices, offsets, matrix, left, right, out)
    else:
        gather(values, indices, offsets, matrix, left[:, :0], matrix[:0], out)
        out.addmm_(left, right)

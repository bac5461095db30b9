"""The loop over rows with several ids per row, or a temperature per row.

Row kernels support one id per row and one temperature. The loop reads the logits of the other ids from a chunk before
the kernel runs, and completes the kernel's gradient afterwards.

The kernel's target y is the most likely of a row's ids. The kernel computes its log-probability exactly, however
confident the row is, and those of the others differ from it by differences of logits. No other id can have a
probability near 1, for which the gradient g (1 - p) would cancel. Let G be the sum of the ids' upstream gradients g_k,
and l the upstream gradient of lse. Then d loss / d z_v is

    (l - G) p_v + sum_k g_k 1[v = t_k]                                       for v other than y
    (1 - p_y) sum_(t_k = y) g_k + p_y (l - sum_(t_k != y) g_k)               for y

The kernel computes the first term; the loop adds the second one, and replaces the entry at y by the last line. If a
backend streams statistics, a forward pass computes the logits of the ids one by one and stores no others. Peak memory:
one chunk of logits beside the gradients; in float32 with a temperature per row, and with that and a softcap another
chunk for its slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients, scale_
from mind_kernels.linear_cross_entropy.contract import RowKernels, RowSpec, RowTerms, RowValues, RowWeights
from mind_kernels.linear_log_prob.contract import Upstream
from mind_kernels.row_chunks import Rows, accumulation_dtype, row_weights, rows_per_chunk
from mind_kernels.row_loop import run_rows

# With at most this number of ids per row, as a share of V, statistics are streamed and the ids' logits computed one by
# one.
_STREAMED_SHARE = 1 / 64


@dataclass(frozen=True)
class Ids:
    """The ids of rows, (n, K) each."""

    ids: Tensor  # int64 in [0, V), arbitrary if absent
    present: Tensor  # bool

    @classmethod
    def of(cls, target: Tensor, ignore_index: int) -> Ids:
        """The ids of target (n, K); an entry is absent if it is `ignore_index`."""
        present = target != ignore_index
        return cls(torch.where(present, target, 0), present)

    def __getitem__(self, rows: Rows) -> Ids:
        return Ids(self.ids[rows], self.present[rows])


@dataclass(frozen=True)
class ListWeights:
    """d(total loss) / d(log-probabilities), d(entropy) and d(lse)."""

    rows: RowWeights  # `loss` is -G
    ids: Tensor  # (N, K), 0 if absent

    @classmethod
    def of(cls, upstream: Upstream, listed: Ids, temperature: Tensor | None, hidden: Tensor) -> ListWeights:
        """The weights, divided by the rows' temperatures (N,). In a forward pass, where none is known, they are 1, so
        that every valid row is visited."""
        valid = listed.present.any(1)
        ones = row_weights(None, valid, hidden)
        scale = ones if temperature is None else ones / temperature
        if all(gradient is None for gradient in upstream):
            return cls(RowWeights(ones), torch.zeros_like(listed.ids, dtype=ones.dtype))

        def of_rows(gradient: Tensor | None) -> Tensor | None:
            return None if gradient is None else row_weights(gradient, valid, hidden) * scale

        log_prob = 0 if upstream.log_prob is None else upstream.log_prob.to(ones.dtype)
        of_ids = torch.where(listed.present, log_prob, 0) * scale[:, None]
        return cls(RowWeights(-of_ids.sum(1), of_rows(upstream.entropy), of_rows(upstream.lse)), of_ids)

    @property
    def every(self) -> tuple[Tensor | None, ...]:
        """(N,) each: tensors that bound the order of magnitude of the gradient of a row's logits."""
        return self.rows.loss, self.rows.entropy, self.rows.lse, self.ids.abs().sum(1)

    def __getitem__(self, rows: Rows) -> ListWeights:
        return ListWeights(self.rows[rows], self.ids[rows])

    def __mul__(self, factor: Tensor) -> ListWeights:
        return ListWeights(self.rows * factor, self.ids * factor)

    def magnitude(self) -> Tensor:
        """(N,): 0 for rows without a gradient."""
        return self.rows.magnitude() + self.ids.abs().sum(1)


class KnownIds:
    """The logits of the ids of a chunk of rows, (n, K) in the accumulation dtype, and results derived from them."""

    def __init__(self, listed: Ids, logits: Tensor, vocabulary: int) -> None:
        self._listed = listed
        self._logits = torch.where(listed.present, logits, -torch.inf)
        self._largest = self._logits.amax(1, keepdim=True)
        best = listed.present & (self._logits == self._largest)
        self.likeliest = torch.where(best, listed.ids, vocabulary - 1).amin(1)  # (n,), the first of several

    def log_prob(self, of_likeliest: Tensor) -> Tensor:
        """The log-probabilities (n, K), 0 if absent, given that of the likeliest id (n,)."""
        below = torch.where(self._logits == self._largest, 0, self._logits - self._largest)
        return torch.where(self._listed.present, of_likeliest[:, None] + below, 0)

    def complete(self, dlogits: Tensor, weights: ListWeights, values: RowValues, head: Head) -> None:
        """Completes the kernel's gradient (n, V) of the logits before this head's softcap: adds that of the other ids,
        and replaces the entry at the likeliest one."""
        added = self.of_others(weights, head).to(dlogits.dtype)
        at_likeliest = self.at_likeliest(weights, values)[:, None] * head.slope(self._largest)
        dlogits.scatter_add_(1, self._listed.ids, added)
        dlogits.scatter_(1, self.likeliest[:, None], at_likeliest.to(dlogits.dtype))

    def of_others(self, weights: ListWeights, head: Head) -> Tensor:
        """(n, K): the numbers to add to the kernel's gradient at the ids, 0 at the likeliest one."""
        of_others = torch.where(self._is_likeliest, 0, weights.ids)
        return torch.where(of_others == 0, 0, of_others * head.slope(self._logits))

    def at_likeliest(self, weights: ListWeights, values: RowValues) -> Tensor:
        """(n,): the gradient of the likeliest id's logit, before the slope."""
        of_y = -torch.where(self._is_likeliest, weights.ids, 0).sum(1)
        others = -torch.where(self._is_likeliest, 0, weights.ids).sum(1)
        rest = others if weights.rows.lse is None else weights.rows.lse + others
        return RowWeights(of_y, weights.rows.entropy, rest).at_target(values)

    @property
    def _is_likeliest(self) -> Tensor:
        return self._listed.ids == self.likeliest[:, None]


def run_listed(
    kernels: RowKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    listed: Ids,  # of all N rows
    temperature: Tensor | None,  # (N,), with a head whose own is 1
    weights: ListWeights | None,  # divided by the temperature; None: statistics only
    spec: RowSpec,
    log_prob: Tensor,  # (N, K)
    terms: RowTerms,
    gradients: HeadGradients,
    extra: str,
) -> None:
    """Fills `log_prob` and `terms` for the rows, and adds their gradient products."""
    head = spec.head
    streams = kernels.STREAMED_CHUNKS > 1 and listed.ids.shape[1] <= head.vocabulary * _STREAMED_SHARE
    if weights is None and not extra and streams:

        def statistics(chunk: Rows, part: Tensor, weights: ListWeights | None) -> tuple[list[Tensor], None]:
            of_rows = None if temperature is None else temperature[chunk]
            logits = head.logits_of(listed.ids[chunk], part)
            known = KnownIds(listed[chunk], logits if of_rows is None else logits / of_rows[:, None], head.vocabulary)
            values = kernels.statistics(part, known.likeliest, spec, of_rows)
            return [*values, known.log_prob(-values.nll)], None

        size = kernels.STREAMED_CHUNKS * rows_per_chunk(head.vocabulary, hidden.device, hidden.element_size())
        run_rows(rows, size, hidden, weights, statistics, [*terms.values, log_prob], gradients)
        return

    def kernel(chunk: Rows, part: Tensor, weights: ListWeights | None) -> tuple[list[Tensor], Tensor | None]:
        of_chunk, slope = spec, 1.0
        if temperature is None:
            logits = head.project(part)
        else:  # softcap and temperature have been applied to the kernel's logits
            logits, of_chunk = head.to_logits_(head.project_wide(part)), RowSpec(Head(head.weight))
            if weights is not None:
                slope = head.slope(logits)
            logits.div_(temperature[chunk, None])
        terms.extra.read(chunk, logits, of_chunk.head, extra)
        of_ids = logits.gather(1, listed.ids[chunk]).to(accumulation_dtype(logits.dtype))
        known = KnownIds(listed[chunk], of_chunk.head.to_logits(of_ids), head.vocabulary)
        of_kernel = None if weights is None else weights.rows.of_kernel
        values = kernels.row_kernel_(logits, known.likeliest, of_kernel, of_chunk)
        found = [*values, known.log_prob(-values.nll)]
        if weights is None:
            return found, None
        known.complete(logits, weights, values, of_chunk.head)
        return found, scale_(logits, slope)

    size = rows_per_chunk(head.vocabulary, hidden.device, itemsize_of(hidden, head, temperature))
    run_rows(rows, size, hidden, weights, kernel, [*terms.values, log_prob], gradients)


def itemsize_of(hidden: Tensor, head: Head, temperature: Tensor | None) -> int:
    """Bytes per logit of a chunk: with a temperature per row logits are float32 or wider, and with a softcap too there
    is a slope per logit."""
    if temperature is None:
        return hidden.element_size()
    return accumulation_dtype(hidden.dtype).itemsize * (1 if head.softcap is None else 2)

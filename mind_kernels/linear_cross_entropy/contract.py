"""The interface of linear cross-entropy: arguments, outputs, and the kernels that a backend has to supply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.extra_stats import ExtraStats
from mind_kernels.row_chunks import Rows, accumulation_dtype, write_rows
from mind_kernels.shards import Group
from mind_kernels.sparse_gradient import ByColumn, Entries

ROW_KERNELS = "linear_cross_entropy"
"""The kernels of rows, in `backend.BACKENDS`; see `shards.operation_of` for a head that is split over processes."""


@dataclass(frozen=True)
class RowSpec:
    """The loss of a row: (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2."""

    head: Head
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    gradient_threshold: float | None = None
    batch_threshold: float | None = None  # see batch_rows.py

    def with_head(self, head: Head) -> RowSpec:
        """The same loss with another head."""
        return replace(self, head=head)

    @property
    def is_sparse(self) -> bool:
        """Whether the gradient is a sparse one."""
        return self.gradient_threshold is not None or self.batch_threshold is not None

    @property
    def suits_entries(self) -> bool:
        """Whether the gradient is a sum of kept entries and a rest of rank one: with a softcap the uniform part of
        label smoothing is not of rank one."""
        return not (self.label_smoothing and self.head.softcap)

    @property
    def log_threshold(self) -> float:
        """log(gradient_threshold); requires one."""
        assert self.gradient_threshold is not None
        return math.log(self.gradient_threshold)


class RowArguments(NamedTuple):
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N,), on the CPU or on the device of hidden
    row_weight: Tensor | None  # (N,)
    segment: Tensor | None  # (N,), on the CPU or on the device of hidden
    num_segments: int
    ignore_index: int
    reduction: str
    extra_stats: str  # see extra_stats.ExtraStats
    backend: str
    group: Group | None = None  # the processes among which the head is split


class RowValues(NamedTuple):
    """What a row kernel returns, (n,) each, in the accumulation dtype (`correct`: bool).

    All but the first are statistics. Code that passes statistics on uses these names, so that another statistic needs a
    field here, one in `RowStats`, and the kernels, and no other change.
    """

    loss: Tensor
    nll: Tensor
    lse: Tensor
    entropy: Tensor
    correct: Tensor

    def without(self, unknown: Tensor) -> RowValues:
        """The values with nan (False) in the rows that are `unknown` (n,) bool."""
        return RowValues(*(v.masked_fill(unknown, torch.nan if v.is_floating_point() else False) for v in self))


class RowTerms(NamedTuple):
    """Loss and statistics of each of N rows."""

    values: RowValues
    dropped_mass: Tensor  # (N,); empty if every gradient is exact
    kept_entries: Tensor  # (N,) int64; empty in the same case
    extra: ExtraStats

    @classmethod
    def zeros(cls, rows: int, like: Tensor, *, sparse: bool, extra: str = "") -> RowTerms:
        """Zeros (False) for `rows` rows, on the device of `like` and in its accumulation dtype."""

        def zeros(dtype: torch.dtype, count: int = rows) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=like.device)

        dtype = accumulation_dtype(like.dtype)
        values = RowValues(*(zeros(torch.bool if name == "correct" else dtype) for name in RowValues._fields))
        of_sparse = rows if sparse else 0
        dropped_mass, kept_entries = zeros(dtype, of_sparse), zeros(torch.int64, of_sparse)
        return cls(values, dropped_mass, kept_entries, ExtraStats.zeros(rows, like, extra))

    def first(self, rows: int) -> RowTerms:
        """Copies of the first `rows` rows."""
        values = RowValues(*(value[:rows].clone() for value in self.values))
        extra = ExtraStats(*(value[:rows].clone() for value in self.extra))
        return RowTerms(values, self.dropped_mass[:rows].clone(), self.kept_entries[:rows].clone(), extra)

    def write(self, rows: Rows, values: RowValues) -> None:
        """Puts the values (n,) of these n rows into their places."""
        write_rows(self.values, rows, values)


class Segments(NamedTuple):
    """Mean nll and number of the valid rows of each of S segments; empty without segments."""

    nll: Tensor  # (S,)
    sizes: Tensor  # (S,) int64

    @classmethod
    def of(cls, nll: Tensor, valid: Tensor, segment: Tensor | None, num_segments: int) -> Segments:
        """Computed from the nll (N,), the mask of valid rows (N,) bool, and the segment of each row (N,)."""
        if segment is None:
            return cls.empty(nll, 0)
        segment, valid = segment.to(nll.device), valid.to(nll.device)
        total = nll.new_zeros(num_segments).index_add_(0, segment, nll)
        sizes = torch.zeros(num_segments, dtype=torch.int64, device=nll.device).index_add_(0, segment, valid.long())
        return cls(total / sizes, sizes)

    @classmethod
    def empty(cls, like: Tensor, num_segments: int) -> Segments:
        """Uninitialized tensors, in the accumulation dtype of `like`."""
        dtype = accumulation_dtype(like.dtype)
        return cls(like.new_empty(num_segments, dtype=dtype), like.new_empty(num_segments, dtype=torch.int64))


class RowOutputs(NamedTuple):
    """The outputs of the operator."""

    loss: Tensor  # (), or (N,) for reduction "none"
    rows: RowTerms
    segments: Segments


@dataclass(frozen=True)
class RowStats:
    """Statistics per row, without a gradient; float32 (float64 for float64 input). They are zero in ignored rows.

    The shape is (N,) for hidden states (N, D), and (...) for hidden states (..., D).
    """

    nll: Tensor
    """(N,) negative log-likelihood of the target in nats, without weight, smoothing or z-loss; may be infinite.
    If linear_log_prob has several ids per row, `nll` and `correct` are those of the likeliest id."""
    lse: Tensor
    """(N,) log-sum-exp of the row's logits (after softcap and temperature)."""
    entropy: Tensor
    """(N,) entropy of the row's softmax in nats."""
    correct: Tensor
    """(N,) bool: the largest logit is the target's."""
    segment_nll: Tensor | None
    """(S,) mean of `nll` over the rows of a segment that are not ignored, unweighted; nan if there are none."""
    segment_count: Tensor | None
    """(S,) int64: the number of these rows."""
    dropped_mass: Tensor | None = None
    """(N,) total probability of the entries that the sparse gradient replaced, at most 1 - p of the target; 0 in rows
    with the exact gradient. None: no threshold."""
    kept_entries: Tensor | None = None
    """(N,) int64: the number of entries of the row's gradient that were computed exactly; V in rows with the exact
    gradient. None: no threshold."""
    mean_logit: Tensor | None = None
    """(N,) mean over the vocabulary of the row's logits (after softcap and temperature); minus infinity if a token is
    excluded. This and the fields that follow are None unless named in `extra_stats`."""
    log_sum_sq: Tensor | None = None
    """(N,) log sum_v p_v^2, p the row's softmax."""
    predicted: Tensor | None = None
    """(N,) int64: the token with the largest logit, the first one if several are equal."""

    @classmethod
    def of(
        cls, rows: RowTerms, segments: Segments | None, shape: Sequence[int], *, sparse: bool, extra: str = ""
    ) -> RowStats:
        """From the outputs of an operator or a definition, for rows of this leading shape. Segments may be None."""
        statistics = {
            name: value.detach().view(shape) for name, value in rows.values._asdict().items() if name != "loss"
        }
        return cls(
            **statistics,
            segment_nll=None if segments is None else segments.nll,
            segment_count=None if segments is None else segments.sizes,
            dropped_mass=rows.dropped_mass.view(shape) if sparse else None,
            kept_entries=rows.kept_entries.view(shape) if sparse else None,
            **{name: value.detach().view(shape) for name, value in rows.extra.named(extra).items()},
        )


@dataclass(frozen=True)
class RowWeights:
    """d(total loss) / d(row loss); also d(total loss) / d(entropy) and d(lse), if the loss depends on those.

    A row kernel computes the gradient with respect to the logits z from the first two: p_v (a + b log p_v) - t 1[v = y]
    - u. No kernel knows `lse`: it is given `of_kernel`, and the loop over rows then writes `at_target` at the target.
    This is for losses without label smoothing and z-loss only.
    """

    loss: Tensor  # (N,)
    entropy: Tensor | None = None  # (N,)
    lse: Tensor | None = None  # (N,)

    def __getitem__(self, rows: Rows) -> RowWeights:
        return self._each(lambda weight: weight[rows])

    def __mul__(self, factor: Tensor) -> RowWeights:
        return self._each(lambda weight: weight * factor)

    def _each(self, change: Callable[[Tensor], Tensor]) -> RowWeights:
        entropy, lse = (None if weight is None else change(weight) for weight in (self.entropy, self.lse))
        return RowWeights(change(self.loss), entropy, lse)

    def magnitude(self) -> Tensor:
        """The sum of their absolute values (N,): the row's weight in means over rows, 0 if it has no gradient."""
        out = self.loss.abs()
        for weight in (self.entropy, self.lse):
            out = out if weight is None else out + weight.abs()
        return out

    @property
    def of_kernel(self) -> RowWeights:
        """Weights without lse, for which a row kernel's gradient is right except at the target: the gradient of lse is
        p, that of nll is p - 1[v = y]."""
        return self if self.lse is None else RowWeights(self.loss + self.lse, self.entropy)

    def at_target(self, values: RowValues) -> Tensor:
        """The gradient at z_y, (n,), computed anew: a correction of the kernel's value would lose the digits of a small
        p_y."""
        p, others = (-values.nll).exp(), -torch.expm1(-values.nll)
        out = -self.loss * others
        if self.lse is not None:
            out = out + self.lse * p
        return out if self.entropy is None else out - self.entropy * _of_entropy(values)

    def total(self, lse: Tensor, spec: RowSpec) -> Tensor:
        """The sum of the gradient over all v, without the uniform part u, (N,): sum_v p_v (a + b log p_v) - t."""
        return self.loss * (2 * spec.z_loss * lse + spec.label_smoothing)

    def coefficients(self, values: RowValues, others: Tensor, spec: RowSpec) -> tuple[Tensor, Tensor | None, Tensor]:
        """a, b (None for zero) and the gradient at the target without u, p_y (a + b log p_y) - t, (N,) each.

        `others` (N,) is 1 - p_y, summed over all entries but the target's: p_y - t would lose its digits if p_y is near
        1, and (1 - t) - others does not.
        """
        of_lse = 2 * spec.z_loss * values.lse
        a = self.loss * (1 + of_lse)
        at_target = self.loss * ((spec.label_smoothing - others) + of_lse * (1 - others))
        if self.entropy is None:
            return a, None, at_target
        return a - self.entropy * values.entropy, -self.entropy, at_target - self.entropy * _of_entropy(values)

    def uniform(self, spec: RowSpec, vocabulary: int | None = None) -> Tensor | None:
        """u, (N,); None without label smoothing. `vocabulary` is V if the head in `spec` is only a part of it."""
        vocabulary = spec.head.vocabulary if vocabulary is None else vocabulary
        return self.loss * (spec.label_smoothing / vocabulary) if spec.label_smoothing else None


def _of_entropy(values: RowValues) -> Tensor:
    """p_y (log p_y + entropy), (n,), and 0 if p_y is 0."""
    return (-values.nll).exp() * (values.entropy - values.nll.clamp(max=1e30))


class SparseRows(Protocol):
    """A chunk of n rows whose statistics are known and whose gradient is still to be computed."""

    values: RowValues

    def means(self) -> tuple[float, float]:
        """Means over the rows of `kept` and of `sparse_gradient.dropped_share`; waits for the device. A first mean of V
        or more says that the backend stopped collecting entries for this chunk."""
        ...

    kept: Tensor
    """(n,) int64: the number of kept entries, those above the threshold and the target's. This and the attributes and
    methods that follow may be used after `means` only."""
    dropped_mass: Tensor
    """(n,), the probability of the other entries, summed over them and not computed as 1 minus the rest."""

    def logits(self) -> Tensor:
        """(n, V): the projected logits, not to be changed. Called before `dense`."""
        ...

    def entries(self, weights: RowWeights) -> Entries:
        """The kept entries, for the rows' weights."""
        ...

    def background(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(V,): the sum over `rows` (m,) int64 of weight (m,) x dropped probability x slope of the logits; and (): its
        total without the slope. Called before `dense`."""
        ...

    def dense(self, part: slice, weights: RowWeights) -> Tensor:
        """(m, V): the exact gradient of the projected logits of the m rows in `part`, for their weights. Called last,
        and once per row: it may reuse the memory of the logits."""
        ...


class RowKernels(Protocol):
    """The kernels that a backend has to supply for this operation: a module, or any other object with these names."""

    SPARSE_CHUNKS: int
    """How many chunks of the sparse path one call of `sparse_rows` gets."""

    STREAMED_CHUNKS: int
    """How many chunks one call of `statistics` gets, and one of `sparse_rows` for rows that are not sampled; these are
    then separate from the sampled ones. More than 1: such calls keep no logits."""

    def row_kernel_(
        self,
        logits: Tensor,  # (n, V), projected
        target: Tensor,  # (n,) int64 in [0, V)
        weights: RowWeights | None,  # (n,)
        spec: RowSpec,
    ) -> RowValues:
        """Statistics; with weights, the logits become their own gradient, in place.

        If softcap and temperature have been applied to the logits already, the head in `spec` has neither.
        """
        ...

    def statistics(
        self,
        hidden: Tensor,  # (n, D)
        target: Tensor,  # (n,)
        spec: RowSpec,
        temperature: Tensor | None = None,  # (n,), with a head whose own is 1; only if STREAMED_CHUNKS is more than 1
    ) -> RowValues:
        """Statistics of rows, computed from their hidden states."""
        ...

    def sparse_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> SparseRows:
        """The same, plus the data that the sparse gradient needs; without `keep_logits`, `background` and `logits` will
        not be called."""
        ...

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        """See `sparse_gradient.Gather`."""
        ...

    def sort_entries(self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int) -> ByColumn:
        """See `sparse_gradient.Sort`."""
        ...


class ExactChunk(Protocol):
    """A chunk of n rows whose logits are in memory."""

    values: RowValues

    def write_products(
        self,
        weights: RowWeights,  # (n,), without lse
        at_target: Tensor | None,  # (n,), gradient of the target's projected logit; None: follows from `weights`
        of_hidden: Tensor | None,  # (n, D), written
        of_weight: Tensor | None,  # (V, D), written, or added to
        add_weight: bool,
        of_bias: Tensor | None,  # (V,), added to
    ) -> None:
        """Computes the gradients of hidden states, weight and bias, in the accumulation dtype; None: not needed."""
        ...


class ExactRows(Protocol):
    """The exact gradient of rows, by the backend's own matrix products; it holds the logits of one chunk."""

    size: int
    """Rows of a chunk."""

    def chunk(self, hidden: Tensor, target: Tensor) -> ExactChunk:
        """The chunk with hidden (n, D) and target (n,), at most `size` rows; reuses the memory of the previous
        chunk."""
        ...


@runtime_checkable
class OwnProducts(Protocol):
    """Further kernels that a backend may have, beside those of `RowKernels`."""

    def exact_rows(self, rows: int, hidden: Tensor, spec: RowSpec) -> ExactRows | None:
        """An object for `rows` rows of `hidden`; None if `row_kernel_` and PyTorch's products are faster."""
        ...

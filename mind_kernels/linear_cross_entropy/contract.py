"""What linear cross-entropy computes and what a backend supplies: below the definition and the chunk loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.row_chunks import Rows
from mind_kernels.sparse_gradient import Entries


@dataclass(frozen=True)
class RowSpec:
    """The loss of a row: (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2."""

    head: Head
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    gradient_threshold: float | None = None

    @property
    def log_threshold(self) -> float:
        """The logarithm of the threshold, which there must be."""
        if self.gradient_threshold is None:
            raise ValueError("gradient_threshold is None: expected a probability")
        return math.log(self.gradient_threshold)


@dataclass(frozen=True)
class RowWeights:
    """d(total loss) / d(row loss) and, where the rows' entropies are part of the loss, d(total loss) / d(entropy).

    They make up the gradient with respect to the logits: p_v (a + b log p_v) - t 1[v = y] - u.
    """

    loss: Tensor  # (N,)
    entropy: Tensor | None = None  # (N,)

    def __getitem__(self, rows: Rows) -> RowWeights:
        return RowWeights(self.loss[rows], None if self.entropy is None else self.entropy[rows])

    def magnitude(self) -> Tensor:
        return self.loss.abs() if self.entropy is None else self.loss.abs() + self.entropy.abs()

    def total(self, lse: Tensor, spec: RowSpec) -> Tensor:
        """sum_v p_v (a + b log p_v), (N,)."""
        return self.loss * (1 + 2 * spec.z_loss * lse)

    def coefficients(self, lse: Tensor, entropy: Tensor, spec: RowSpec) -> tuple[Tensor, Tensor | None, Tensor]:
        """a, b (None for zero) and t, (N,) each."""
        a, t = self.total(lse, spec), self.loss * (1 - spec.label_smoothing)
        return (a, None, t) if self.entropy is None else (a - self.entropy * entropy, -self.entropy, t)

    def uniform(self, spec: RowSpec) -> Tensor | None:
        """u, (N,); None without label smoothing."""
        return self.loss * (spec.label_smoothing / spec.head.vocabulary) if spec.label_smoothing else None


class RowValues(NamedTuple):
    """What a row kernel returns, (n,) each, in the accumulation dtype (`correct`: bool)."""

    loss: Tensor
    nll: Tensor
    lse: Tensor
    entropy: Tensor
    correct: Tensor


class SparseRows(Protocol):
    """A chunk of n rows whose statistics are known and whose gradient is still to be taken."""

    values: RowValues

    def means(self) -> tuple[float, float]:
        """`kept` and `dropped_mass` a row; waits for the device. `kept` may be infinite where lists were given up."""

    kept: Tensor
    """(n,) int64, entries above the threshold, and the target's. This and what follows is there after `means`."""
    dropped_mass: Tensor
    """(n,), the probability of the other entries."""

    def entries(self, weights: RowWeights) -> Entries:
        """The kept entries, for the rows' weights."""

    def background(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(V,): sum over `rows` of weight x dropped probability x slope of the logits."""

    def dense(self, weights: RowWeights) -> Tensor:
        """(n, V): the exact gradient of the projected logits, instead. Comes last: it may reuse their memory."""


class RowKernels(Protocol):
    """What a backend module of this operation defines."""

    SPARSE_CHUNKS: int
    """How many chunks of the sparse path `sparse_rows` is given at once."""

    def row_kernel_(self, logits: Tensor, target: Tensor, weights: RowWeights | None, spec: RowSpec) -> RowValues:
        """Statistics of projected logits (n, V); with weights they become their own gradient, in place.

        Of logits that had softcap and temperature applied before, the head in `spec` has neither.
        """

    def statistics(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
        """Statistics of rows, straight from hidden (n, D)."""

    def sparse_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> SparseRows:
        """The same, with what the sparse gradient needs."""

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        """See `sparse_gradient.Gather`."""


@dataclass(frozen=True)
class RowStats:
    """Statistics of the rows, without a gradient; float32 (float64 for float64 input). Ignored rows hold zeros."""

    nll: Tensor
    """(N,) negative log-likelihood of the target in nats, without weight, smoothing or z-loss."""
    lse: Tensor
    """(N,) log-sum-exp of the row's logits (after softcap and temperature)."""
    entropy: Tensor
    """(N,) entropy of the row's softmax in nats."""
    correct: Tensor
    """(N,) bool: the largest logit is the target's."""
    segment_nll: Tensor | None
    """(S,) mean of `nll` over the rows of a segment that are not ignored, unweighted; nan where there are none."""
    segment_count: Tensor | None
    """(S,) int64: how many rows that is."""
    dropped_mass: Tensor | None = None
    """(N,) probability of the entries that the sparse gradient replaced; 0 where it is exact. None: no threshold."""
    kept: Tensor | None = None
    """(N,) int64: the entries of the row's gradient that were computed one by one; V where all were."""

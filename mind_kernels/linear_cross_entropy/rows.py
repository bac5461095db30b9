"""The chunk loop of linear cross-entropy, written once; a backend supplies the row kernels.

Exact: logits of a chunk, row kernel in place, gradient products. Sparse (`gradient_threshold`): logits of a chunk, its
statistics and kept entries, and after the last chunk two gathers. Rows that are ignored never reach a product; rows of
weight zero only reach the logits product, for their statistics. Peak memory: one chunk of logits (two on a GPU for the
sparse gradient, so that it never waits for the host) beside the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mind_kernels.row_chunks import (
    Head,
    HeadGradients,
    Rows,
    accumulation_dtype,
    chunks,
    reduced,
    rows_per_chunk,
    weighted,
)
from mind_kernels.sparse_gradient import SAMPLE_ROWS, Entries, SparseGradient, worth_it


@dataclass(frozen=True)
class RowLoss:
    """The loss of a row: (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2."""

    head: Head
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    gradient_threshold: float | None = None


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

    def total(self, lse: Tensor, loss: RowLoss) -> Tensor:
        """sum_v p_v (a + b log p_v), (N,)."""
        return self.loss * (1 + 2 * loss.z_loss * lse)

    def coefficients(self, lse: Tensor, entropy: Tensor, loss: RowLoss) -> tuple[Tensor, Tensor | None, Tensor]:
        """a, b (None for zero) and t, (N,) each."""
        a, t = self.total(lse, loss), self.loss * (1 - loss.label_smoothing)
        return (a, None, t) if self.entropy is None else (a - self.entropy * entropy, -self.entropy, t)

    def uniform(self, loss: RowLoss) -> Tensor | None:
        """u, (N,); None without label smoothing."""
        return self.loss * (loss.label_smoothing / loss.head.vocabulary) if loss.label_smoothing else None


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

    def row_kernel_(
        self, logits: Tensor, target: Tensor, weights: RowWeights | None, loss: RowLoss, conditioned: bool = False
    ) -> RowValues:
        """Statistics of projected logits (n, V); with weights they become their own gradient, in place.

        `conditioned` logits have had softcap and temperature applied, and then the gradient is with respect to them.
        """

    def statistics(self, hidden: Tensor, target: Tensor, loss: RowLoss) -> RowValues:
        """Statistics of rows, straight from hidden (n, D)."""

    def sparse_rows(self, hidden: Tensor, target: Tensor, loss: RowLoss) -> SparseRows:
        """The same, with what the sparse gradient needs."""

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        """See `sparse_gradient.Gather`."""


@dataclass(frozen=True)
class RowTerms:
    """The rows' values, (N,) each; `dropped_mass` and `kept` are empty where the gradient is exact."""

    values: RowValues
    dropped_mass: Tensor
    kept: Tensor  # int64

    @staticmethod
    def zeros(rows: int, like: Tensor, sparse: bool = False) -> RowTerms:
        dtype = accumulation_dtype(like.dtype)
        numbers = [torch.zeros(rows, dtype=dtype, device=like.device) for _ in range(4)]
        correct = torch.zeros(rows, dtype=torch.bool, device=like.device)
        return RowTerms(
            RowValues(*numbers, correct),
            torch.zeros(rows * sparse, dtype=dtype, device=like.device),
            torch.zeros(rows * sparse, dtype=torch.int64, device=like.device),
        )

    def first(self, rows: int) -> RowTerms:
        cut = RowValues(*(value[:rows].clone() for value in self.values))
        return RowTerms(cut, self.dropped_mass[:rows].clone(), self.kept[:rows].clone())

    def write(self, rows: Rows, values: RowValues) -> None:
        for column, value in zip(self.values, values, strict=True):
            column[rows] = value


def run_rows(
    kernels: RowKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    weights: RowWeights | None,  # None: statistics only
    loss: RowLoss,
    terms: RowTerms,
    gradients: HeadGradients,
) -> None:
    """The chunk loop: fills `terms` for the rows and adds their gradient products."""
    if not gradients.wanted:
        weights = None
    if loss.gradient_threshold is not None:
        _run_sparse(kernels, rows, hidden, target, weights, loss, terms, gradients)
        return
    size = rows_per_chunk(loss.head.vocabulary, hidden.device, hidden.element_size())
    for chunk in chunks(rows, size):
        part = hidden[chunk]
        if weights is None:
            terms.write(chunk, kernels.statistics(part, target[chunk], loss))
        else:
            logits = loss.head.project(part)
            terms.write(chunk, kernels.row_kernel_(logits, target[chunk], weights[chunk], loss))
            gradients.add(chunk, part, logits)


def _run_sparse(
    kernels: RowKernels,
    rows: Tensor | int,
    hidden: Tensor,
    target: Tensor,
    weights: RowWeights | None,
    loss: RowLoss,
    terms: RowTerms,
    gradients: HeadGradients,
) -> None:
    head, device = loss.head, hidden.device
    sparse = SparseGradient(head, hidden)
    count = rows if isinstance(rows, int) else rows.numel()
    stride = max(1, count // SAMPLE_ROWS)

    def settle(chunk: Rows, start: int, found: SparseRows) -> None:
        """Sparse or dense: the first look of the host at the chunk, when the next one is already under way."""
        kept, dropped_mass = found.means()
        # Under a softcap the uniform part of label smoothing is not of rank one.
        fits = not (loss.label_smoothing and head.softcap)
        use_entries = fits and worth_it(kept, dropped_mass, head.vocabulary, device)
        terms.kept[chunk] = found.kept if use_entries else head.vocabulary
        terms.dropped_mass[chunk] = found.dropped_mass if use_entries else 0
        if weights is None:
            return
        part = weights[chunk]
        if not use_entries:
            gradients.add(chunk, hidden[chunk], found.dense(part))
            return
        index = torch.arange(chunk.start, chunk.stop, device=device) if isinstance(chunk, slice) else chunk
        sparse.add(index, found.entries(part), part.total(found.values.lse, loss), part.uniform(loss))
        sample = torch.arange(-start % stride, len(index), stride, device=device)
        magnitude = part.magnitude()[sample]
        sparse.add_background(found.background(sample, magnitude), magnitude @ found.dropped_mass[sample])

    start, pending = 0, []
    size = kernels.SPARSE_CHUNKS * rows_per_chunk(head.vocabulary, device, hidden.element_size(), sparse=True)
    for chunk in chunks(rows, size):
        found = kernels.sparse_rows(hidden[chunk], target[chunk], loss)
        terms.write(chunk, found.values)
        pending.append((chunk, start, found))
        start += len(found.values.lse)
        if device.type == "cpu" or len(pending) == 2:
            settle(*pending.pop(0))
    for waiting in pending:
        settle(*waiting)
    sparse.finish(hidden, gradients, kernels.gather_rows)


def split_rows(valid: Tensor, weights: RowWeights) -> tuple[Tensor | int, Tensor | int]:
    """(rows with a gradient, rows with statistics alone), as index lists, or as a count where that is every row.

    A row of weight zero needs no gradient product. To know them costs a synchronisation, so this is done only for
    weights on the CPU; on a GPU every valid row is a gradient row, and only a `valid` mask on the host is free.
    """
    device = weights.loss.device
    with_gradient = valid & (weights.magnitude() != 0).to(valid.device) if device.type == "cpu" else valid
    if bool(with_gradient.all()):
        return valid.numel(), 0
    index = with_gradient.nonzero().squeeze(1).to(device)
    return index, (valid & ~with_gradient).nonzero().squeeze(1).to(device)


def forward(
    kernels: RowKernels,
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,), on the CPU or where hidden is
    row_weight: Tensor | None,  # (N,)
    entropy_weight: Tensor | None,  # (N,)
    loss: RowLoss,
    needs: list[bool],
    *,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, RowTerms, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' terms, and the gradients that are needed."""
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=loss.gradient_threshold is not None)
    valid = target != ignore_index
    device_valid = valid.to(hidden.device)
    dtype = terms.values.loss.dtype
    weight = device_valid.to(dtype) if row_weight is None else torch.where(device_valid, row_weight.to(dtype), 0)
    if entropy_weight is not None:
        entropy_weight = torch.where(device_valid, entropy_weight.to(dtype), 0)
    scale = weight / weight.sum() if reduction == "mean" else weight
    weights = RowWeights(scale, entropy_weight)
    gradients = HeadGradients(hidden, loss.head, needs)
    index = target.to(hidden.device).contiguous()
    with_gradient, others = split_rows(valid, RowWeights(weight, entropy_weight))
    run_rows(kernels, with_gradient, hidden, index, weights, loss, terms, gradients)
    run_rows(kernels, others, hidden, index, None, loss, terms, gradients)
    rows = weighted(terms.values.loss, weight)
    if entropy_weight is not None:
        rows += weighted(terms.values.entropy, entropy_weight)
    return reduced(rows, weight, reduction), terms, gradients

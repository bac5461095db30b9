"""The chunk loop of linear cross-entropy, written once; a backend supplies the row kernels.

Exact: logits of a chunk, row kernel in place, gradient products. Sparse (`gradient_threshold`): logits of a chunk, its
statistics and kept entries, and after the last chunk two gathers. Rows that are ignored never reach a product; rows of
weight zero only reach the logits product, for their statistics. Peak memory: one chunk of logits (two on a GPU for the
sparse gradient, so that it never waits for the host) beside the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowKernels, RowSpec, RowValues, RowWeights, SparseRows
from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, reduced, rows_per_chunk, weighted
from mind_kernels.sparse_gradient import SAMPLE_ROWS, SparseGradient, worth_it


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
    spec: RowSpec,
    terms: RowTerms,
    gradients: HeadGradients,
) -> None:
    """The chunk loop: fills `terms` for the rows and adds their gradient products."""
    if not gradients.wanted:
        weights = None
    if spec.gradient_threshold is not None:
        _run_sparse(kernels, rows, hidden, target, weights, spec, terms, gradients)
        return
    size = rows_per_chunk(spec.head.vocabulary, hidden.device, hidden.element_size())
    for chunk in chunks(rows, size):
        part = hidden[chunk]
        if weights is None:
            terms.write(chunk, kernels.statistics(part, target[chunk], spec))
        else:
            logits = spec.head.project(part)
            terms.write(chunk, kernels.row_kernel_(logits, target[chunk], weights[chunk], spec))
            gradients.add(chunk, part, logits)


def _run_sparse(
    kernels: RowKernels,
    rows: Tensor | int,
    hidden: Tensor,
    target: Tensor,
    weights: RowWeights | None,
    spec: RowSpec,
    terms: RowTerms,
    gradients: HeadGradients,
) -> None:
    head, device = spec.head, hidden.device
    sparse = SparseGradient(head, hidden)
    count = rows if isinstance(rows, int) else rows.numel()
    stride = max(1, count // SAMPLE_ROWS)

    def settle(chunk: Rows, start: int, found: SparseRows) -> None:
        """Sparse or dense: the first look of the host at the chunk, when the next one is already under way."""
        kept, dropped_mass = found.means()
        # Under a softcap the uniform part of label smoothing is not of rank one.
        fits = not (spec.label_smoothing and head.softcap)
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
        sparse.add(index, found.entries(part), part.total(found.values.lse, spec), part.uniform(spec))
        sample = torch.arange(-start % stride, len(index), stride, device=device)
        magnitude = part.magnitude()[sample]
        sparse.add_background(found.background(sample, magnitude), magnitude @ found.dropped_mass[sample])

    start, pending = 0, []
    size = kernels.SPARSE_CHUNKS * rows_per_chunk(head.vocabulary, device, hidden.element_size(), sparse=True)
    for chunk in chunks(rows, size):
        found = kernels.sparse_rows(hidden[chunk], target[chunk], spec)
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
    spec: RowSpec,
    needs: list[bool],
    *,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, RowTerms, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' terms, and the gradients that are needed."""
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=spec.gradient_threshold is not None)
    valid = target != ignore_index
    device_valid = valid.to(hidden.device)
    dtype = terms.values.loss.dtype
    weight = device_valid.to(dtype) if row_weight is None else torch.where(device_valid, row_weight.to(dtype), 0)
    if entropy_weight is not None:
        entropy_weight = torch.where(device_valid, entropy_weight.to(dtype), 0)
    scale = weight / weight.sum() if reduction == "mean" else weight
    weights = RowWeights(scale, entropy_weight)
    gradients = HeadGradients(hidden, spec.head, needs)
    index = target.to(hidden.device).contiguous()
    with_gradient, others = split_rows(valid, RowWeights(weight, entropy_weight))
    run_rows(kernels, with_gradient, hidden, index, weights, spec, terms, gradients)
    run_rows(kernels, others, hidden, index, None, spec, terms, gradients)
    rows = weighted(terms.values.loss, weight)
    if entropy_weight is not None:
        rows += weighted(terms.values.entropy, entropy_weight)
    return reduced(rows, weight, reduction), terms, gradients

"""The chunk loop of the divergences, written once; a backend supplies the row kernels.

Logits of a chunk in float32 (float64 for float64 input) whatever the input's dtype, the teacher's beside them, row
kernel in place, gradient products. Rows of weight zero only reach the logits products, for their statistics. Peak
memory: one chunk, in which both logits share the room, beside the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_divergence.contract import RowKernels, RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, reduced, rows_per_chunk, weighted

# Stands for a log-probability of minus infinity: its exponential is 0, and so is 0 times it, which would be nan.
LOWEST = -1e18
_TOLERANCE = 1e-3  # by which the probabilities of a teacher's list may sum to more than 1: servers round them


@dataclass(frozen=True)
class HeadTeacher:
    """A teacher that is a head of the same vocabulary."""

    hidden: Tensor  # (N, D')
    head: Head

    @property
    def copies(self) -> int:
        """How many logits (n, V) a chunk of n rows holds."""
        return 2

    def divergence_(
        self,
        kernels: RowKernels,
        rows: Rows,
        logits: Tensor,
        weights: Tensor | None,
        head: Head,
        divergence: Divergence,
    ) -> RowValues:
        """The values of these rows, see `RowKernels`."""
        theirs = self.head.project_exactly(self.hidden[rows]).to(logits.dtype)
        return kernels.divergence_(logits, theirs, weights, head, self.head, divergence)


@dataclass(frozen=True)
class ListTeacher:
    """A teacher of which T tokens a row are known: its events are those, and all others together."""

    ids: Tensor  # (N, T) int64
    log_prob: Tensor  # (N, T)
    vocabulary: int

    @property
    def whole(self) -> bool:
        """Whether every token is listed: then there are no others."""
        return self.ids.shape[1] == self.vocabulary

    @property
    def copies(self) -> int:
        return 2 if self.whole else 1

    def log_p(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the events (n, T + 1), the others last; (n, T) where every token is listed.

        All others have the rest of the probability, which is known to the rounding of the list: that is its floor.
        """
        listed = self.log_prob[rows].double().clamp(min=LOWEST)
        if not self.whole:
            rest = 1 - listed.exp().sum(1, keepdim=True)
            listed = torch.cat([listed, rest.clamp_(min=torch.finfo(self.log_prob.dtype).eps).log_()], 1)
        return torch.log_softmax(listed, 1).to(dtype)

    def check_values(self, divergence: Divergence) -> None:
        """Raises ValueError unless ids are distinct tokens and log_prob is part of a distribution."""
        ids, log_prob = self.ids, self.log_prob
        checks.values((ids >= 0) & (ids < self.vocabulary), f"teacher_ids: expected values in [0, {self.vocabulary})")
        checks.values(ids.sort(1).values.diff(dim=1) != 0, "teacher_ids: expected distinct ids in each row")
        total = log_prob.exp().sum(1)
        checks.values(
            total <= 1 + _TOLERANCE,
            f"teacher_log_prob: expected probabilities that sum to at most 1 in each row (to {_TOLERANCE})",
        )
        if self.whole:
            checks.values(
                total >= 1 - _TOLERANCE,
                f"teacher_log_prob: expected probabilities of all tokens to sum to 1 (to {_TOLERANCE})",
            )
        if divergence.mixture == 1:
            checks.values(
                log_prob > -torch.inf,
                "teacher_log_prob: expected finite values, since kind 'reverse_kl' is "
                "infinite where the teacher has no probability",
            )

    def divergence_(
        self,
        kernels: RowKernels,
        rows: Rows,
        logits: Tensor,
        weights: Tensor | None,
        head: Head,
        divergence: Divergence,
    ) -> RowValues:
        """The values of these rows, see `RowKernels`."""
        ids, log_p = self.ids[rows], self.log_p(rows, logits.dtype)
        if self.whole:
            theirs = torch.empty_like(logits).scatter_(1, ids, log_p)
            return kernels.divergence_(logits, theirs, weights, head, Head(head.weight), divergence)
        return kernels.listed_divergence_(logits, ids, log_p, weights, head, divergence)


Teacher = HeadTeacher | ListTeacher


def row_weights(row_weight: Tensor | None, hidden: Tensor) -> Tensor:
    """(N,) in the accumulation dtype, contiguous; ones where None."""
    dtype = accumulation_dtype(hidden.dtype)
    return hidden.new_ones(hidden.shape[0], dtype=dtype) if row_weight is None else row_weight.to(dtype).contiguous()


def split_rows(weight: Tensor) -> tuple[Tensor | int, Tensor | int]:
    """(rows with a gradient, rows with statistics alone), as index lists, or as a count where that is every row.

    To know the rows of weight zero costs a synchronisation on a GPU, so there every row has a gradient.
    """
    if weight.device.type != "cpu" or bool(weight.all()):
        return weight.numel(), 0
    return weight.nonzero().squeeze(1), (weight == 0).nonzero().squeeze(1)


def run_rows(
    kernels: RowKernels,
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    head: Head,
    teacher: Teacher,
    weights: Tensor | None,  # (N,), d(total loss) / d(row's divergence); None: statistics only
    divergence: Divergence,
    values: RowValues,
    gradients: HeadGradients,
) -> None:
    """The chunk loop: fills `values` (N,) for the rows and adds their gradient products."""
    itemsize = values.entropy.element_size() * teacher.copies
    for chunk in chunks(rows, rows_per_chunk(head.vocabulary, hidden.device, itemsize)):
        part = hidden[chunk]
        logits = head.project_exactly(part)
        found = teacher.divergence_(
            kernels, chunk, logits, None if weights is None else weights[chunk], head, divergence
        )
        for column, value in zip(values, found, strict=True):
            column[chunk] = value
        if weights is not None:
            gradients.add(chunk, part, logits)


def forward(
    kernels: RowKernels,
    hidden: Tensor,  # (N, D)
    head: Head,
    teacher: Teacher,
    row_weight: Tensor | None,  # (N,)
    divergence: Divergence,
    needs: list[bool],
    reduction: str,
) -> tuple[Tensor, RowValues, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' values, and the gradients that are needed."""
    weight = row_weights(row_weight, hidden)
    values = RowValues(torch.zeros_like(weight), torch.zeros_like(weight))
    gradients = HeadGradients(hidden, head, needs)
    scale = weight / weight.sum() if reduction == "mean" else weight
    with_gradient, others = split_rows(weight)
    run_rows(
        kernels,
        with_gradient,
        hidden,
        head,
        teacher,
        scale if gradients.wanted else None,
        divergence,
        values,
        gradients,
    )
    run_rows(kernels, others, hidden, head, teacher, None, divergence, values, gradients)
    return reduced(weighted(values.divergence, weight), weight, reduction), values, gradients

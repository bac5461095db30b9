"""Gradients of linear_divergence in backend `cpp`, by its own matrix products (csrc/cpu/divergence_gradient.h).

A chunk's logits, and those of a teacher's head, are stored transposed: one pass per side writes them and sums their
softmax (csrc/cpu/stream.h). A last pass turns them into gradients in the cache, block by block, and multiplies. For a
teacher's list, the divergence is computed between these passes, from T + 1 numbers per row (`terms.event_terms`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mind_kernels import extension
from mind_kernels.compiled_head import FEWEST_ROWS, PRODUCT_DTYPES, conditions
from mind_kernels.head import Head, HeadGradients, scale_
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import HeadTeacher, ListTeacher, Teacher
from mind_kernels.linear_divergence.terms import EVENT_TENSORS, event_terms
from mind_kernels.row_chunks import Rows

# Logits are stored in whole blocks of the vocabulary (kBlock in csrc/cpu/kernels.h) and whole vectors of rows.
_BLOCK, _LANES = 96, 16
# Rows of a chunk: as many as fit a budget, at most the four strips of 48 of linear_cross_entropy.
_MOST_ROWS, _CHUNK_BYTES = 192, 48 << 20


def exact_rows(rows: int, hidden: Tensor, head: Head, teacher: Teacher, divergence: Divergence) -> _ExactRows | None:
    """See `contract.OwnProducts`."""
    sides = [hidden, teacher.hidden] if isinstance(teacher, HeadTeacher) else [hidden]
    served = all(side.shape[1] > 0 and side.dtype in PRODUCT_DTYPES for side in sides)
    if rows < FEWEST_ROWS or divergence.interpolation != 1 or not served:
        return None
    return _ExactRows(rows, hidden, head, teacher, divergence)


def rows_of_chunk(rows: int, numbers: int) -> int:
    """The number of rows per chunk, at most `rows`, if so many float32 numbers per row are in memory."""
    fit = _CHUNK_BYTES // (4 * numbers * _LANES) * _LANES
    return min(max(fit, _LANES), _MOST_ROWS, rows)


class _ExactRows:
    """See `contract.ExactRows`."""

    def __init__(self, rows: int, hidden: Tensor, head: Head, teacher: Teacher, divergence: Divergence) -> None:
        sides, listed = (2, 0) if isinstance(teacher, HeadTeacher) else (1, teacher.ids.shape[1])
        vocabulary = _up_to_multiple(head.vocabulary, _BLOCK)
        self.size = rows_of_chunk(rows, sides * vocabulary + EVENT_TENSORS * listed)
        # All chunks use the same memory, since fresh pages would cost time.
        shape = sides, vocabulary, _up_to_multiple(self.size, _LANES)
        self._logits = hidden.new_empty(shape, dtype=torch.float32)
        self._head, self._teacher, self._divergence = head, teacher, divergence

    def add(self, rows: Rows, hidden: Tensor, weights: Tensor, gradients: HeadGradients) -> RowValues:
        """See `contract.ExactRows`."""
        if isinstance(self._teacher, HeadTeacher):
            return self._add_dense(rows, hidden, self._teacher, weights, gradients)
        return self._add_listed(rows, hidden, self._teacher, weights, gradients)

    def _add_dense(
        self, rows: Rows, hidden: Tensor, teacher: HeadTeacher, weights: Tensor, gradients: HeadGradients
    ) -> RowValues:
        logits, teacher_logits = self._logits
        softmax = _softmax(hidden, self._head, logits)
        their_softmax = _softmax(teacher.hidden[rows], teacher.head, teacher_logits, conditioned=True)
        value, kind = weights.new_empty(len(hidden)), self._divergence
        parts = kind.teacher_part, kind.student_part, kind.mixture

        def write(of_hidden: Tensor | None, of_weight: Tensor | None, add: bool, of_bias: Tensor | None) -> None:
            _operators().divergence_products(
                logits,
                teacher_logits,
                hidden,
                self._head.weight,
                softmax,
                their_softmax,
                weights,
                *conditions(self._head),
                *parts,
                value,
                of_hidden,
                of_weight,
                add,
                of_bias,
            )

        gradients.write_products(rows, len(hidden), write)
        return RowValues(value, _entropy(softmax), _entropy(their_softmax))

    def _add_listed(
        self, rows: Rows, hidden: Tensor, teacher: ListTeacher, weights: Tensor, gradients: HeadGradients
    ) -> RowValues:
        (logits,), head = self._logits, self._head
        ids = teacher.distinct_ids(rows)
        listed = weights.new_empty(ids.shape)
        others = _softmax(hidden, head, logits, ids, listed)
        maximum, log_total, mean = others.to(listed.dtype)
        log_p = teacher.log_p(rows, head.vocabulary, listed.dtype)
        values, gradient = event_terms(listed, maximum, log_total, mean, log_p, self._divergence)
        gradient.mul_(weights[:, None])
        write = partial(
            _operators().listed_products,
            logits,
            hidden,
            head.weight,
            ids,
            others,
            gradient[:, -1].contiguous(),
            scale_(gradient[:, :-1], head.slope(listed)).contiguous(),
            *conditions(head),
        )
        gradients.write_products(rows, len(hidden), write)
        return values


def _softmax(
    hidden: Tensor,  # (n, D)
    head: Head,
    logits: Tensor,  # to be filled with projected logits, or with z if `conditioned`
    ids: Tensor | None = None,  # (n, T), tokens to leave out
    listed: Tensor | None = None,  # (n, T), filled with their z
    conditioned: bool = False,
) -> Tensor:
    """Maximum, log sum exp(z - maximum) and mean of z - maximum of the rows' softmax, (3, n) float64."""
    softmax = hidden.new_empty(3, len(hidden), dtype=torch.float64)
    _operators().softmax_statistics(
        hidden, head.weight, head.bias, *conditions(head), ids, conditioned, softmax, logits, listed
    )
    return softmax


def _entropy(softmax: Tensor) -> Tensor:
    _, log_total, mean = softmax
    return (log_total - mean).float()


def _operators() -> Any:
    return extension.operators("cpp")


def _up_to_multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit

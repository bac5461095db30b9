"""The pass of the divergences over their rows; a backend supplies the row kernels.

Logits of a chunk in float32 (float64 for float64 input) whatever the input's dtype, the teacher's beside them, row
kernel in place, gradient products; or all of this by the backend, where it has `OwnProducts`. Peak memory: one chunk,
in which both logits share the room, beside the gradients.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_divergence.contract import ExactRows, OwnProducts, RowKernels, RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import HeadTeacher, Teacher
from mind_kernels.linear_divergence.terms import EVENT_TENSORS
from mind_kernels.row_chunks import Rows, row_weights, rows_per_chunk
from mind_kernels.row_loop import loss_of_rows, run_rows


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
    weight = row_weights(row_weight, None, hidden)
    values = RowValues(*(torch.zeros_like(weight) for _ in RowValues._fields))
    gradients = HeadGradients(hidden, head, needs)
    extra = head.vocabulary if isinstance(teacher, HeadTeacher) else EVENT_TENSORS * teacher.ids.shape[1]
    size = rows_per_chunk(head.vocabulary + extra, hidden.device, weight.element_size())

    def kernel(chunk: Rows, part: Tensor, weights: Tensor | None) -> tuple[RowValues, Tensor | None]:
        logits = head.project_wide(part)
        found = _divergence_(kernels, logits, head, teacher, chunk, weights, divergence)
        return found, None if weights is None else logits

    def run(rows: Tensor | int, weights: Tensor | None) -> None:
        exact = None
        if weights is not None and isinstance(kernels, OwnProducts):
            count = rows if isinstance(rows, int) else rows.numel()
            exact = kernels.exact_rows(count, hidden, head, teacher, divergence)
        if exact is None:
            run_rows(rows, size, hidden, weights, kernel, values, gradients)
        else:
            run_rows(rows, exact.size, hidden, weights, partial(_add_exact, exact, gradients), values, gradients)

    return loss_of_rows(None, weight, reduction, values.divergence, gradients, run), values, gradients


def _add_exact(
    exact: ExactRows, gradients: HeadGradients, chunk: Rows, part: Tensor, weights: Tensor | None
) -> tuple[RowValues, None]:
    assert weights is not None
    return exact.add(chunk, part, weights, gradients), None


def _divergence_(
    kernels: RowKernels,
    logits: Tensor,  # (n, V), projected
    head: Head,
    teacher: Teacher,
    rows: Rows,
    weights: Tensor | None,  # (n,)
    divergence: Divergence,
) -> RowValues:
    """The values of these rows of the teacher; with weights the logits become their gradient."""
    if isinstance(teacher, HeadTeacher):
        theirs = teacher.head.project_wide(teacher.hidden[rows]).to(logits.dtype)
        return kernels.divergence_(logits, theirs, weights, head, teacher.head, divergence)
    log_p = teacher.log_p(rows, head.vocabulary, logits.dtype)
    return kernels.listed_divergence_(logits, teacher.distinct_ids(rows), log_p, weights, head, divergence)

"""The pass of linear_divergence over its rows; a backend supplies the row kernels.

For each chunk: the logits of student and teacher in float32 (float64 for float64 input) whatever the input's dtype, the
row kernel in place, and the gradient products; or all of this by the backend, if it has `OwnProducts`. For a head that
is split over processes, the kernels work on the logits of a shard, and between their passes `shard_rows` combines the
results. Peak memory: one chunk, shared by the logits of both sides, beside the gradients.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_divergence import shard_rows
from mind_kernels.linear_divergence.contract import ExactRows, OwnProducts, RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import HeadTeacher, Teacher
from mind_kernels.linear_divergence.terms import EVENT_TENSORS
from mind_kernels.row_chunks import Rows, row_weights, rows_per_chunk, without_spoilt
from mind_kernels.row_loop import loss_of_rows, run_rows
from mind_kernels.shards import Shard


def forward(
    kernels: Any,  # RowKernels, or ShardKernels with a shard
    hidden: Tensor,  # (N, D)
    head: Head,
    teacher: Teacher,
    row_weight: Tensor | None,  # (N,)
    divergence: Divergence,
    needs: list[bool],
    reduction: str,
    shard: Shard | None = None,
) -> tuple[Tensor, RowValues, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' values, and the gradients that are needed.

    For a shard, the gradient of the hidden states is the shard's part."""
    weight = row_weights(row_weight, None, hidden, reduction)
    values = RowValues(*(torch.zeros_like(weight) for _ in RowValues._fields))
    gradients, spoilt = HeadGradients(hidden, head, needs), None
    if row_weight is not None and gradients.wanted:
        hidden, spoilt = without_spoilt(hidden, weight != 0)
    vocabulary = head.vocabulary if shard is None else shard.largest
    extra = vocabulary if isinstance(teacher, HeadTeacher) else EVENT_TENSORS * teacher.ids.shape[1]
    # The teacher's logits are gone when the gradient is rounded for the products.
    rounded = 0 if hidden.dtype == weight.dtype else vocabulary * hidden.element_size()
    bytes_per_row = vocabulary * weight.element_size() + max(extra * weight.element_size(), rounded)

    def kernel(chunk: Rows, part: Tensor, weights: Tensor | None) -> tuple[RowValues, Tensor | None]:
        logits = head.project_wide(part)
        found = _divergence_(kernels, logits, head, teacher, chunk, weights, divergence, shard)
        return found, None if weights is None else logits

    def run(rows: Tensor | int, weights: Tensor | None) -> None:
        exact, count = None, rows if isinstance(rows, int) else rows.numel()
        if weights is not None and shard is None and isinstance(kernels, OwnProducts):
            exact = kernels.exact_rows(count, hidden, head, teacher, divergence)
        if exact is None:
            if weights is None or shard is not None:  # a size of this process alone would leave the others waiting
                size = rows_per_chunk(bytes_per_row, hidden.device, 1)
            else:
                size = gradients.rows_per_chunk(count, bytes_per_row, alone=True)
            run_rows(rows, size, hidden, weights, kernel, values, gradients)
        else:
            run_rows(rows, exact.size, hidden, weights, partial(_add_exact, exact, gradients), values, gradients)

    loss = loss_of_rows(None, weight, reduction, values.divergence, gradients, run)
    if spoilt is not None:
        for value in values if divergence.interpolation != 1 else (values.divergence, values.entropy):
            value.masked_fill_(spoilt, torch.nan)
    return loss, values, gradients


def _add_exact(
    exact: ExactRows, gradients: HeadGradients, chunk: Rows, part: Tensor, weights: Tensor | None
) -> tuple[RowValues, None]:
    assert weights is not None
    return exact.add(chunk, part, weights, gradients), None


def _divergence_(
    kernels: Any,
    logits: Tensor,  # (n, V), projected
    head: Head,
    teacher: Teacher,
    rows: Rows,
    weights: Tensor | None,  # (n,)
    divergence: Divergence,
    shard: Shard | None,
) -> RowValues:
    """The values of these rows; with weights, overwrites the logits by their gradient."""
    if isinstance(teacher, HeadTeacher):
        theirs = teacher.head.project_wide(teacher.hidden[rows]).to(logits.dtype)
        of_rows = logits, theirs, weights, head, teacher.head, divergence
        return kernels.divergence_(*of_rows) if shard is None else shard_rows.divergence_(kernels, *of_rows, shard)
    vocabulary = head.vocabulary if shard is None else shard.vocabulary
    of_rows = (
        logits,
        teacher.distinct_ids(rows),
        teacher.log_p(rows, vocabulary, logits.dtype),
        weights,
        head,
        divergence,
    )
    if shard is None:
        return kernels.listed_divergence_(*of_rows)
    return shard_rows.listed_divergence_(kernels, *of_rows, shard)

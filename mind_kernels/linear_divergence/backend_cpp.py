"""Divergences by the compiled kernels of csrc/cpu: divergence.h on a chunk of logits, and `streamed_rows` for
gradients.

The kernels of divergence.h read both rows from memory once, and overwrite the student's once. PyTorch gathers and
scatters the T listed tokens per row of a teacher's list.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from mind_kernels import extension
from mind_kernels.compiled_head import conditions
from mind_kernels.head import Head
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.listed_rows import listed_divergence_by
from mind_kernels.linear_divergence.streamed_rows import exact_rows

__all__ = ["divergence_", "exact_rows", "listed_divergence_"]


def _operators() -> Any:
    return extension.operators("cpp")


def divergence_(
    logits: Tensor,  # (n, V), projected
    teacher_logits: Tensor,  # (n, V), projected
    weights: Tensor | None,  # (n,)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    values = RowValues(*logits.new_empty(len(RowValues._fields), logits.shape[0]))
    parts = divergence.teacher_part, divergence.student_part, divergence.mixture, divergence.interpolation
    _operators().divergence_(
        logits, teacher_logits, weights, *conditions(head), *conditions(teacher_head), *parts, *values
    )
    return values


def _others(logits: Tensor, head: Head) -> Tensor:
    numbers = logits.new_empty(3, logits.shape[0])
    _operators().others(logits, *conditions(head), numbers)
    return numbers


def _spread_(logits: Tensor, numbers: Tensor, gradient: Tensor, head: Head) -> None:
    _operators().spread_(logits, numbers, gradient, *conditions(head))


listed_divergence_ = partial(listed_divergence_by, _others, _spread_)
"""See `contract.RowKernels`."""

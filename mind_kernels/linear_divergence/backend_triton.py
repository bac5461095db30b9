"""Divergences with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

The logits of a chunk, float32 whatever the input's dtype, are read three times and overwritten once; see `triton_rows`
for the passes. The listed tokens of a teacher's list, T a row, are gathered and scattered by PyTorch.
"""

from __future__ import annotations

from torch import Tensor

from mind_kernels.head import Head, scale_
from mind_kernels.linear_divergence._triton import rows as triton_rows
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import LOWEST
from mind_kernels.linear_divergence.terms import event_terms


def divergence_(
    logits: Tensor,  # (n, V), projected
    teacher_logits: Tensor,  # (n, V), projected
    weights: Tensor | None,  # (n,)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    return RowValues(*triton_rows.row_kernel_(logits, teacher_logits, weights, head, teacher_head, divergence))


def listed_divergence_(
    logits: Tensor,  # (n, V), projected
    ids: Tensor,  # (n, T)
    log_p: Tensor,  # (n, T + 1)
    weights: Tensor | None,  # (n,)
    head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    listed = head.to_logits_(logits.gather(1, ids))
    logits.scatter_(1, ids, LOWEST)
    numbers = triton_rows.others(logits, head)
    value, entropy, gradient = event_terms(listed, *numbers, log_p, divergence)
    if weights is not None:
        gradient.mul_(weights[:, None])
        triton_rows.spread_(logits, numbers, gradient[:, -1].contiguous(), head)
        logits.scatter_(1, ids, scale_(gradient[:, :-1], head.slope(listed)))
    return RowValues(value, entropy)

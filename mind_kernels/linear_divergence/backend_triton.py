"""Divergences with Triton row kernels around cuBLAS products, for NVIDIA GPUs (and Triton's interpreter).

The logits of a chunk, float32 whatever the input's dtype, are read three times and overwritten once; see `_triton` for
the passes. The listed tokens of a teacher's list, T per row, are gathered and scattered by PyTorch.
"""

from __future__ import annotations

from torch import Tensor

from mind_kernels.head import Head, scale_
from mind_kernels.linear_divergence._triton.listed import LISTED, others, spread_
from mind_kernels.linear_divergence._triton.rows import divergence_
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.terms import event_terms

__all__ = ["divergence_", "listed_divergence_"]


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
    logits.scatter_(1, ids, LISTED.value)
    numbers = others(logits, head)
    maximum, log_total, mean = numbers
    value, entropy, gradient = event_terms(listed, maximum, log_total, mean, log_p, divergence)
    if weights is not None:
        gradient.mul_(weights[:, None])
        spread_(logits, numbers, gradient[:, -1].contiguous(), head)
        logits.scatter_(1, ids, scale_(gradient[:, :-1], head.slope(listed)))
    return RowValues(value, entropy)

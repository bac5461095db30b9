"""The divergence from a teacher's list, by two kernels of a backend for the tokens that are not listed.

One kernel computes their sums, the other their gradient. PyTorch gathers and scatters the T listed tokens per row.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mind_kernels.head import Head, scale_
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import LISTED
from mind_kernels.linear_divergence.terms import event_terms


def listed_divergence_by(
    others: Callable[[Tensor, Head], Tensor],
    spread_: Callable[[Tensor, Tensor, Tensor, Head], None],
    logits: Tensor,  # (n, V), projected
    ids: Tensor,  # (n, T)
    log_p: Tensor,  # (n, T + 1)
    weights: Tensor | None,  # (n,)
    head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels.listed_divergence_`.

    Args:
        others: (logits, head) -> maximum, log-sum-exp and mean (3, n) of the tokens that are not listed.
        spread_: (logits, those numbers, gradient (n,) of the last event, head): overwrites the logits by the gradient
            of these tokens. Both recognize a listed token by the logit LISTED, before a softcap.
    """
    listed = head.to_logits_(logits.gather(1, ids))
    logits.scatter_(1, ids, LISTED)
    numbers = others(logits, head)
    maximum, log_total, mean = numbers
    values, gradient = event_terms(listed, maximum, log_total, mean, log_p, divergence)
    if weights is not None:
        gradient.mul_(weights[:, None])
        spread_(logits, numbers, gradient[:, -1].contiguous(), head)
        logits.scatter_(1, ids, scale_(gradient[:, :-1], head.slope(listed)))
    return values

"""The definition of the divergences: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Exact in the dtype of its input (float64 in, float64 throughout); half-precision logits are widened to
float32 after the product. The divergence of two rows is defined in `kinds`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.contract import DivergenceOutputs, RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import LOWEST, ListTeacher, Teacher
from mind_kernels.row_chunks import reduced, row_weights, weighted


def events(
    log_q: Tensor,  # (N, V)
    ids: Tensor,  # (N, T)
) -> Tensor:
    """Log-probabilities of each listed token and of all others together, (N, T + 1); (N, T) where T is V."""
    listed = log_q.gather(1, ids)
    if ids.shape[1] == log_q.shape[1]:
        return listed
    return torch.cat([listed, log_q.scatter(1, ids, LOWEST).logsumexp(1, keepdim=True)], 1)


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    teacher: Teacher,
    row_weight: Tensor | None,  # (N,)
    divergence: Divergence,
    reduction: str,
) -> DivergenceOutputs:
    """The loss, differentiable, and the rows' values, without a gradient."""
    log_q = torch.log_softmax(head.logits(hidden), -1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    if isinstance(teacher, ListTeacher):
        log_q, log_p = events(log_q, teacher.ids), teacher.log_p(slice(None), head.vocabulary, log_q.dtype)
    else:
        log_p = torch.log_softmax(teacher.head.logits(teacher.hidden).to(log_q.dtype), -1)
    rows = divergence.of(log_q, log_p)
    weight = row_weights(row_weight, None, hidden)
    loss = reduced(weighted(rows, weight), weight, reduction)
    return DivergenceOutputs(loss, RowValues(rows.detach(), entropy.detach()))

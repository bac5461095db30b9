"""The definition of the divergences: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Exact in the dtype of its input (float64 in, float64 throughout); half-precision logits are widened to
float32 after the product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.rows import LOWEST, ListTeacher, Teacher, row_weights
from mind_kernels.row_chunks import reduced, weighted


def kl(log_x: Tensor, log_m: Tensor) -> Tensor:
    """KL(x || m), (N, V) -> (N,)."""
    return (log_x.exp() * (log_x - log_m)).sum(-1)


def row_divergence(
    log_q: Tensor,  # (N, V), the student's
    log_p: Tensor,  # (N, V), the teacher's
    divergence: Divergence,
) -> Tensor:
    """The divergence of each row, (N,)."""
    c = divergence.mixture
    if divergence.interpolation != 1:
        log_p = torch.log_softmax(torch.lerp(log_q.detach(), log_p, divergence.interpolation), -1)
    log_m = {0: log_q, 1: log_p}.get(c)
    if log_m is None:
        log_m = torch.logaddexp(log_p + math.log(c), log_q + math.log1p(-c))
    parts = ((divergence.teacher_part, log_p), (divergence.student_part, log_q))
    return sum(part * kl(log_x, log_m) for part, log_x in parts if part)


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
) -> tuple[Tensor, RowValues]:
    """The loss, () or (N,) for reduction "none", and the rows' values, without a gradient."""
    log_q = torch.log_softmax(head.logits(hidden), -1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    if isinstance(teacher, ListTeacher):
        log_q, log_p = events(log_q, teacher.ids), teacher.log_p(slice(None), log_q.dtype)
    else:
        log_p = torch.log_softmax(teacher.head.logits(teacher.hidden).to(log_q.dtype), -1)
    rows = row_divergence(log_q, log_p, divergence)
    weight = row_weights(row_weight, hidden)
    return reduced(weighted(rows, weight), weight, reduction), RowValues(rows.detach(), entropy.detach())

"""The definition of the divergences: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Computes in the dtype of its input (float64 throughout for float64 input); half-precision logits are
converted to float32 after the product. `kinds` defines the divergence of two rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mind_kernels.definitions import entropy, project_weighted
from mind_kernels.head import Head
from mind_kernels.linear_divergence.contract import DivergenceOutputs, RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import ListTeacher, Teacher
from mind_kernels.row_chunks import accumulation_dtype, reduced, row_weights, scale_of_rows


def events(
    logits: Tensor,  # (N, V)
    ids: Tensor,  # (N, T)
    log_p: Tensor,  # (N, T + 1), the teacher's; minus infinity for no event
) -> Tensor:
    """Log-probabilities (N, T + 1) of each listed token and of all others together; renormalized if the latter are no
    event."""
    is_event = log_p > -math.inf
    listed, vocabulary = is_event[:, :-1], logits.shape[1]
    log_q, of_all = torch.log_softmax(logits, 1), logits.logsumexp(1, keepdim=True)
    taken = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device)
    taken = taken.scatter(1, torch.where(listed, ids, vocabulary), True)[:, :vocabulary]
    others = log_q.masked_fill(taken, -math.inf)
    some = (others != -math.inf).any(1, keepdim=True)  # or nan; without any, log-sum-exp would have no gradient
    rest = torch.where(some, torch.where(some, others, 0).logsumexp(1, keepdim=True), -math.inf - of_all)
    found = torch.where(is_event, torch.cat([log_q.gather(1, torch.where(listed, ids, 0)), rest], 1), -math.inf)
    return torch.where(is_event[:, -1:], found, torch.log_softmax(found, 1))


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    teacher: Teacher,
    row_weight: Tensor | None,  # (N,)
    divergence: Divergence,
    reduction: str,
) -> DivergenceOutputs:
    """The loss, which is differentiable, and the rows' values, without a gradient."""
    weight = row_weights(row_weight, None, hidden, reduction)
    projected = project_weighted(head, hidden, weight != 0)  # without weight, their divergence may be infinite
    logits = head.to_logits(projected.to(accumulation_dtype(hidden.dtype)))
    log_q = torch.log_softmax(logits, -1)
    row_entropy = entropy(log_q)
    if isinstance(teacher, ListTeacher):
        log_p = teacher.log_p(slice(None), head.vocabulary, log_q.dtype)
        log_q = events(logits, teacher.ids, log_p)
    else:
        log_p = torch.log_softmax(teacher.head.logits(teacher.hidden).to(log_q.dtype), -1)
    log_p = divergence.target(log_q, log_p)
    rows = divergence.of(log_q, log_p)
    loss = reduced(rows, scale_of_rows(weight, reduction), reduction)
    return DivergenceOutputs(loss, RowValues(rows.detach(), row_entropy.detach(), entropy(log_p)))

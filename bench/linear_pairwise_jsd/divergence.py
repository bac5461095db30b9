"""The divergences by definition, on logits: every entry of a pair's and of a mixture's mean is formed in log space."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """i and j of all pairs i < j of `count` rows."""
    i, j = torch.triu_indices(count, count, offset=1, device=device)
    return i, j


def pair_divergences(logits: Tensor) -> Tensor:
    """JSD of every pair, (P, K, V) -> (P, K (K - 1) / 2)."""
    i, j = pairs(logits.shape[1], logits.device)
    log_p = logits.log_softmax(-1)
    log_p, log_q = log_p.index_select(1, i), log_p.index_select(1, j)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2


def pair_loss(logits: Tensor, pair_weight: Tensor) -> Tensor:
    """sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j)."""
    i, j = pairs(logits.shape[1], logits.device)
    return (pair_weight[:, i, j].to(logits.dtype) * pair_divergences(logits)).sum()


def mixture_loss(
    logits: Tensor,  # (P, K, V)
    mixture_weight: Tensor,  # (P, K), positive
) -> Tensor:
    """sum_p sum_k w_k KL(P_k || M), M = sum_k w_k P_k / sum_k w_k."""
    log_p = logits.log_softmax(-1)
    shares = mixture_weight / mixture_weight.sum(1, keepdim=True)
    log_m = (log_p + shares.log().to(log_p.dtype)[..., None]).logsumexp(1, keepdim=True)
    return (mixture_weight * (log_p.exp() * (log_p - log_m)).sum(-1)).sum()

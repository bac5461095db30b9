"""The definition of the pairwise JSD: plain PyTorch, unchunked, differentiable any number of times.

JSD(P || Q) = H((P + Q) / 2) - (H(P) + H(Q)) / 2 in nats, in the form KL(P || M) / 2 + KL(Q || M) / 2. Allocates
P x K x V. Its float64 result is the oracle; in float32 it cancels where P and Q nearly coincide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pairwise_jsd(logits: Tensor, mask: Tensor) -> Tensor:
    """JSD of every pair, (P, K, V) -> (P, K, K), symmetric with zero diagonal; zero where `mask` (P, K) is False."""
    log_p = torch.log_softmax(logits, dim=-1)
    count = logits.shape[1]
    divergences = {}
    for i in range(count):
        for j in range(i + 1, count):
            log_m = torch.logaddexp(log_p[:, i], log_p[:, j]) - math.log(2)
            terms = log_p[:, i].exp() * (log_p[:, i] - log_m) + log_p[:, j].exp() * (log_p[:, j] - log_m)
            divergences[i, j] = terms.sum(-1) / 2
    zero = logits.new_zeros(logits.shape[0])
    rows = [[divergences.get((min(i, j), max(i, j)), zero) for j in range(count)] for i in range(count)]
    jsd = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.where(mask[:, :, None] & mask[:, None, :], jsd, 0)


def weighted_sum(jsd: Tensor, pair_weight: Tensor) -> Tensor:
    """sum_p sum_{i<j} pair_weight[p, i, j] jsd[p, i, j]."""
    return (jsd * pair_weight.to(jsd.dtype)).triu(diagonal=1).sum()

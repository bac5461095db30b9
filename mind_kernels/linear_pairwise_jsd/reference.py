"""The definitions of linear_pairwise_jsd: plain PyTorch, unchunked, differentiable any number of times.

JSD(P || Q) = KL(P || M) / 2 + KL(Q || M) / 2 with M = (P + Q) / 2, the Jeffreys divergence KL(P || Q) + KL(Q || P), and
KL(P_k || M) with M = sum_k w_k P_k / sum_k w_k, in nats. Allocates P x K x V. The tests compare with the float64
result; in float32, nearly equal rows lose their digits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mind_kernels.definitions import finite, kl
from mind_kernels.linear_pairwise_jsd.forms import PAIRS, form_of


def pairwise_jsd(logits: Tensor, mask: Tensor) -> Tensor:
    """JSD of every pair, (P, K, V) -> (P, K, K), symmetric with zero diagonal; zero for rows whose `mask` (P, K) is
    False."""

    def jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(finite(log_p), finite(log_q)) - math.log(2)
        return (kl(log_p, log_m) + kl(log_q, log_m)) / 2

    return _of_pairs(jsd, logits, mask)


def pairwise_jeffreys(logits: Tensor, mask: Tensor) -> Tensor:
    """KL(P || Q) + KL(Q || P) of every pair, as `pairwise_jsd`."""
    return _of_pairs(lambda log_p, log_q: kl(log_p, log_q) + kl(log_q, log_p), logits, mask)


def _of_pairs(divergence: Callable[[Tensor, Tensor], Tensor], logits: Tensor, mask: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, dim=-1)
    count = logits.shape[1]
    pairs = itertools.combinations(range(count), 2)
    divergences = {(i, j): divergence(log_p[:, i], log_p[:, j]) for i, j in pairs}
    zero = logits.new_zeros(logits.shape[0])
    rows = [[divergences.get((min(i, j), max(i, j)), zero) for j in range(count)] for i in range(count)]
    values = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.where(mask[:, :, None] & mask[:, None, :], values, 0)


def mixture_kl(logits: Tensor, mixture_weight: Tensor, mask: Tensor) -> Tensor:
    """KL(P_k || M), (P, K, V) -> (P, K); zero for rows whose `mask` (P, K) is False and in groups without weight."""
    weight = torch.where(mask, mixture_weight.to(logits.dtype), 0)
    total = weight.sum(1, keepdim=True)
    log_p = torch.log_softmax(logits, dim=-1)
    share = weight / torch.where(total > 0, total, 1)
    # A group without weight gets any mixture: its divergences are not used.
    log_share = torch.where(total > 0, share, 1).log()[..., None]
    log_m = torch.logsumexp(finite(log_p) + log_share, dim=1, keepdim=True)
    log_m = log_m.masked_fill((log_p + log_share == -math.inf).all(1, keepdim=True), -math.inf)
    weighted = torch.where(weight[..., None] > 0, log_p, log_p.detach())  # that of others may be infinite
    return torch.where(mask & (total > 0), kl(weighted, log_m), 0)


def divergences(logits: Tensor, weight: Tensor, mask: Tensor, kind: str = "jsd") -> Tensor:
    """The divergences of all pairs for weights (P, K, K), and of rows from their mixture for weights (P, K)."""
    form = form_of(weight)
    # Rows that the loss does not depend on get no gradient, even if they have no softmax: 0 times nan is nan.
    logits = torch.where(form.weighted_rows(weight, mask)[..., None], logits, logits.detach())
    if form is not PAIRS:
        return mixture_kl(logits, weight, mask)
    return pairwise_jsd(logits, mask) if kind == "jsd" else pairwise_jeffreys(logits, mask)


def group_loss(divergence: Tensor, weight: Tensor) -> Tensor:
    """sum_p sum_{i<j} weight[p, i, j] divergence[p, i, j] for pairs (P, K, K); sum_p sum_k for rows (P, K)."""
    return form_of(weight).loss(divergence, weight)

"""Entropies and Kullback-Leibler divergences with 0 log 0 = 0, and logits of rows without weight, for the definitions
of the operations.

An entry of probability 0, such as a token whose logit is minus infinity, adds nothing to either and has no gradient. If
only the second distribution has probability 0 there, the divergence is infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head


def finite(log_p: Tensor) -> Tensor:
    """Logarithms, with minus infinity replaced by the lowest finite number, so that they can be added and
    subtracted."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def kl(log_x: Tensor, log_m: Tensor) -> Tensor:
    """KL(x || m) per row, from log-probabilities (..., E): the sum of x log(x / m) over entries in which x is not 0."""
    x = log_x.exp()
    return (x * torch.where(x == 0, 0, log_x - log_m)).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy per row, from log-probabilities (..., E)."""
    return -kl(log_p, torch.zeros_like(log_p))


def project_weighted(head: Head, hidden: Tensor, has_weight: Tensor) -> Tensor:
    """The projected logits (N, V) of hidden (N, D), differentiable in the rows that have weight (N,) bool.

    The others get a gradient of 0 and add none to the head's, whatever they hold.
    """
    has_weight = has_weight[:, None]
    known = torch.where(has_weight, hidden, torch.where(hidden.isfinite(), hidden, 0).detach())  # 0 times nan is nan
    return torch.where(has_weight, head.project(known), head.project(hidden).detach())

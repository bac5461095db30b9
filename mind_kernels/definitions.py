"""What the definitions of the operations share: entropies and Kullback-Leibler divergences in which 0 log 0 is 0.

An entry without probability, such as a token whose logit is minus infinity, adds nothing to either and has no
gradient. Where the second distribution alone has none, the divergence is infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor


def finite(log_p: Tensor) -> Tensor:
    """Logarithms with the lowest finite number in place of minus infinity, for sums and differences of them."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def kl(log_x: Tensor, log_m: Tensor) -> Tensor:
    """KL(x || m) of log-probabilities (..., E), one per row: sum of x log(x / m) where x is not 0."""
    x = log_x.exp()
    return (x * torch.where(x == 0, 0, log_x - log_m)).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy of log-probabilities (..., E), one per row."""
    return -kl(log_p, torch.zeros_like(log_p))

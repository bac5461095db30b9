"""Masked logits, and definitions of what follows from them that know nothing of logarithms of 0.

Everything here is float64, from probabilities by torch.special.xlogy, whose 0 log 0 is 0, and gradients by formula; or
it is plain PyTorch on the vocabulary without the masked entries.
"""

from __future__ import annotations

import math

import torch
from torch.special import xlogy

LOWEST = [-math.inf, -1e30, torch.finfo(torch.float32).min]


def lowest_of(dtype: torch.dtype) -> list[float]:
    """What a vocabulary is masked with, in logits of this dtype."""
    return [-math.inf, torch.finfo(dtype).min] + ([] if dtype == torch.float16 else [-1e30])


def kept_columns(rows: int, vocabulary: int, kept: int, target: torch.Tensor | None = None) -> torch.Tensor:
    """(rows, kept), increasing: columns of each row that stay, others in each; the target's is one of them."""
    order = torch.rand(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    if target is not None:
        order.scatter_(1, target.cpu()[:, None], 2.0)
    columns = order.topk(kept).indices.sort().values
    return columns if target is None else columns.to(target.device)


def mask_all_but(logits: torch.Tensor, columns: torch.Tensor, lowest: float) -> torch.Tensor:
    """Logits (n, V) with `lowest` everywhere but in these columns (n, kept)."""
    return torch.full_like(logits, lowest).scatter(1, columns, logits.gather(1, columns))


def widen(gradient: torch.Tensor, columns: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """(n, V) of (n, kept): 0 in all other columns."""
    return gradient.new_zeros(len(gradient), vocabulary).scatter(1, columns, gradient)


def kl(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """KL(x || m) of probabilities (..., V): infinite where m alone is 0."""
    return (xlogy(x, x) - xlogy(x, m)).sum(-1)


def log_ratio(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """log(x / m), and 0 where x is."""
    return torch.where(x > 0, x.log() - m.log(), 0)


def of_row(derivative: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """p (F' - S), the gradient with respect to logits: see linear_pairwise_jsd/README.md."""
    return p * (derivative - (p * derivative).sum(-1, keepdim=True))


def defined_groups(logits: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values and gradient of pairs (G, K, K) or a mixture (G, K), as in `kernel_cases.eager_groups`."""
    p, weight = torch.softmax(logits.double(), -1), weight.double()
    derivative, count = torch.zeros_like(p), p.shape[1]
    if weight.dim() == 2:
        weight = torch.where(mask, weight, 0)
        total = weight.sum(1, keepdim=True)
        m = (weight[..., None] * p).sum(1, keepdim=True) / torch.where(total > 0, total, 1)[..., None]
        values = torch.where(mask & (total > 0), kl(p, m), 0)
        derivative = torch.where(weight[..., None] > 0, weight[..., None] * log_ratio(p, m), 0)
        return {"values": values, "gradient": of_row(derivative, p)}
    values = p.new_zeros(len(p), count, count)
    for i in range(count):
        for j in range(i + 1, count):
            both = mask[:, i] & mask[:, j]
            m = (p[:, i] + p[:, j]) / 2
            values[:, i, j] = values[:, j, i] = torch.where(both, (kl(p[:, i], m) + kl(p[:, j], m)) / 2, 0)
            half = torch.where(both, weight[:, i, j] / 2, 0)[:, None]
            derivative[:, i] += half * log_ratio(p[:, i], m)
            derivative[:, j] += half * log_ratio(p[:, j], m)
    return {"values": values, "gradient": of_row(derivative, p)}


def defined_divergence(q, p, divergence):
    """Value (n,) and gradient (n, E) with respect to the student's logits, of probabilities (n, E) of events."""
    c = divergence.mixture
    m = c * p + (1 - c) * q
    value = torch.zeros_like(q[:, 0])
    if divergence.teacher_part:
        value = value + divergence.teacher_part * kl(p, m)
    if divergence.student_part:
        value = value + divergence.student_part * kl(q, m)
    if c == 0:
        return value, q - p
    of_difference = torch.where(m > 0, (q - p) / m, 0)
    derivative = divergence.student_part * log_ratio(q, m)
    return value, of_row(derivative + (1 - c) * divergence.difference_part * of_difference, q)


def interpolated(logits, teacher_logits, interpolation):
    """softmax((1 - t) z + t z_teacher) of logits that may be -inf, t in [0, 1]: 0 times minus infinity is 0."""

    def part(z, share):
        return z.double() * share if share else torch.zeros_like(z, dtype=torch.float64)

    return torch.softmax(part(logits, 1 - interpolation) + part(teacher_logits, interpolation), -1)

"""Jeffreys divergences of pairs in plain PyTorch, on any device: values and gradient in float64, from float32 logits.

    J = sum (p - q) (log p - log q)
    dz_i = p_i (F'_i - S_i) + sum_j w_ij (p_i - p_j),   F'_i = sum_j w_ij log(p_i / p_j)

There is no logarithm of a sum: with the weights' Laplacian L, both sums over j are products L log p and L p. In float64
the plain formulas are accurate enough: for log-ratios of t, a divergence of t^2 has a relative error of about 1e-16 /
t.

Peak memory: as in backend_torch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mind_kernels.linear_pairwise_jsd.backend_torch import (
    Buffers,
    Run,
    distinct,
    gaps,
    pairs_of,
    run,
)
from mind_kernels.row_chunks import chunks

# The log-probability of an excluded token: its product with any weight of float32 is finite.
_LOWEST = -1e260
# A larger divergence is p times a difference from _LOWEST: only one row of the pair excludes the token.
_INFINITE = 1e30


class JeffreysSteps:
    """See `Steps`: the Jeffreys divergences of the pairs, given their weights (G, pairs)."""

    least = _LOWEST

    def __init__(self, weight: Tensor, count: int, buffers: Buffers) -> None:
        self._weight, self._count, self._buffers = weight, count, buffers
        weights = symmetric(weight, count)
        self._laplacian = torch.diag_embed(weights.sum(-1)) - weights

    def sums(self, part: slice, log_p: Tensor, p: Tensor, derivative: Tensor) -> Tensor:
        buffers, count = self._buffers, self._count
        sums = p.new_zeros(len(p), self._weight.shape[1])
        for columns in chunks(p.shape[2], buffers.columns):
            of_p, of_log_p = (b[: len(p), :, : columns.stop - columns.start] for b in (buffers.sums, buffers.log_sums))
            for gap, rows in gaps(count):
                torch.sub(p[:, : count - gap, columns], p[:, gap:, columns], out=of_p[:, rows])
                torch.sub(log_p[:, : count - gap, columns], log_p[:, gap:, columns], out=of_log_p[:, rows])
            sums += torch.linalg.vecdot(of_p, of_log_p)
        torch.bmm(self._laplacian[part], log_p, out=derivative)
        return sums

    def values(self, sums: Tensor) -> Tensor:
        return sums.clamp(min=0).masked_fill_(sums > _INFINITE, math.inf)

    def gradient_(self, part: slice, p: Tensor, derivative: Tensor, scalar: Tensor, values: Tensor) -> Tensor:
        infinite = symmetric((values == math.inf) & (self._weight[part] != 0), self._count).any(-1)
        derivative.sub_(scalar.masked_fill(infinite[..., None], math.nan)).mul_(p)
        return derivative.baddbmm_(self._laplacian[part], p)


def symmetric(of_pairs: Tensor, count: int) -> Tensor:
    """The symmetric matrices (g, K, K) with the numbers of pairs (g, pairs)."""
    first, second = pairs_of(count, of_pairs.device)
    out = of_pairs.new_zeros(len(of_pairs), count, count)
    out[:, first, second] = out[:, second, first] = of_pairs
    return out


def pair_divergences(
    logits: Tensor,  # (G, K, V) float32 or float64, softcap and temperature applied
    pair_weight: Tensor,  # (G, K, K), its upper triangle counts
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `contract.GroupKernels`."""
    return pairs_by(run, distinct(logits), logits, pair_weight, mask, with_gradient)


def pairs_by(
    run: Run, differ: Tensor, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """`pair_divergences`; `differ` (G, pairs) bool says which pairs have rows that differ."""
    count = logits.shape[1]
    first, second = pairs_of(count, logits.device)
    counted = mask[:, first] & mask[:, second] & differ
    weight = torch.where(counted, pair_weight[:, first, second], 0).double()
    values, gradient = run(logits, len(first), lambda buffers: JeffreysSteps(weight, count, buffers), with_gradient)
    return symmetric(torch.where(counted, values.to(logits.dtype), 0), count), gradient

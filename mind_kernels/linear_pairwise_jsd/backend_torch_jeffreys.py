"""Jeffreys divergences of pairs in plain PyTorch, on any device: values and gradient in float64, from float32 logits.

    J = sum (p - q) (log p - log q)
    dz_i = p_i (F'_i - S_i) + sum_j w_ij (p_i - p_j),   F'_i = sum_j w_ij log(p_i / p_j)

No logarithm of a sum: with the weights' Laplacian L both sums over j are products L log p and L p. In float64 the plain
formulas serve: at log-ratios of t a divergence of t^2 errs by about 1e-16 / t of itself.

Peak memory: as in backend_torch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mind_kernels.linear_pairwise_jsd.backend_torch import (
    LOWEST,
    Buffers,
    distinct,
    gaps,
    pairs_of,
    run_blocks,
    times_p_,
)
from mind_kernels.row_chunks import chunks

# Above it a divergence is p times a difference from LOWEST: of a token that one row of a pair alone has ruled out.
_INFINITE = 1e30


def pair_divergences(
    logits: Tensor,  # (G, K, V) float32 or float64, softcap and temperature applied
    pair_weight: Tensor,  # (G, K, K), its upper triangle counts
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `contract.GroupKernels`."""
    groups, count, vocabulary = logits.shape
    first, second = pairs_of(count, logits.device)
    counted = mask[:, first] & mask[:, second] & distinct(logits)
    weight = torch.where(counted, pair_weight[:, first, second], 0).double()
    buffers = Buffers(logits, len(first))

    def symmetric(of_pairs: Tensor) -> Tensor:
        out = of_pairs.new_zeros(len(of_pairs), count, count)
        out[:, first, second] = out[:, second, first] = of_pairs
        return out

    def block(part: slice) -> tuple[Tensor, Tensor | None]:
        log_p, p, derivative = buffers.fill(logits[part], LOWEST)
        values = p.new_zeros(len(p), len(first))
        for columns in chunks(vocabulary, buffers.columns):
            of_p, of_log_p = (b[: len(p), :, : columns.stop - columns.start] for b in (buffers.sums, buffers.log_sums))
            for gap, rows in gaps(count):
                torch.sub(p[:, : count - gap, columns], p[:, gap:, columns], out=of_p[:, rows])
                torch.sub(log_p[:, : count - gap, columns], log_p[:, gap:, columns], out=of_log_p[:, rows])
            values += torch.linalg.vecdot(of_p, of_log_p)
        infinite = values > _INFINITE
        values.clamp_(min=0).masked_fill_(infinite, math.inf)
        if not with_gradient:
            return values, None
        weights = symmetric(weight[part])
        laplacian = torch.diag_embed(weights.sum(-1)) - weights
        torch.bmm(laplacian, log_p, out=derivative)
        times_p_(derivative, p, symmetric(infinite & (weight[part] != 0)).any(-1))
        return values, derivative.baddbmm_(laplacian, p)

    values, gradient = run_blocks(logits, buffers.groups, block, with_gradient)
    return symmetric(torch.where(counted, values.to(logits.dtype), 0)), gradient

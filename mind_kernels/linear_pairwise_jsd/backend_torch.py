"""Chunked pairwise JSD in plain PyTorch, on any device.

Passes over a chunk of whole groups: log-sum-exp; divergences of all pairs with F', the derivative of each row's share
with respect to its probabilities; gradient p (F' - S). Peak memory: two chunks of float32 logits (the logits and their
gradient) beside the gradients. Logits of these rows are float32 (float64 for float64 input) whatever the input's dtype.

Cancellation-proof. For a pair, u = (log q - log p) / 2, s = |u|, E = exp(-2 s) and L = log cosh u give
    log(p / m) = -u - L,   log(q / m) = u - L,
and the pair's entry, max(p, q) [s (1 - E) / 2 - (1 + E) L / 2], is non-negative: about max(p, q) s^2 / 2 for small s.
With L = s + R, R = log1p(E) - log 2, no term grows with s, so saturated rows lose nothing either. The row scalar
S = sum p F' / sum p is made from the same numbers as F', so a rounding error of lse cancels in F' - S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mind_kernels.row_chunks import Head, HeadGradients, chunks, rows_per_block, rows_per_chunk

_SMALL = 1.0  # below it L is taken as log1p(2 sinh(s / 2)^2), above it as s + R: both lose about one bit there


def pair_terms(u: Tensor, larger: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log(p / m), log(q / m) and the pair's entry of the divergence, from u and max(p, q), elementwise."""
    s = u.abs()
    ratio = torch.exp(-2 * s)
    small = s < _SMALL
    near = torch.log1p(2 * torch.sinh(s.clamp(max=_SMALL) / 2).square())
    rest = torch.where(small, near - s, torch.log1p(ratio) - math.log(2))
    entry = torch.where(small, -s * torch.expm1(-2 * s) - (1 + ratio) * near, -2 * s * ratio - (1 + ratio) * rest)
    return -(u + s) - rest, (u - s) - rest, larger * entry / 2


def group_kernel(
    logits: Tensor,  # (G, K, V), conditioned, float32 or float64
    pair_weight: Tensor,  # (G, K, K), its upper triangle counts
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """(jsd (G, K, K), gradient of the weighted sum with respect to the logits (G, K, V) or None)."""
    groups, count, vocabulary = logits.shape
    jsd = logits.new_zeros(groups, count, count)
    gradient = torch.empty_like(logits) if with_gradient else None
    # A group's temporaries are about 2 K rows wide, so blocks hold that many fewer groups.
    for block in chunks(groups, max(1, rows_per_block(vocabulary, logits.device) // (2 * count))):
        _block(logits[block], pair_weight[block], mask[block], jsd[block],
               None if gradient is None else gradient[block])
    return jsd, gradient


def _block(logits: Tensor, pair_weight: Tensor, mask: Tensor, jsd: Tensor, gradient: Tensor | None) -> None:
    count = logits.shape[1]
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    derivative = None if gradient is None else gradient.zero_()  # F', then the gradient itself
    for i in range(count - 1):
        others = slice(i + 1, count)
        both = mask[:, i, None] & mask[:, others]
        u = (log_p[:, others] - log_p[:, i, None]) / 2
        own, theirs, entry = pair_terms(u, torch.maximum(p[:, i, None], p[:, others]))
        value = torch.where(both, entry.sum(-1), 0)
        jsd[:, i, others] = value
        jsd[:, others, i] = value
        if derivative is not None:
            half = torch.where(both, pair_weight[:, i, others] / 2, 0)[..., None]
            derivative[:, i] += (half * own).sum(1)
            derivative[:, others] += half * theirs
    if derivative is not None:
        scalar = (p * derivative).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
        derivative.sub_(scalar).mul_(p)


def groups_per_chunk(head: Head, count: int, device: torch.device, itemsize: int) -> int:
    """Whole groups of K rows in a chunk: half a chunk of logits, since their gradient stands beside them."""
    return max(1, rows_per_chunk(head.vocabulary, device, itemsize) // (2 * count))


def forward(
    hidden: Tensor,  # (P, K, D)
    head: Head,
    pair_weight: Tensor,  # (P, K, K)
    mask: Tensor,  # (P, K)
    needs: list[bool],
) -> tuple[Tensor, HeadGradients]:
    """(jsd (P, K, K), the gradients that are needed of hidden (P K, D), weight and bias)."""
    groups, count, size = hidden.shape
    flat = torch.where(mask[..., None], hidden, 0).reshape(groups * count, size)
    gradients = HeadGradients(flat, head, needs)
    jsd = torch.zeros_like(pair_weight)
    for chunk in chunks(groups, groups_per_chunk(head, count, hidden.device, pair_weight.element_size())):
        rows = slice(chunk.start * count, chunk.stop * count)
        logits = head.condition_(head.project_exactly(flat[rows]))
        jsd[chunk], gradient = group_kernel(logits.view(-1, count, head.vocabulary), pair_weight[chunk], mask[chunk],
                                            gradients.wanted)
        if gradient is not None:
            dlogits = gradient.view(logits.shape).mul_(head.slope(logits))
            gradients.add(rows, flat[rows], dlogits)
    return jsd, gradients

"""The definition of the joint loss: plain PyTorch, unchunked, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.reference import row_terms
from mind_kernels.linear_pairwise_jsd.reference import pairwise_jsd, weighted_sum
from mind_kernels.row_chunks import Head


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    target: Tensor,  # (N,)
    row_weight: Tensor,  # (N,)
    answer_rows: Tensor,  # (P, K)
    pair_weight: Tensor,  # (P, K, K)
    *,
    ignore_index: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """(cross-entropy (), consistency (), the rows' terms, jsd (P, K, K))."""
    logits = head.logits(hidden)
    valid = target != ignore_index
    terms = row_terms(logits, target, valid)
    cross_entropy = (torch.where(valid, row_weight.to(logits.dtype), 0) * terms["nll"]).sum()
    present = answer_rows >= 0
    if hidden.shape[0] == 0:
        return cross_entropy, cross_entropy * 0, terms, logits.new_zeros(pair_weight.shape)
    jsd = pairwise_jsd(logits[answer_rows.clamp(min=0)], present)
    return cross_entropy, weighted_sum(jsd, pair_weight), terms, jsd

"""Chunked joint loss in plain PyTorch: answer rows are projected once and receive both gradients.

Groups of answer rows come first: float32 logits, JSD gradient, then the cross-entropy rows in place, and one set of
gradient products for the sum. All other rows take the loop of linear_cross_entropy. Peak memory: one chunk of logits
beside the gradients. Exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy import backend_torch as row_kernels
from mind_kernels.linear_cross_entropy.rows import RowLoss, RowTerms, RowWeights, run_rows, split_rows
from mind_kernels.linear_pairwise_jsd.backend_torch import group_kernel, groups_per_chunk
from mind_kernels.row_chunks import Head, HeadGradients, chunks


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    target: Tensor,  # (N,)
    row_weight: Tensor,  # (N,)
    answer_rows: Tensor,  # (P, K), -1 where absent; on the CPU or where hidden is
    pair_weight: Tensor,  # (P, K, K)
    needs: list[bool],
    *,
    ignore_index: int,
) -> tuple[RowTerms, Tensor, Tensor, HeadGradients]:
    """(the rows' terms, their effective weights (N,), jsd (P, K, K), the gradients that are needed)."""
    rows, device = hidden.shape[0], hidden.device
    valid = target != ignore_index
    index = target.to(device)
    weight = torch.where(valid.to(device), row_weight.to(pair_weight.dtype), 0)
    terms = RowTerms.zeros(rows + 1, hidden)  # absent answer rows write to the last entry
    gradients = HeadGradients(hidden, head, needs)
    jsd = _run_groups(hidden, head, index, valid.to(device), weight, answer_rows.to(device), pair_weight, terms,
                      gradients)
    # An answer row is absent from the second loop, an absent answer (-1) marks the spare last entry.
    others = torch.cat([valid, valid.new_zeros(1)]).index_fill(0, answer_rows.to(valid.device).flatten(), False)[:-1]
    weights = RowWeights(weight)
    with_gradient, without = split_rows(others, weights)
    run_rows(row_kernels, with_gradient, hidden, index, weights, RowLoss(head), terms, gradients)
    run_rows(row_kernels, without, hidden, index, None, RowLoss(head), terms, gradients)
    return terms.first(rows), weight, jsd, gradients


def _run_groups(
    hidden: Tensor, head: Head, target: Tensor, valid: Tensor, weight: Tensor, answer_rows: Tensor,
    pair_weight: Tensor, terms: RowTerms, gradients: HeadGradients,
) -> Tensor:
    groups, count = answer_rows.shape
    jsd = torch.zeros_like(pair_weight)
    spare = hidden.shape[0]
    for chunk in chunks(groups, groups_per_chunk(head, count, hidden.device, pair_weight.element_size())):
        present = answer_rows[chunk] >= 0
        rows = answer_rows[chunk].clamp(min=0).flatten()
        part = hidden[rows]
        logits = head.condition_(head.project_exactly(part))
        jsd[chunk], dlogits = group_kernel(logits.view(*present.shape, head.vocabulary), pair_weight[chunk], present,
                                           gradients.wanted)
        slope = head.slope(logits) if gradients.wanted else None
        counted = present.flatten() & valid[rows]
        weights = RowWeights(torch.where(counted, weight[rows], 0)) if gradients.wanted else None
        values = row_kernels.row_kernel_(logits, torch.where(counted, target[rows], 0), weights, RowLoss(head),
                                         conditioned=True)
        terms.write(torch.where(counted, rows, spare), values)
        if dlogits is not None:
            gradients.add(rows, part, logits.add_(dlogits.view(logits.shape)).mul_(slope))
    return jsd

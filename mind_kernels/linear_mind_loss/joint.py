"""The joint loss of linear_mind_loss in one pass over the logits; a backend supplies the row and the group kernels.

Groups of answer rows are computed first: float32 logits, the divergences' gradient, then the cross-entropy's gradient
in place of the logits, and one set of gradient products for their sum; all exact. All other rows are computed by the
pass of linear_cross_entropy, exact or sparse. If the head is split over processes, a chunk of groups needs three
collectives: two for the divergences, and one for the cross-entropy of their rows.
Peak memory: one chunk of logits beside the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients, scale_
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.rows import run_shard_terms, run_terms
from mind_kernels.linear_cross_entropy.shard_rows import rows_of_shard_
from mind_kernels.linear_pairwise_jsd.groups import GroupChunk, run_groups
from mind_kernels.row_chunks import row_weights, without_spoilt
from mind_kernels.row_loop import visit_rows
from mind_kernels.shards import Shard


def forward(
    row_kernels: Any,  # RowKernels of linear_cross_entropy; with a shard its ShardKernels
    group_kernels: Any,  # GroupKernels of linear_pairwise_jsd; with a shard its ShardKernels
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,), on the CPU or on the device of hidden
    row_weight: Tensor,  # (N,)
    answer_rows: Tensor,  # (P, K), -1 if absent; on the CPU or on the device of hidden
    group_weight: Tensor,  # (P, K, K) of pairs or (P, K) of a mixture, accumulation dtype
    spec: RowSpec,
    needs: list[bool],
    *,
    ignore_index: int,
    shard: Shard | None = None,
) -> tuple[RowTerms, Tensor, Tensor, HeadGradients]:
    """(the rows' terms, their effective weights (N,), divergences shaped as group_weight, the gradients needed). For a
    shard, the gradient of the hidden states is the shard's part."""
    rows, device, head = hidden.shape[0], hidden.device, spec.head
    valid = target != ignore_index
    valid_here, index = valid.to(device), target.to(device).contiguous()
    weight = row_weights(row_weight, valid_here, hidden)
    sparse = spec.gradient_threshold is not None
    terms = RowTerms.zeros(rows + 1, hidden, sparse=sparse)  # absent answer rows write to the last entry
    gradients = HeadGradients(hidden, head, needs)
    gradients.choose_unit(weight, group_weight)
    weight_in_unit = gradients.in_unit(weight)

    of_logits = RowSpec(Head(head.weight))  # softcap and temperature have been applied to the logits of chunks

    def finish(chunk: GroupChunk) -> None:
        """Cross-entropy of answer rows, and the products of both gradients."""
        slope = head.slope(chunk.logits) if gradients.wanted else 1.0
        counted = chunk.present & valid_here[chunk.rows]
        scale = torch.where(counted, weight_in_unit[chunk.rows], 0)
        scale = torch.where(chunk.spoilt & (scale != 0), torch.nan, scale)  # a cross-entropy of nan
        target, weights = torch.where(counted, index[chunk.rows], 0), RowWeights(scale) if gradients.wanted else None
        if shard is None:
            values = row_kernels.row_kernel_(chunk.logits, target, weights, of_logits)
        else:
            values = rows_of_shard_(row_kernels, chunk.logits, target, weights, of_logits, shard)
        values = values.without(chunk.spoilt)
        place = torch.where(counted, chunk.rows, rows)
        terms.write(place, values)
        if sparse:
            terms.kept_entries[place] = head.vocabulary if shard is None else shard.vocabulary
        if chunk.gradient is not None:
            dlogits = scale_(chunk.logits.add_(chunk.gradient), slope)
            chunk.add_gradient(dlogits, chunk.weighted | (scale != 0), gradients)

    divergence = run_groups(
        group_kernels, hidden, answer_rows, head, group_weight, gradients, finish, used=weight != 0, shard=shard
    )
    # Leaves answer rows out of the second pass; an absent answer (-1) marks the spare last entry.
    others = torch.cat([valid, valid.new_zeros(1)]).index_fill(0, answer_rows.to(valid.device).flatten(), False)[:-1]
    states, spoilt = without_spoilt(hidden, weight != 0) if gradients.wanted else (hidden, None)

    def run(rows: Tensor | int, weights: RowWeights | None) -> None:
        if shard is None:
            run_terms(row_kernels, rows, states, index, weights, spec, terms, gradients)
        else:
            run_shard_terms(row_kernels, rows, states, index, weights, spec, terms, gradients, "", shard)

    visit_rows(others, weight != 0, RowWeights(weight), gradients, run)
    found = terms.first(rows)
    if spoilt is not None:
        found = found._replace(values=found.values.without(spoilt & others.to(device)))
    return found, weight, divergence, gradients

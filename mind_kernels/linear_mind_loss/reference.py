"""The definition of linear_mind_loss: plain PyTorch, unchunked, differentiable any number of times.

The sparse gradient, defined by linear_cross_entropy, applies to all rows but the answer rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy import reference
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowValues
from mind_kernels.linear_pairwise_jsd.forms import compared, form_of, spoilt_rows
from mind_kernels.linear_pairwise_jsd.reference import divergences, group_loss


def forward(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    row_weight: Tensor,  # (N,)
    answer_rows: Tensor,  # (P, K)
    group_weight: Tensor,  # (P, K, K) or (P, K)
    spec: RowSpec,
    *,
    ignore_index: int,
) -> tuple[Tensor, Tensor, RowTerms, Tensor]:
    """(cross-entropy (), consistency (), the rows' terms, divergences shaped as group_weight)."""
    present = answer_rows >= 0
    answers, spare = torch.zeros(2, len(hidden), dtype=torch.bool, device=hidden.device)
    answers[answer_rows[present]] = True
    valid, spoilt = target != ignore_index, spare
    if len(hidden):
        found = spoilt_rows(hidden[answer_rows.clamp(min=0)], group_weight, present)
        places = torch.where(found, answer_rows, len(hidden)).flatten()  # not by the mask `found`, for vmap
        spoilt = torch.cat([spare, spare[:1]]).scatter(0, places, True)[:-1]
        uncompared = spoilt & hidden.isnan().any(1)
        spoilt = spoilt & (~valid | (row_weight == 0))
        hidden = torch.where(spoilt[:, None], 0, hidden)

    def of_rows(mask: Tensor, spec: RowSpec) -> tuple[Tensor, RowTerms]:
        return reference.forward(
            hidden[mask], target[mask], row_weight[mask], spec, ignore_index=ignore_index, reduction="sum"
        )

    in_answers, exact = of_rows(answers, RowSpec(spec.head))
    in_others, terms = of_rows(~answers, spec)
    values = RowValues(*(_merge(answers, *pair) for pair in zip(exact.values, terms.values, strict=True)))
    merged = terms._replace(values=values.without(spoilt & valid))
    if spec.gradient_threshold is not None:
        whole = torch.where(target[answers] != ignore_index, spec.head.vocabulary, 0)
        merged = merged._replace(
            dropped_mass=_merge(answers, torch.zeros_like(exact.values.nll), terms.dropped_mass),
            kept_entries=_merge(answers, whole, terms.kept_entries),
        )
    if len(hidden) == 0:
        divergence = in_others.new_zeros(group_weight.shape)
    else:
        mask, rows = compared(present), answer_rows.clamp(min=0)
        left_out = mask & (spoilt | uncompared)[rows]
        logits = spec.head.logits(torch.where((mask & ~left_out)[..., None], hidden[rows], 0))
        divergence = divergences(logits, group_weight, mask & ~left_out)
        divergence = form_of(group_weight).with_spoilt(divergence, group_weight, mask, left_out)
    return in_answers + in_others, group_loss(divergence, group_weight), merged, divergence


def _merge(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """(N,): takes the entries in order from `inside` if `mask` (N,) is True, else from `outside`."""
    out = inside.new_empty(mask.shape)
    return out.masked_scatter(mask, inside).masked_scatter(~mask, outside)

"""The losses that the providers have to compute, in slices of groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.comparison.gate import Precision
from bench.comparison.provider import Outputs
from bench.linear_pairwise_jsd.divergence import mixture_loss, pair_loss
from bench.linear_pairwise_jsd.inputs import SLICE, Inputs


def dense_pairs(inputs: Inputs, precision: Precision) -> Outputs:
    return in_slices(pair_loss, *precision.leaves(inputs), inputs.pair_weight, precision)


def dense_mixture(inputs: Inputs, precision: Precision) -> Outputs:
    return in_slices(mixture_loss, *precision.leaves(inputs), inputs.mixture_weight, precision)


def in_slices(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,  # (P, K, D)
    weight: Tensor,  # (V, D)
    group_weight: Tensor,  # (P, ...)
    precision: Precision,
) -> Outputs:
    """The sum over groups of `loss_of` (their logits, their weights)."""
    loss, d_hidden, d_weight = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), SLICE):
        part = slice(start, start + SLICE)
        logits = precision.round_logits(hidden[part] @ weight.T).requires_grad_()
        with torch.enable_grad():
            value = loss_of(logits, group_weight[part])
        d_logits = precision.round(torch.autograd.grad(value, logits)[0])
        loss += value.detach()
        d_hidden[part] = d_logits @ weight
        d_weight.addmm_(d_logits.flatten(0, 1).T, hidden[part].flatten(0, 1))
    return Outputs(loss, d_hidden, d_weight)

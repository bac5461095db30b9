"""The losses that the providers have to compute: the mean cross-entropy, and one with a weight per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.comparison.gate import Precision
from bench.comparison.heads import SLICE
from bench.comparison.provider import Outputs
from bench.linear_cross_entropy.inputs import Inputs


def dense(inputs: Inputs, precision: Precision) -> Outputs:
    hidden, weight = precision.leaves(inputs)
    return weighted(hidden, weight, inputs.target, hidden.new_full((len(hidden),), 1 / len(hidden)), precision)


@torch.no_grad()
def weighted(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    row_weight: Tensor,  # (N,)
    precision: Precision,
) -> Outputs:
    """sum_r row_weight[r] nll[r], in slices of rows."""
    loss, d_hidden, d_weight = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), SLICE):
        part = slice(start, start + SLICE)
        logits = precision.round_logits(hidden[part] @ weight.T)
        loss += F.cross_entropy(logits, target[part], reduction="none") @ row_weight[part]
        d_logits = logits.softmax(1)
        d_logits[torch.arange(len(d_logits), device=target.device), target[part]] -= 1
        d_logits = precision.round(d_logits * row_weight[part, None])
        d_hidden[part] = d_logits @ weight
        d_weight.addmm_(d_logits.T, hidden[part])
    return Outputs(loss, d_hidden, d_weight)

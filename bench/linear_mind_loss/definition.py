"""The loss that the providers have to compute, in slices: the cross-entropy of all rows, the consistency of the answer
rows.

The consistency is weighted low, and its gradient drowns in the rounding of a 16-bit cross-entropy: so it is judged a
second time, alone, with row weights of zero. `linear_cross_entropy` alone is judged on some of the rows: a benchmark of
its own judges it on all.
"""

from __future__ import annotations

import torch

from bench.comparison.gate import Precision
from bench.comparison.provider import Outputs
from bench.linear_cross_entropy import definition as rows
from bench.linear_mind_loss.inputs import Inputs
from bench.linear_pairwise_jsd.definition import in_slices
from bench.linear_pairwise_jsd.divergence import pair_loss

ROWS = 1024


def dense_cross_entropy(inputs: Inputs, precision: Precision) -> Outputs:
    hidden, weight = precision.leaves(inputs)
    return rows.weighted(hidden, weight, inputs.target, inputs.row_weight.to(precision.dtype), precision)


def dense_consistency(inputs: Inputs, precision: Precision) -> Outputs:
    hidden, weight = precision.leaves(inputs)
    groups = in_slices(pair_loss, hidden[inputs.answer_rows], weight, inputs.pair_weight, precision)
    d_hidden = torch.zeros_like(hidden)
    d_hidden[inputs.answer_rows] = groups.d_hidden
    return groups._replace(d_hidden=d_hidden)


def dense(inputs: Inputs, precision: Precision) -> Outputs:
    parts = dense_cross_entropy(inputs, precision), dense_consistency(inputs, precision)
    return Outputs(*(first + second for first, second in zip(*parts, strict=True)))


def some_rows(inputs: Inputs) -> Inputs:
    """The first ROWS, without the answer rows."""
    rows = {name: getattr(inputs, name)[:ROWS] for name in ("target", "row_weight", "segment")}
    return inputs._replace(
        hidden=inputs.hidden.detach()[:ROWS].requires_grad_(),
        answer_rows=inputs.answer_rows[:0],
        pair_weight=inputs.pair_weight[:0],
        **rows,
    )


def consistency_alone(inputs: Inputs) -> Inputs:
    return inputs._replace(row_weight=torch.zeros_like(inputs.row_weight))

"""The definition of linear_log_prob: plain PyTorch, unchunked, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from mind_kernels.linear_cross_entropy import reference
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.linear_log_prob.contract import LogProbOutputs
from mind_kernels.row_chunks import row_weights


def forward(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,), where hidden is
    spec: RowSpec,
    *,
    ignore_index: int,
) -> LogProbOutputs:
    """Log-probability of each target, and the rows' terms; all differentiable."""
    valid = target != ignore_index
    terms = reference.row_terms(hidden, target, valid, RowWeights(row_weights(None, valid, hidden)), spec)
    return LogProbOutputs(-terms.values.nll, terms)

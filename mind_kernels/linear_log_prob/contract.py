"""What linear_log_prob takes and gives; its rows and kernels are those of linear_cross_entropy."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms


class LogProbArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N,), on the CPU or where hidden is
    d_log_prob: Tensor | None  # (N,), d(loss) / d(log_prob): known in the backward pass only
    d_entropy: Tensor | None  # (N,)
    ignore_index: int
    backend: str


class LogProbOutputs(NamedTuple):
    """What the operator gives; log_prob and the entropy in `rows` are differentiable."""

    log_prob: Tensor  # (N,)
    rows: RowTerms


class RowLogProbs(NamedTuple):
    """Both (N,), differentiable, float32 (float64 for float64 input), zero in ignored rows.

    A tuple, unlike the statistics of the operations: `log_prob, entropy = linear_log_prob(...)` is the result, and will
    never have a third part.
    """

    log_prob: Tensor
    """log softmax(z)[target], in nats."""
    entropy: Tensor
    """Entropy of softmax(z), in nats."""

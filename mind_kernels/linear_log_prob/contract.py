"""The arguments and outputs of linear_log_prob; its kernels are those of linear_cross_entropy."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms
from mind_kernels.shards import Group


class Upstream(NamedTuple):
    """d(loss) / d(outputs of the operator), known in the backward pass only; None for an output that is not used."""

    log_prob: Tensor | None = None  # (N, K)
    entropy: Tensor | None = None  # (N,)
    lse: Tensor | None = None  # (N,)


class LogProbArguments(NamedTuple):
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N, K), on the CPU or on the device of hidden
    temperature: Tensor | None  # (N,), with a head whose own is 1
    upstream: Upstream
    ignore_index: int
    extra_stats: str  # see extra_stats.ExtraStats of linear_cross_entropy
    backend: str
    group: Group | None = None  # the processes among which the head is split


class LogProbOutputs(NamedTuple):
    """The outputs of the operator; log_prob, and entropy and lse in `rows`, are differentiable."""

    log_prob: Tensor  # (N, K)
    rows: RowTerms


class RowLogProbs(NamedTuple):
    """The results of `linear_log_prob`: differentiable, float32 (float64 for float64 input), zero in ignored rows.

    A tuple, so that one can write `log_prob, entropy, lse = linear_log_prob(...)`.
    """

    log_prob: Tensor
    """log softmax(z)[target], in nats, shaped as target: (N,) or (N, K)."""
    entropy: Tensor
    """(N,) entropy of softmax(z), in nats."""
    lse: Tensor
    """(N,) log-sum-exp of z. Its square is a z-loss."""

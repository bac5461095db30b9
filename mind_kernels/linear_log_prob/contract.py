"""What linear_log_prob takes and gives; its rows and kernels are those of linear_cross_entropy."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms
from mind_kernels.shards import Group


class Upstream(NamedTuple):
    """d(loss) / d(what the operator gives): known in the backward pass only, and there as far as it is used."""

    log_prob: Tensor | None = None  # (N, K)
    entropy: Tensor | None = None  # (N,)
    lse: Tensor | None = None  # (N,)


class LogProbArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N, K), on the CPU or where hidden is
    temperature: Tensor | None  # (N,), beside a head whose own is 1
    upstream: Upstream
    ignore_index: int
    extra_stats: str  # see extra_stats.ExtraStats of linear_cross_entropy
    backend: str
    group: Group | None = None  # the processes among which the head is split


class LogProbOutputs(NamedTuple):
    """What the operator gives; log_prob, and entropy and lse in `rows`, are differentiable."""

    log_prob: Tensor  # (N, K)
    rows: RowTerms


class RowLogProbs(NamedTuple):
    """All differentiable, float32 (float64 for float64 input), zero in ignored rows.

    A tuple, unlike the statistics of the operations: `log_prob, entropy, lse = linear_log_prob(...)` is the result.
    """

    log_prob: Tensor
    """log softmax(z)[target], in nats, shaped as target: (N,) or (N, K)."""
    entropy: Tensor
    """(N,) entropy of softmax(z), in nats."""
    lse: Tensor
    """(N,) log-sum-exp of z: a z-loss on its square, or the parts of a vocabulary that is divided among processes."""

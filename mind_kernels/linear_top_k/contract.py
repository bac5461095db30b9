"""The interface of linear top-k: arguments, outputs, and the kernels that a backend has to supply."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.shards import Group, Shard


class TopK(NamedTuple):
    """The k most likely tokens of each row of hidden (..., D), the likeliest first, without a gradient."""

    ids: Tensor
    """(..., k) int64."""
    log_prob: Tensor
    """(..., k) log-probabilities in nats, float32 (float64 for float64 input)."""
    lse: Tensor
    """(...) log-sum-exp of the row's logits, in the dtype of log_prob."""


class TopKArguments(NamedTuple):
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (N, D)
    head: Head
    k: int
    backend: str
    group: Group | None = None  # the processes among which the head is split


class TopKKernels(Protocol):
    """The kernel that a backend has to supply for this operation."""

    def top_k(self, hidden: Tensor, head: Head, k: int) -> TopK:
        """The k most likely tokens of each row of hidden (N, D)."""
        ...


class TopKShardKernels(Protocol):
    """The kernel that a backend has to supply for "linear_top_k, shards" in `backend.BACKENDS`."""

    def shard_top_k(self, hidden: Tensor, head: Head, k: int, shard: Shard) -> TopK:
        """The k most likely tokens of the whole head, in all processes, from hidden (N, D) and this shard's head; one
        collective per chunk."""
        ...

"""What linear top-k gives and asks of a backend."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.shards import Group, Shard


class TopK(NamedTuple):
    """The k most likely tokens of each row, likeliest first; constants. Of hidden (..., D)."""

    ids: Tensor
    """(..., k) int64."""
    log_prob: Tensor
    """(..., k) log-probabilities in nats, float32 (float64 for float64 input)."""
    lse: Tensor
    """(...) log-sum-exp of the row's logits, in the dtype of log_prob."""


class TopKArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (N, D)
    head: Head
    k: int
    backend: str
    group: Group | None = None  # the processes among which the head is split


class TopKKernels(Protocol):
    """What a backend supplies for this operation."""

    def top_k(self, hidden: Tensor, head: Head, k: int) -> TopK:
        """Of hidden (N, D)."""
        ...


class TopKShardKernels(Protocol):
    """What a backend supplies for "linear_top_k, shards" in `backend.BACKENDS`."""

    def shard_top_k(self, hidden: Tensor, head: Head, k: int, shard: Shard) -> TopK:
        """Of hidden (N, D) and this shard's head, in all processes that of the whole head: one collective a chunk."""
        ...

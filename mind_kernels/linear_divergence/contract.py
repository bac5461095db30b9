"""What linear divergence computes and what a backend supplies: below the definition and the chunk loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.kinds import Divergence


class RowValues(NamedTuple):
    """What a row kernel returns, (n,) each, in the accumulation dtype."""

    divergence: Tensor
    entropy: Tensor


class RowKernels(Protocol):
    """What a backend module of this operation defines. With weights (n,), the logits become their own gradient."""

    def divergence_(
        self,
        logits: Tensor,
        teacher_logits: Tensor,
        weights: Tensor | None,
        head: Head,
        teacher_head: Head,
        divergence: Divergence,
    ) -> RowValues:
        """Of projected logits (n, V) and the teacher's (n, V); overwrites both."""

    def listed_divergence_(
        self, logits: Tensor, ids: Tensor, log_p: Tensor, weights: Tensor | None, head: Head, divergence: Divergence
    ) -> RowValues:
        """Of projected logits (n, V), ids (n, T), T < V, and the events' log-probabilities (n, T + 1)."""


@dataclass(frozen=True)
class DivergenceStats:
    """Statistics of the rows, (N,), without a gradient; float32 (float64 for float64 input)."""

    divergence: Tensor
    """The divergence of the row in nats, without its weight."""
    entropy: Tensor
    """Entropy of the student's softmax in nats."""

"""What linear pairwise JSD computes and what a backend supplies: below the definition and the loop over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class GroupKernels(Protocol):
    """What a backend module of this operation defines. Both leave `logits` as they are.

    Absent rows, where `mask` (G, K) is False, hold finite logits; they have no divergence and no gradient.
    """

    def pair_divergences(
        self, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """JSD of all pairs (G, K, K), and the gradient (G, K, V) of their weighted sum, of conditioned logits
        (G, K, V)."""

    def mixture_divergences(
        self, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """KL(P_k || M) of each row to its group's weighted mean (G, K), and the gradient (G, K, V) of their weighted
        sum; 0 in groups without weight."""


@dataclass(frozen=True)
class PairStats:
    """Statistics of the pairs, without a gradient; float32 (float64 for float64 input)."""

    jsd: Tensor
    """(P, K, K) divergences in nats, in [0, ln 2]: symmetric, zero diagonal, zero where a row is masked."""


@dataclass(frozen=True)
class MixtureStats:
    """Statistics of the mixture form, without a gradient; float32 (float64 for float64 input)."""

    kl: Tensor
    """(P, K) KL(P_k || M) in nats, non-negative; zero where a row is masked and in groups without weight."""

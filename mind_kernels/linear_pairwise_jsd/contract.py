"""What linear pairwise JSD takes, gives and asks of a backend: below its definition and its loop over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.shards import Group


class GroupArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (P, K, D)
    head: Head
    group_weight: Tensor  # (P, K, K) of pairs or (P, K) of a mixture: see `forms`
    mask: Tensor  # (P, K) bool
    kind: str  # "jsd" or "jeffreys"
    with_stats: bool  # without, only divergences that the loss depends on need be there
    backend: str
    group: Group | None  # the processes among which the head is split


class GroupOutputs(NamedTuple):
    """What the operator gives."""

    loss: Tensor  # ()
    divergence: Tensor  # as group_weight


JEFFREYS = "linear_pairwise_jsd, jeffreys"
"""By what backends know the Jeffreys divergence of pairs: an operation to them."""


class GroupKernels(Protocol):
    """What a backend supplies for this operation: a module, or any other object with these names.

    A backend has one for "linear_pairwise_jsd" and, if it serves that divergence, one for JEFFREYS, of pairs alone.
    Both functions leave `logits` as they are. Absent rows, where `mask` is False, hold finite logits; they have no
    divergence and no gradient.
    """

    def pair_divergences(
        self,
        logits: Tensor,  # (G, K, V), softcap and temperature applied
        pair_weight: Tensor,  # (G, K, K), its upper triangle counts
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences of all pairs (G, K, K), and the gradient (G, K, V) of their weighted sum with respect to the
        logits. A Jeffreys divergence is infinite where one row alone rules out a token, and then the gradient of both
        rows is nan unless the pair's weight is 0."""
        ...

    def mixture_divergences(
        self,
        logits: Tensor,  # (G, K, V), softcap and temperature applied
        mixture_weight: Tensor,  # (G, K)
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """KL(P_k || M) of each row to its group's weighted mean (G, K), and the gradient (G, K, V) of their weighted
        sum with respect to the logits; 0 in groups without weight."""
        ...


@dataclass(frozen=True)
class PairStats:
    """Statistics of the pairs, without a gradient; float32 (float64 for float64 input)."""

    jsd: Tensor
    """(P, K, K) divergences in nats, in [0, ln 2]: symmetric, zero diagonal, zero where a row is masked."""


@dataclass(frozen=True)
class JeffreysStats:
    """Statistics of the pairs for kind "jeffreys", without a gradient; float32 (float64 for float64 input)."""

    jeffreys: Tensor
    """(P, K, K) divergences in nats, not negative: symmetric, zero diagonal, zero where a row is masked. Infinite where
    one row alone rules out a token to which the other gives a probability."""


@dataclass(frozen=True)
class MixtureStats:
    """Statistics of the mixture form, without a gradient; float32 (float64 for float64 input)."""

    kl: Tensor
    """(P, K) KL(P_k || M) in nats, non-negative; zero where a row is masked and in groups without weight. Infinite only
    in a row of weight zero with probability where M has none."""

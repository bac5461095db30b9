"""The interface of linear pairwise JSD: arguments, outputs, and the kernels that a backend has to supply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.shards import Group


class GroupArguments(NamedTuple):
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (P, K, D)
    head: Head
    group_weight: Tensor  # (P, K, K) of pairs or (P, K) of a mixture: see `forms`
    mask: Tensor  # (P, K) bool
    kind: str  # "jsd" or "jeffreys"
    with_stats: bool  # False: only divergences that the loss depends on are needed
    backend: str
    group: Group | None = None  # the processes among which the head is split


class GroupOutputs(NamedTuple):
    """The outputs of the operator."""

    loss: Tensor  # ()
    divergence: Tensor  # as group_weight


JEFFREYS = "linear_pairwise_jsd, jeffreys"
"""The name of the Jeffreys divergence of pairs in `backend.BACKENDS`, where it is an operation of its own."""


class GroupKernels(Protocol):
    """The kernels that a backend has to supply for this operation: a module, or any other object with these names.

    A backend has one such object for "linear_pairwise_jsd" and, if it supports that divergence, another for JEFFREYS,
    which has pairs only. Both functions leave `logits` unchanged. Absent rows (`mask` False) hold finite logits; they
    have no divergence and no gradient.
    """

    def pair_divergences(
        self,
        logits: Tensor,  # (G, K, V), softcap and temperature applied
        pair_weight: Tensor,  # (G, K, K), its upper triangle counts
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences of all pairs (G, K, K), and the gradient (G, K, V) of their weighted sum with respect to the
        logits. A Jeffreys divergence is infinite if only one of the rows excludes a token; the gradient of both rows is
        then nan unless the pair's weight is 0."""
        ...

    def mixture_divergences(
        self,
        logits: Tensor,  # (G, K, V), softcap and temperature applied
        mixture_weight: Tensor,  # (G, K)
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """KL(P_k || M) of each row from its group's weighted mean (G, K), and the gradient (G, K, V) of their weighted
        sum with respect to the logits; 0 in groups without weight."""
        ...


@dataclass(frozen=True)
class PairStats:
    """Statistics of the pairs, without a gradient; float32 (float64 for float64 input)."""

    jsd: Tensor
    """(P, K, K) divergences in nats, in [0, ln 2]: symmetric, zero on the diagonal and in masked rows."""


@dataclass(frozen=True)
class JeffreysStats:
    """Statistics of the pairs for kind "jeffreys", without a gradient; float32 (float64 for float64 input)."""

    jeffreys: Tensor
    """(P, K, K) divergences in nats, not negative: symmetric, zero on the diagonal and in masked rows. Infinite if one
    row excludes a token to which the other gives a probability."""


@dataclass(frozen=True)
class MixtureStats:
    """Statistics of the mixture form, without a gradient; float32 (float64 for float64 input)."""

    kl: Tensor
    """(P, K) KL(P_k || M) in nats, not negative; zero in masked rows and in groups without weight. Infinite only in a
    row of weight zero that gives probability to a token to which M gives none."""

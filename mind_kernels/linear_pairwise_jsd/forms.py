"""The two forms of the loss of a group: over its pairs, or over its rows and their mixture.

A form defines the shape of its weights, the rows that they concern, and how its divergences are summed.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.linear_pairwise_jsd.contract import MixtureStats, PairStats
from mind_kernels.row_chunks import weighted
from mind_kernels.shards import Shard


class GroupForm(Protocol):
    """The interface of a form for the loop over groups, the operations and the definition."""

    def check_values(self, weight: Tensor) -> None:
        """Raises ValueError unless the weights have values that the form allows."""
        ...

    def weighted_rows(self, weight: Tensor, present: Tensor) -> Tensor:
        """(P, K) bool: the rows that are `present` (P, K) and that the loss depends on."""
        ...

    def entries(self, groups: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """The index of the weights that belong to the rows `places` (G, n) of `groups` (G,)."""
        ...

    def divergences(
        self, kernels: Any, logits: Tensor, weight: Tensor, mask: Tensor, with_gradient: bool, *shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences shaped as `weight`, and the gradient of their weighted sum: see GroupKernels; with a shard,
        ShardKernels."""
        ...

    def loss(self, divergence: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum ()."""
        ...

    def with_spoilt(self, divergence: Tensor, weight: Tensor, present: Tensor, spoilt: Tensor) -> Tensor:
        """Divergences in which those of the `spoilt` rows (P, K) are nan; 0 remains if nothing is compared."""
        ...

    def stats(self, divergence: Tensor) -> PairStats | MixtureStats: ...


class PairForm:
    """Weights and divergences of pairs (P, K, K); only the upper triangle (i < j) is used."""

    def check_values(self, weight: Tensor) -> None:
        checks.values(weight.isfinite(), "pair_weight: expected finite values")

    def weighted_rows(self, weight: Tensor, present: Tensor) -> Tensor:
        upper = (weight != 0).triu(diagonal=1)
        return present & ((upper | upper.transpose(1, 2)) & present[:, None, :]).any(-1)

    def entries(self, groups: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        return groups[:, None, None], places[:, :, None], places[:, None, :]

    def divergences(
        self, kernels: Any, logits: Tensor, weight: Tensor, mask: Tensor, with_gradient: bool, *shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        return kernels.pair_divergences(logits, weight, mask, with_gradient, *shard)

    def loss(self, divergence: Tensor, weight: Tensor) -> Tensor:
        return weighted(divergence, weight.to(divergence.dtype)).triu(diagonal=1).sum()

    def with_spoilt(self, divergence: Tensor, weight: Tensor, present: Tensor, spoilt: Tensor) -> Tensor:
        pairs = spoilt[:, :, None] & present[:, None, :]
        pairs = (pairs | pairs.transpose(1, 2)) & ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
        return divergence.masked_fill(pairs, torch.nan)

    def stats(self, divergence: Tensor) -> PairStats:
        return PairStats(divergence)


class MixtureForm:
    """Weights of rows, and divergences of rows from the group's mixture, both (P, K)."""

    def check_values(self, weight: Tensor) -> None:
        message = "mixture_weight: expected finite values that are not negative"
        checks.values(weight.isfinite() & (weight >= 0), message)

    def weighted_rows(self, weight: Tensor, present: Tensor) -> Tensor:
        return compared(present) & (weight != 0)

    def entries(self, groups: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        return groups[:, None], places

    def divergences(
        self, kernels: Any, logits: Tensor, weight: Tensor, mask: Tensor, with_gradient: bool, *shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        return kernels.mixture_divergences(logits, weight, compared(mask), with_gradient, *shard)

    def loss(self, divergence: Tensor, weight: Tensor) -> Tensor:
        return weighted(divergence, weight.to(divergence.dtype)).sum()

    def with_spoilt(self, divergence: Tensor, weight: Tensor, present: Tensor, spoilt: Tensor) -> Tensor:
        has_mixture = self.weighted_rows(weight, present).any(1, keepdim=True)
        return divergence.masked_fill(spoilt & has_mixture, torch.nan)

    def stats(self, divergence: Tensor) -> MixtureStats:
        return MixtureStats(divergence)


PAIRS, MIXTURE = PairForm(), MixtureForm()


def compared(mask: Tensor) -> Tensor:
    """(P, K) bool: the rows of `mask` (P, K) that are not alone in their group. The hidden states of the others have no
    effect, even if they are nan."""
    return mask & (mask.sum(1, keepdim=True) > 1)


def spoilt_rows(hidden: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    """(P, K) bool: the rows `present` (P, K) without weight whose hidden states (P, K, D) are not finite.

    No divergence with a weight needs them. Nan in one of them would reach all rows of its group, so it is left out, and
    its divergences become nan afterwards, by `with_spoilt`. Finite hidden states whose logits overflow are not found.
    """
    return present & ~form_of(weight).weighted_rows(weight, present) & ~hidden.isfinite().all(-1)


def form_of(weight: Tensor) -> GroupForm:
    """The form that has weights of this shape: (P, K, K) for pairs, (P, K) for a mixture."""
    return PAIRS if weight.dim() == 3 else MIXTURE


def group_weight_argument(
    pair_weight: Tensor | None, mixture_weight: Tensor | None, hidden: Tensor, groups: tuple[int, ...]
) -> Tensor:
    """pair_weight (P, K, K) or mixture_weight (P, K), whichever is given, checked; `groups` is (P, K), K >= 2."""
    if pair_weight is not None and mixture_weight is None:
        name, weight, meaning, expected = "pair_weight", pair_weight, "(P, K, K)", (*groups, groups[1])
    elif mixture_weight is not None and pair_weight is None:
        name, weight, meaning, expected = "mixture_weight", mixture_weight, "(P, K)", groups
    else:
        raise ValueError("pair_weight and mixture_weight: expected exactly one of the two")
    checks.tensors(**{name: weight})
    checks.shape(name, weight, tuple(expected), meaning)
    if groups[1] < 2:
        raise ValueError(f"{name} has shape {tuple(weight.shape)}: expected K >= 2 distributions a group")
    checks.constant_weight(name, weight, hidden)
    return weight

"""What a backend supplies for groups of rows of a head that is split over the vocabulary."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mind_kernels.shards import Shard


class ShardKernels(Protocol):
    """What a backend supplies for "linear_pairwise_jsd, shards" and "linear_pairwise_jsd, jeffreys, shards" in
    `backend.BACKENDS`: `contract.GroupKernels` of this shard's columns of the logits.

    Divergences are those of whole rows, in all processes. Both functions make the same two collectives, whatever is
    asked of them: one for the normalizers of the rows, one for the sums that divergences and S are made of. A shard
    without entries comes with one column, of minus infinity.
    """

    def pair_divergences(
        self,
        logits: Tensor,  # (G, K, V_r), softcap and temperature applied
        pair_weight: Tensor,  # (G, K, K), its upper triangle counts
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
        shard: Shard,
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences (G, K, K), and this shard's columns (G, K, V_r) of the gradient."""
        ...

    def mixture_divergences(
        self,
        logits: Tensor,  # (G, K, V_r), softcap and temperature applied
        mixture_weight: Tensor,  # (G, K)
        mask: Tensor,  # (G, K) bool
        with_gradient: bool,
        shard: Shard,
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences (G, K), and this shard's columns (G, K, V_r) of the gradient."""
        ...

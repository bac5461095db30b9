"""The kernels that a backend has to supply for groups of rows with a head that is split over the vocabulary."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mind_kernels.shards import Shard


class ShardKernels(Protocol):
    """The kernels for "linear_pairwise_jsd, shards" and "linear_pairwise_jsd, jeffreys, shards" in `backend.BACKENDS`:
    `contract.GroupKernels` on this shard's columns of the logits.

    All processes get the divergences of whole rows. Both functions always make the same two collectives, with or
    without a gradient: one for the normalizers of the rows, one for the sums from which divergences and S are computed.
    For a shard without entries, the logits have one column of minus infinity.
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

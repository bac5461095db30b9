"""Divergences of a group's rows for a shard of the vocabulary in Triton, by the passes of pairs.py and mixture.py.

The normalizers are gathered from all shards before the pass over pairs or the mixture; the sums for the divergences and
the rows' S are gathered after it. All processes combine them by the same arithmetic in the same order, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mind_kernels.linear_pairwise_jsd._triton.groups import normalize_shard
from mind_kernels.linear_pairwise_jsd._triton.mixture import mixture_by
from mind_kernels.linear_pairwise_jsd._triton.pairs import pairs_by
from mind_kernels.shards import Shard


@dataclass(frozen=True)
class TritonShards:
    """See `shard_contract.ShardKernels`."""

    jeffreys: bool = False

    def pair_divergences(
        self, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool, shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        normalizer, join = _whole_rows(logits, mask, shard), partial(_join, shard, mask.numel())
        return pairs_by(join, normalizer, logits, pair_weight, mask, with_gradient, jeffreys=self.jeffreys)

    def mixture_divergences(
        self, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool, shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        normalizer, join = _whole_rows(logits, mask, shard), partial(_join, shard, mask.numel())
        return mixture_by(join, normalizer, logits, mixture_weight, mask, with_gradient)


JSD, JEFFREYS = TritonShards(), TritonShards(jeffreys=True)


def _whole_rows(logits: Tensor, mask: Tensor, shard: Shard) -> Tensor:
    """The normalizer (2, G K) of whole rows."""
    return normalize_shard(logits, mask, lambda sums: shard.gather(sums).wait())


def _join(shard: Shard, rows: int, parts: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """See `groups.Join`; the same collective with and without a gradient."""
    of_spans = parts.sum(0)
    of_rows = parts.new_zeros(2, rows) if sums is None else sums.sum(0)
    packed = torch.cat([of_spans.flatten(), of_rows.flatten()])
    joined = shard.gather(packed).wait().double().sum(0).float()
    found, of_rows = joined.split([of_spans.numel(), 2 * rows])
    return found.view_as(of_spans), None if sums is None else of_rows.view(1, 2, rows)

"""Divergences among K distributions of one LM head: Jensen-Shannon or Jeffreys of all pairs, or KL from their
mixture."""

from mind_kernels.linear_pairwise_jsd.contract import JeffreysStats, MixtureStats, PairStats
from mind_kernels.linear_pairwise_jsd.op import linear_pairwise_jsd

__all__ = ["JeffreysStats", "MixtureStats", "PairStats", "linear_pairwise_jsd"]

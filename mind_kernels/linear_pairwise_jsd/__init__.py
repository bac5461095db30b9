"""Jensen-Shannon divergence between all pairs of K distributions of one LM head."""

from mind_kernels.linear_pairwise_jsd.op import PairStats, linear_pairwise_jsd

__all__ = ["PairStats", "linear_pairwise_jsd"]

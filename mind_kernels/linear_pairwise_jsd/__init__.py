"""Jensen-Shannon divergences between K distributions of one LM head: of all pairs, or to their mixture."""

from mind_kernels.linear_pairwise_jsd.op import MixtureStats, PairStats, linear_pairwise_jsd

__all__ = ["MixtureStats", "PairStats", "linear_pairwise_jsd"]

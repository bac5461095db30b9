"""Cross-entropy of tokens, computed from hidden states and the LM head without logits."""

from mind_kernels.linear_cross_entropy.contract import RowStats
from mind_kernels.linear_cross_entropy.op import linear_cross_entropy
from mind_kernels.linear_cross_entropy.threshold import threshold_for_error

__all__ = ["RowStats", "linear_cross_entropy", "threshold_for_error"]

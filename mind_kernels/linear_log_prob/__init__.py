"""Log-probability and entropy per row, computed from hidden states and the LM head without logits."""

from mind_kernels.linear_log_prob.contract import RowLogProbs
from mind_kernels.linear_log_prob.op import linear_log_prob

__all__ = ["RowLogProbs", "linear_log_prob"]

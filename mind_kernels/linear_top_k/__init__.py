"""The k most likely tokens of each row, with their log-probabilities, without logits."""

from mind_kernels.linear_top_k.contract import TopK
from mind_kernels.linear_top_k.op import linear_top_k

__all__ = ["TopK", "linear_top_k"]

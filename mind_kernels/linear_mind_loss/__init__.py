"""MIND's student loss: weighted cross-entropy and pairwise JSD of a batch in one pass over its rows."""

from mind_kernels.linear_mind_loss.contract import MindStats
from mind_kernels.linear_mind_loss.op import linear_mind_loss

__all__ = ["MindStats", "linear_mind_loss"]

"""Divergences between a student's and a teacher's softmax, computed from hidden states and LM heads without logits."""

from mind_kernels.linear_divergence.contract import DivergenceStats
from mind_kernels.linear_divergence.op import linear_divergence

__all__ = ["DivergenceStats", "linear_divergence"]

"""Divergences of a student's softmax from a teacher's, straight from hidden states and LM heads."""

from mind_kernels.linear_divergence.contract import DivergenceStats
from mind_kernels.linear_divergence.op import linear_divergence

__all__ = ["DivergenceStats", "linear_divergence"]

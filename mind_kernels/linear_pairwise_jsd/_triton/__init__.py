"""Triton kernels of the pairwise JSD, and their launchers."""

from mind_kernels.linear_pairwise_jsd._triton.mixture import mixture_divergences
from mind_kernels.linear_pairwise_jsd._triton.pairs import pair_divergences

__all__ = ["mixture_divergences", "pair_divergences"]

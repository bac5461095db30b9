"""Group kernels in Triton, for NVIDIA GPUs (and Triton's interpreter)."""

from __future__ import annotations

from mind_kernels.linear_pairwise_jsd._triton.mixture import mixture_divergences
from mind_kernels.linear_pairwise_jsd._triton.pairs import pair_divergences

__all__ = ["mixture_divergences", "pair_divergences"]

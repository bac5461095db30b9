"""Jeffreys divergences of all pairs of a group's rows in Triton: the passes of pairs.py with other terms."""

from __future__ import annotations

from functools import partial

from mind_kernels.linear_pairwise_jsd._triton import pairs

pair_divergences = partial(pairs.pair_divergences, jeffreys=True)
"""See `contract.GroupKernels`."""

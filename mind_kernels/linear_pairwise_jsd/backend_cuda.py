"""The compiled group kernels for NVIDIA GPUs."""

from __future__ import annotations

from mind_kernels.linear_pairwise_jsd.compiled_groups import CompiledGroups

_groups = CompiledGroups("cuda")
pair_divergences, mixture_divergences = _groups.pair_divergences, _groups.mixture_divergences

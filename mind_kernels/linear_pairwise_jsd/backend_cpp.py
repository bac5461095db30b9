"""The compiled group kernels for the CPU."""

from __future__ import annotations

from mind_kernels.linear_pairwise_jsd.compiled_groups import CompiledGroups

_groups = CompiledGroups("cpp")
pair_divergences, mixture_divergences = _groups.pair_divergences, _groups.mixture_divergences

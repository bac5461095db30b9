"""Group kernels in a compiled library, for float32 logits: csrc/cpu for CPUs, csrc/cuda for NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mind_kernels import extension


class CompiledGroups:
    """See `contract.GroupKernels`; `library` is "cpp" or "cuda", `of_pairs` the name of its operator for pairs."""

    def __init__(self, library: str, of_pairs: str = "pair_divergences") -> None:
        self._library, self._of_pairs = library, of_pairs

    @property
    def _operators(self) -> Any:
        return extension.operators(self._library)

    def pair_divergences(
        self, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._call(self._of_pairs, logits, pair_weight, mask, with_gradient)

    def mixture_divergences(
        self, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._call("mixture_divergences", logits, mixture_weight, mask, with_gradient)

    def _call(
        self, name: str, logits: Tensor, weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        divergence = torch.empty_like(weight, memory_format=torch.contiguous_format)
        gradient = torch.empty_like(logits) if with_gradient else None
        operator = getattr(self._operators, name)
        operator(logits, weight.contiguous(), mask.contiguous(), divergence, gradient)
        return divergence, gradient


CPP, CUDA = CompiledGroups("cpp"), CompiledGroups("cuda")
CPP_JEFFREYS = CompiledGroups("cpp", "jeffreys_divergences")

"""Group kernels from a compiled library: csrc/cpu on a CPU, csrc/cuda on an NVIDIA GPU. Logits in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels import extension


class CompiledGroups:
    """See `contract.GroupKernels`; `device` is "cpu" or "cuda"."""

    def __init__(self, device: str) -> None:
        self._device = device

    def pair_divergences(
        self, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._call("pair_divergences", logits, pair_weight, mask, with_gradient)

    def mixture_divergences(
        self, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._call("mixture_divergences", logits, mixture_weight, mask, with_gradient)

    def _call(
        self, name: str, logits: Tensor, weight: Tensor, mask: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        divergence = torch.empty_like(weight, memory_format=torch.contiguous_format)
        gradient = torch.empty_like(logits) if with_gradient else None
        operator = getattr(extension.operators(self._device), name)
        operator(logits, weight.contiguous(), mask.contiguous(), divergence, gradient)
        return divergence, gradient


CPP, CUDA = CompiledGroups("cpu"), CompiledGroups("cuda")

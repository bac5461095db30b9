"""Describes how a launcher calls a Triton kernel, so that `python -m mind_kernels ahead` can compile it without a
GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Triton's names of the dtypes that the kernels support.
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """A kernel with the constants of one kind of launch."""

    name: str
    kernel: Any
    """The kernel: a function decorated by @jit."""
    types: Mapping[str, str]
    """Triton type of each argument, "*bf16" or "i32"; may name arguments of other kernels too."""
    keywords: Mapping[str, Any]
    """Constexprs, None for an absent tensor, and launch options such as num_warps."""
    wide: tuple[str, ...] = ()
    """Tensors that may have more than 2^31 elements."""
    unaligned: tuple[str, ...] = ()
    """Arguments that need not be a multiple of 16; the others are compiled as such, as Triton does on a launch."""
    capabilities: tuple[int, ...] = ()
    """The architectures that it is launched on; empty: all."""
    harmless_spills: str = ""
    """Why spills of this variant are accepted."""

    @property
    def constexprs(self) -> dict[str, Any]:
        return {name: self.keywords[name] for name in self.kernel.arg_names if name in self.keywords}

    @property
    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self.keywords.items() if name not in self.kernel.arg_names}

    @property
    def signature(self) -> dict[str, str]:
        return {name: "constexpr" if name in self.keywords else self.types[name] for name in self.kernel.arg_names}

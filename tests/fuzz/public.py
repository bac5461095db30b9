"""A call of a public operation, and its results with any backend: loss, statistics and gradients, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mind_kernels
from mind_kernels import Head
from mind_kernels.backend import BACKENDS
from mind_kernels.row_chunks import accumulation_dtype

Tensors = dict[str, Tensor]
AS_GIVEN = ("teacher_log_prob",)
"""Constants whose dtype has a meaning: the rest of a list's probability is at least its rounding of 1."""


@dataclass
class PublicCall:
    """Arguments of an operation of mind_kernels, by name."""

    function: str
    operation: str
    """As a backend knows it: see `mind_kernels.backend.Backend`."""
    leaves: Tensors
    """hidden, weight and, unless there is none, bias."""
    needs: tuple[str, ...]
    """Those of the leaves that require a gradient."""
    constants: Tensors
    options: dict[str, Any]
    seed: int = 0
    """Of the upstream gradients."""
    upstream: float = 1.7
    """Their size; 1 means ones."""
    left_out: int = 0
    """Which of several differentiable results has no upstream gradient; 0: none, 1: the first, ..."""
    as_head: bool = False
    always_sparse: bool = False
    """Whether the sparse gradient is taken even if it would be slower."""

    @property
    def dtype(self) -> torch.dtype:
        return self.leaves["hidden"].dtype

    def backends(self, names: Sequence[str]) -> list[str]:
        """Which of these backends have to compute it."""
        return [name for name in names if self._runs(name)]

    def _runs(self, name: str) -> bool:
        backend = BACKENDS[name]
        if not backend.serves(self.operation) or not backend.availability().available:
            return False
        if "gradient_error" in self.options and not (
            name == "reference" or (name == "cpp" and self.dtype != torch.float64)
        ):
            return False
        if backend.interpreter and torch.bfloat16 in (self.dtype, *(v.dtype for v in self.constants.values())):
            return False  # Triton's interpreter multiplies no bfloat16 matrices
        return backend.float64 or self.dtype != torch.float64

    def wide(self, dtype: torch.dtype = torch.float64) -> PublicCall:
        """The same call with contiguous tensors, floating ones of this dtype."""

        def convert(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor.detach().contiguous()
            return tensor.to(dtype) if tensor.is_floating_point() and name not in AS_GIVEN else tensor

        leaves = {name: convert(name, value) for name, value in self.leaves.items()}
        return self.replaced(leaves, {name: convert(name, value) for name, value in self.constants.items()})

    def replaced(self, leaves: Tensors, constants: Tensors, **options: Any) -> PublicCall:
        return dataclasses.replace(self, leaves=leaves, constants=constants, options=self.options | options)

    def __call__(self, backend: str) -> Tensors:
        """All results; a statistic is named after the fields that lead to it, a gradient `d_hidden`, ..."""
        leaves = {name: value.detach().requires_grad_(name in self.needs) for name, value in self.leaves.items()}
        arguments: dict[str, Any] = leaves | self.constants | self.options
        if self.as_head:
            names = [name for name in ("bias", "softcap", "temperature") if name in arguments]
            arguments["weight"] = Head(arguments["weight"], **{name: arguments.pop(name) for name in names})
        found = named(getattr(mind_kernels, self.function)(**arguments, backend=backend))
        outputs = [name for name, value in found.items() if value.requires_grad]
        if self.left_out and len(outputs) > 1:
            del outputs[(self.left_out - 1) % len(outputs)]
        if outputs and self.needs:
            needed = [leaves[name] for name in self.needs]
            upstream = [self._upstream(name, found[name]) for name in outputs]
            gradients = torch.autograd.grad([found[name] for name in outputs], needed, upstream)
            found |= {f"d_{name}": value for name, value in zip(self.needs, gradients, strict=True)}
        found = {name: value.detach() for name, value in found.items()}
        self._check_kinds(found)
        return found

    def _upstream(self, name: str, output: Tensor) -> Tensor:
        if self.upstream == 1:
            return torch.ones_like(output)
        generator = torch.Generator().manual_seed(self.seed + len(name))
        found = torch.randn(output.shape, generator=generator, dtype=torch.float64) * self.upstream
        if found.dim() and self.seed % 2:
            found[..., ::3] = 0
        return found.to(torch.float32).to(output.dtype)  # the same numbers in float64

    def _check_kinds(self, found: Tensors) -> None:
        """Raises AssertionError for a result of another dtype, or a gradient of another shape, than is promised."""
        for name, value in found.items():
            leaf = self.leaves.get(name.removeprefix("d_"))
            if name.startswith("d_") and leaf is not None:
                assert (value.shape, value.dtype) == (leaf.shape, leaf.dtype), f"{name} is {value.dtype} {value.shape}"
            elif value.is_floating_point():
                assert value.dtype == accumulation_dtype(self.dtype), f"{name} is {value.dtype}"

    def described(self) -> str:
        """For a finding: every argument in one line each."""

        def of(tensor: Tensor) -> str:
            return f"{tensor.dtype} {tuple(tensor.shape)}, strides {tensor.stride()}, at {tensor.storage_offset()}"

        lines = [f"{self.function}: gradients of {', '.join(self.needs) or 'nothing'}, upstream {self.upstream}"]
        lines += [f"  {name}: {of(value)}" for name, value in (self.leaves | self.constants).items()]
        return "\n".join([*lines, f"  {self.options}, as_head={self.as_head}, always_sparse={self.always_sparse}"])


def named(found: Any, name: str = "loss") -> Tensors:
    """The tensors in what an operation returned."""
    if found is None:
        return {}
    if isinstance(found, Tensor):
        return {name: found}
    if dataclasses.is_dataclass(found):
        items = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    elif hasattr(found, "_asdict"):
        items = found._asdict()
    else:
        items = dict(zip(("", "stats"), found, strict=True))
    out: Tensors = {}
    for key, value in items.items():
        prefix = name if key == "" else key if name == "loss" else f"{name}.{key}"
        out |= named(value, prefix)
    return out

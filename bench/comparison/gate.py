"""Compares loss, dH and dW of a provider with the truth before it is timed, so that no wrong result gets a time.

A definition is computed in slices of rows, the same for every provider of a case:
- the truth: float64, or float32 for 16-bit inputs on a GPU, whose error is a thousandth of what is judged there;
- the yardstick: a dense gradient in bf16 (inputs, logits and their gradient rounded, products and sums in float32 or
  more), which is what training in bf16 accepts anyway.

Ours, exact: at most twice eager's error (three times with a GPU) plus the floor of the dtype
(testing.assert_within_budget). Where it promises float32 logits for 16-bit inputs, also at most twice the error of a
yardstick with float32 logits. Peers, and the sparse gradient: relative Frobenius error of dH and dW at most the
yardstick's, and twice that in a 16-bit dtype, where the yardstick is what a dense gradient errs itself; the loss within
`testing.error_budget` of the yardstick's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.comparison.provider import Outputs, Provider, step
from mind_kernels.testing import assert_within_budget, error, error_budget


class Precision(NamedTuple):
    """What a definition is computed in."""

    dtype: torch.dtype
    bf16: bool = False
    """Inputs and the gradient of the logits are rounded to bf16 ..."""
    bf16_logits: bool = False
    """... and the logits too."""

    def round(self, tensor: Tensor) -> Tensor:
        return tensor.bfloat16().to(self.dtype) if self.bf16 else tensor

    def round_logits(self, tensor: Tensor) -> Tensor:
        return self.round(tensor) if self.bf16_logits else tensor

    def leaves(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """hidden and weight."""
        hidden, weight = (self.round(tensor.detach().to(self.dtype)) for tensor in (inputs.hidden, inputs.weight))
        return hidden, weight


@dataclass(frozen=True)
class Definition:
    """What a provider's loss and gradients have to be."""

    dense: Callable[[Any, Precision], Outputs]
    """In slices of rows."""
    eager: Provider
    """Plain PyTorch: ours may err twice as much."""
    view: Callable[[Any], Any] = lambda inputs: inputs
    """The inputs that are judged, made from those that are timed."""
    float32_logits: bool = False
    """Ours keeps the logits in float32 whatever the dtype of the inputs."""


INEXACT = 4
"""From so many times the error of plain PyTorch on, and an epsilon, a provider is noted as inexact."""


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float((found.to(truth.dtype) - truth).norm() / truth.norm())


class Gate:
    """Judges providers by one definition."""

    def __init__(self, definition: Definition, inputs: Any):
        self.inputs = definition.view(inputs)
        self.dtype = inputs.hidden.dtype
        single = inputs.hidden.is_cuda and self.dtype != torch.float32
        self.truth = definition.dense(self.inputs, Precision(torch.float32 if single else torch.float64))
        self.yardstick, self.allowed_loss = self._yardstick(definition, bf16_logits=True)
        self.strict = None
        if definition.float32_logits and self.dtype != torch.float32:
            self.strict = self._yardstick(definition, bf16_logits=False)
        lacking = definition.eager.reason_absent(self.inputs)
        self.eager = None if lacking else step(definition.eager, self.inputs)()

    def _yardstick(self, definition: Definition, bf16_logits: bool) -> tuple[dict[str, float], float]:
        """Its relative errors, and the distance from the true loss that it allows."""
        dense = definition.dense(self.inputs, Precision(torch.float32, bf16=True, bf16_logits=bf16_logits))
        return self.errors(dense), error_budget(dense.loss, self.truth.loss, self.dtype).largest

    def errors(self, found: Outputs) -> dict[str, float]:
        """Relative errors of loss, dH and dW, of those that were computed."""
        return {
            f"{name}_error": relative_error(value, getattr(self.truth, name))
            for name, value in found._asdict().items()
            if value.numel()
        }

    def check(self, provider: Provider, found: Outputs) -> None:
        """Raises AssertionError, with the error and the bound, where `found` is wrong."""
        exact = provider.backend and not provider.sparse and not provider.forward
        if exact and self.eager is not None:
            assert_within_budget(found._asdict(), self.eager._asdict(), self.truth._asdict(), self.dtype)
            if self.strict:
                self._check_norms(found, *self.strict)
            return
        self._check_norms(found, self.yardstick, self.allowed_loss, loss_only=provider.loss_only or provider.forward)

    def remark(self, provider: Provider, found: Outputs) -> str:
        """What is to be said of a provider that passed by the yardstick, bfloat16, and is not exact; empty otherwise.

        The gradients may be of another function, or leave entries out on purpose, which the provider says itself.
        """
        if self.eager is None or provider.loss_only or provider.sparse or provider.forward:
            return ""
        worse = [
            f"{name.removesuffix('_error')} {value:.1e} against {ofeager:.1e}"
            for (name, value), ofeager in zip(self.errors(found).items(), self.errors(self.eager).values(), strict=True)
            if value > INEXACT * ofeager + torch.finfo(self.dtype).eps
        ]
        return f"not exact: errors of {', '.join(worse)} of plain PyTorch" if worse else ""

    def _check_norms(
        self, found: Outputs, yardstick: Mapping[str, float], allowed_loss: float, *, loss_only: bool = False
    ) -> None:
        distance = error(found.loss, self.truth.loss).largest
        assert distance <= allowed_loss, f"loss error {distance:.2e} exceeds {allowed_loss:.2e}"
        factor, errors = 1 if self.dtype == torch.float32 else 2, self.errors(found)
        for name in () if loss_only else ("d_hidden_error", "d_weight_error"):
            value, bound = errors[name], factor * yardstick[name]
            assert value <= bound, f"{name} {value:.2e} exceeds {bound:.2e}"


class Gates:
    """The gates of a case: each is built when the first provider is judged by it."""

    def __init__(self, definitions: Mapping[str, Definition], inputs: Any):
        self.definitions, self.inputs = definitions, inputs
        self._built: dict[str, Gate] = {}

    def __getitem__(self, name: str) -> Gate:
        if name not in self._built:
            self._built[name] = Gate(self.definitions[name], self.inputs)
        return self._built[name]

"""No number without a right answer: loss, dH and dW of a provider against the truth, before it is timed.

Two computations in slices of rows, the same for every provider of a case:
- the truth: float64, or float32 for 16-bit inputs on a GPU, whose error is a thousandth of what is judged there;
- the yardstick: a dense gradient in bf16 (inputs, logits and their gradient rounded, products and sums in float32 or
  more), which is what training in bf16 accepts anyway.

Ours, exact: at most twice eager's error plus the floor of the dtype (testing.assert_within_budget). Peers, and the
sparse gradient: relative Frobenius error of dH and dW at most the yardstick's, and twice that in a 16-bit dtype, where
the yardstick is what a dense gradient errs itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cross_entropy.inputs import SLICE, Inputs
from bench.cross_entropy.providers import Provider
from mind_kernels.testing import assert_within_budget, error, error_budget


class Outputs(NamedTuple):
    loss: Tensor
    d_hidden: Tensor  # (N, D)
    d_weight: Tensor  # (V, D)


@torch.no_grad()
def dense(inputs: Inputs, dtype: torch.dtype, *, bf16: bool = False) -> Outputs:
    """The definition in `dtype`, in slices of rows; with `bf16`, rounded wherever a dense bf16 computation rounds."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().to(dtype) if bf16 else tensor

    hidden, weight = rounded(inputs.hidden.to(dtype)), rounded(inputs.weight.to(dtype))
    rows = len(hidden)
    loss, d_hidden, d_weight = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, rows, SLICE):
        part = slice(start, start + SLICE)
        target = inputs.target[part]
        logits = rounded(hidden[part] @ weight.T)
        loss += F.cross_entropy(logits, target, reduction="sum") / rows
        d_logits = logits.softmax(1)
        d_logits[torch.arange(len(target), device=target.device), target] -= 1
        d_logits = rounded(d_logits / rows)
        d_hidden[part] = d_logits @ weight
        d_weight.addmm_(d_logits.T, hidden[part])
    return Outputs(loss, d_hidden, d_weight)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float((found.to(truth.dtype) - truth).norm() / truth.norm())


class Gate:
    """Judges the providers of one case."""

    def __init__(self, inputs: Inputs):
        self.dtype = inputs.hidden.dtype
        single = inputs.hidden.is_cuda and self.dtype != torch.float32
        self.truth = dense(inputs, torch.float32 if single else torch.float64)
        yardstick = dense(inputs, torch.float32, bf16=True)
        self.allowed_loss = error_budget(yardstick.loss, self.truth.loss, self.dtype).largest
        self.yardstick = self.errors(yardstick)

    def errors(self, found: Outputs) -> dict[str, float]:
        """Relative errors of dH and dW."""
        return {f"{name}_error": relative_error(getattr(found, name), getattr(self.truth, name))
                for name in ("d_hidden", "d_weight")}

    def check(self, provider: Provider, found: Outputs, eager: Outputs | None) -> None:
        """Raises AssertionError, with the error and the bound, where `found` is wrong."""
        if provider.backend and not provider.sparse and eager is not None:
            assert_within_budget(found._asdict(), eager._asdict(), self.truth._asdict(), self.dtype)
            return
        distance = error(found.loss, self.truth.loss).largest
        assert distance <= self.allowed_loss, f"loss error {distance:.2e} exceeds {self.allowed_loss:.2e}"
        factor = 1 if self.dtype == torch.float32 else 2
        for name, value in self.errors(found).items():
            bound = factor * self.yardstick[name]
            assert value <= bound, f"{name} {value:.2e} exceeds {bound:.2e}"

"""Compares loss, L_real and the gradients of all parameters with those of a more exact step before a step is timed.

The truth is the step with plain losses in float64, in float32 for a 16-bit student. Plain PyTorch is not it: its
float32 softmax over a vocabulary errs by 1e-5 of the loss and 2e-4 of a trunk's gradient, many times more than the
fused losses do.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from bench.training_step.inputs import Inputs
from bench.training_step.variants import Outcome, Variant, forward_backward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRUTH = Variant(selected_only=True)  # plain rows and plain losses; no work that is multiplied by 0


class Limits(NamedTuple):
    """Relative errors that a variant may have."""

    loss: float
    """Of the loss and of each L_real."""
    gradient: float
    """Of the whole gradient, by its norm."""
    sparse_gradient: float
    """The same where small probabilities are left out of the gradient on purpose."""


# A few times what plain PyTorch errs by, and the sparse gradient. A step without consistency loss would be off by 1e-3
# of its loss and 1e-2 of its gradient.
SINGLE = Limits(1e-4, 5e-4, 1e-1)
LIMITS = {torch.float64: SINGLE, torch.float32: SINGLE, torch.bfloat16: Limits(3e-2, 1e-1, 2e-1)}


class Gate:
    """The truth of a step; its gradients are kept on the host."""

    def __init__(self, model: PreTrainedModel, inputs: Inputs, length: int):
        self.limits = LIMITS[model.dtype]
        truth = copy.deepcopy(model)
        cast(nn.Module, truth).to(torch.float32 if model.dtype.itemsize == 2 else torch.float64)
        self.outcome = forward_backward(TRUTH, truth, inputs, length)
        self.gradients = {name: gradient.to("cpu", torch.float32) for name, gradient in gradients(truth).items()}

    def errors(self, outcome: Outcome, model: PreTrainedModel) -> dict[str, float]:
        """Relative errors of the outcome and of the gradients that the parameters hold now."""
        found = gradients(model)
        if found.keys() != self.gradients.keys():
            raise AssertionError(f"gradients of {len(found)} parameters: expected {len(self.gradients)}")
        distance = sum(
            squared_norm(gradient.to(found[name].device) - found[name]) for name, gradient in self.gradients.items()
        )
        size = sum(map(squared_norm, self.gradients.values()))
        return {
            "loss_error": relative(outcome.loss, self.outcome.loss),
            "l_real_error": relative(outcome.l_real, self.outcome.l_real),
            "grad_error": (distance / size) ** 0.5,
        }

    def check(self, variant: Variant, errors: dict[str, float]) -> None:
        """Raises AssertionError, with the error and the limit, where one exceeds it or is nan."""
        gradient = self.limits.sparse_gradient if variant.sparse else self.limits.gradient
        for name, limit in zip(errors, (self.limits.loss, self.limits.loss, gradient), strict=True):
            if not errors[name] <= limit:
                raise AssertionError(f"{name} {errors[name]:.2e} exceeds {limit:.0e}")


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error, over the value that was expected."""
    return float(((found - expected) / expected).abs().max())


def squared_norm(tensor: Tensor) -> float:
    return float(tensor.norm()) ** 2

"""No time without a right answer: loss, L_real and the gradient of every parameter against those of the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bench.training_step.variants import Outcome, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Limits(NamedTuple):
    """Relative errors that a variant may have."""

    loss: float
    """Of the loss and of each L_real."""
    gradient: float
    """Of the norm of the whole gradient."""
    sparse_gradient: float
    """The same where small probabilities are left out of the gradient on purpose."""


# The gradient of a trunk sums over thousands of tokens, in another order in every variant: float32 leaves about 1e-5
# of it, bfloat16 a few percent. The sparse gradient errs by about half a percent on a trained student's rows.
EXACT = Limits(1e-5, 1e-4, 2e-2)
LIMITS = {torch.float64: EXACT, torch.float32: EXACT, torch.bfloat16: Limits(1e-2, 5e-2, 1e-1)}


class Gate:
    """What the reference gave; its gradients are kept on the host."""

    def __init__(self, outcome: Outcome, model: PreTrainedModel):
        self.outcome = outcome
        self.limits = LIMITS[model.dtype]
        self.gradients = {name: gradient.to("cpu", copy=True) for name, gradient in gradients(model).items()}

    def errors(self, outcome: Outcome, model: PreTrainedModel) -> dict[str, float]:
        """Relative errors of the outcome and of the gradients that the parameters hold now."""
        found = gradients(model)
        if found.keys() != self.gradients.keys():
            raise AssertionError(f"gradients of {len(found)} parameters: expected {len(self.gradients)}")
        distance = torch.tensor([squared(found[name], gradient) for name, gradient in self.gradients.items()])
        size = torch.tensor([squared(gradient) for gradient in self.gradients.values()])
        return {"loss_error": relative(outcome.loss, self.outcome.loss),
                "l_real_error": relative(outcome.l_real, self.outcome.l_real),
                "grad_error": float((distance.sum() / size.sum()).sqrt())}

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


def squared(tensor: Tensor, other: Tensor | None = None) -> float:
    """The squared norm of a tensor, or of its distance from one on the host."""
    difference = tensor.double() if other is None else tensor.double() - other.to(tensor.device).double()
    return float(difference.square().sum())

"""A head with more than 2^31 numbers, and more than 2^31 logits: values and gradients by a closed form."""

from __future__ import annotations

import math

import psutil
import pytest
import torch
from cases import device_of, interpreted, usable

from mind_kernels import linear_cross_entropy, linear_log_prob

BACKENDS = [name for name in usable("linear_cross_entropy") if name != "reference" and not interpreted(name)]
FEW = 5
"""Rows of the head that are not 0, at its end: all other logits are 0, so that sums over the vocabulary are known."""


def needs(gib: float) -> None:
    if psutil.virtual_memory().available < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free memory")


def expected(hidden, last, target, vocabulary):
    """Per row: loss and probabilities of the last FEW entries, and the probability of each other one; in float64."""
    logits = hidden.double() @ last.double().T
    sums = logits.exp().sum(1) + (vocabulary - FEW)
    at_target = torch.stack(
        [
            row[t - vocabulary + FEW] if t >= vocabulary - FEW else row.new_zeros(())
            for row, t in zip(logits, target.tolist(), strict=True)
        ]
    )
    return sums.log() - at_target, logits.exp() / sums[:, None], 1 / sums


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [None, 2.0**-12])
def test_more_numbers_in_the_head_than_an_int_counts(backend, threshold):
    vocabulary, width, rows = 2**27 + 9, 16, 2
    assert vocabulary * width > 2**31
    needs(14)
    device = device_of(backend)
    last = torch.linspace(-1, 1, FEW * width, device=device).view(FEW, width)
    weight = torch.zeros(vocabulary, width, dtype=torch.bfloat16, device=device)
    weight[-FEW:] = last
    weight.requires_grad_()
    last = weight.detach()[-FEW:].float()
    hidden = torch.linspace(-9, 9, rows * width, device=device).view(rows, width).bfloat16().requires_grad_()
    target = torch.tensor([vocabulary - 1, 3], device=device)
    loss = linear_cross_entropy(hidden, weight, target, backend=backend, gradient_threshold=threshold, reduction="sum")
    loss.backward()
    losses, few, each = expected(hidden.detach(), last, target.cpu(), vocabulary)
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    states = hidden.detach().double()
    at_end = few.clone()
    at_end[0, -1] -= 1  # the first row's target is the last entry
    tolerance = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(weight.grad[-FEW:].double(), at_end.T @ states, **tolerance)
    torch.testing.assert_close(
        weight.grad[3].double(), each[1] * states[1] - states[1] + each[0] * states[0], **tolerance
    )
    torch.testing.assert_close(hidden.grad.double(), at_end @ last.double(), **tolerance)
    assert weight.grad[10 : vocabulary - FEW].abs().amax() < 1e-5


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_logits_than_an_int_counts(backend):
    """N V > 2^31; the logits themselves never lie in memory together."""
    vocabulary, width = 2**17 + 3, 4
    rows = 2**31 // vocabulary + 2
    device = device_of(backend)
    weight = torch.zeros(vocabulary, width, device=device)
    weight[-FEW:] = last = torch.linspace(-1, 1, FEW * width, device=device).view(FEW, width)
    hidden = torch.linspace(-3, 3, rows * width, device=device).view(rows, width).requires_grad_()
    target = torch.full((rows,), vocabulary - 1, device=device)
    weight.requires_grad_()
    found = linear_log_prob(hidden, weight, target, backend=backend).log_prob
    found.sum().backward()
    losses, few, _ = expected(hidden.detach(), last, target.cpu(), vocabulary)
    torch.testing.assert_close(-found.detach().double(), losses, rtol=1e-5, atol=1e-5)
    few[:, -1] -= 1
    torch.testing.assert_close(hidden.grad.double(), -few @ last.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad[-FEW:].double(), -few.T @ hidden.detach().double(), rtol=1e-3, atol=1e-3)
    assert math.isfinite(weight.grad.sum())

"""The mean over rows whose weights, their sum or their products with losses float32 does not hold."""

from __future__ import annotations

import pytest
import torch
from cases import device_of, usable

from mind_kernels import linear_cross_entropy, linear_divergence

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

OPERATIONS = {"linear_cross_entropy": linear_cross_entropy, "linear_divergence": linear_divergence}
CASES = [(name, backend) for name in OPERATIONS for backend in ("reference", *usable(name))]


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_the_size_of_all_weights_has_no_effect(name, backend, size):
    device = "cpu" if backend == "reference" else device_of(backend)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator).to(device) for rows in (6, 31))
    truth = (torch.arange(6, device=device),) if name == "linear_cross_entropy" else (hidden, weight.roll(1, 0))
    found = []
    for of_all in (1.0, size):
        row_weight, leaf = torch.full((6,), of_all, device=device), hidden.clone().requires_grad_()
        row_weight[2] = 0
        loss = OPERATIONS[name](leaf, weight, *truth, row_weight=row_weight, backend=backend)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*found)

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


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, torch.float32) for size in (1e-42, 1e-30, 1e30, 3e38)]
    + [(size, torch.float64) for size in (1e-308, 1e-60, -1e60, 1e308)],
)
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_the_size_of_all_weights_has_no_effect(name, backend, size, dtype):
    device = "cpu" if backend == "reference" else device_of(backend)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator).to(device) for rows in (6, 31))
    truth = (torch.arange(6, device=device),) if name == "linear_cross_entropy" else (hidden, weight.roll(1, 0))
    found = []
    for of_all in (1.0, size):
        row_weight, leaf = torch.full((6,), of_all, device=device, dtype=dtype), hidden.clone().requires_grad_()
        row_weight[2] = 0
        loss = OPERATIONS[name](leaf, weight, *truth, row_weight=row_weight, backend=backend)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["reference", *usable("linear_cross_entropy")])
def test_the_weight_of_a_row_without_a_target_has_no_effect(backend):
    device = "cpu" if backend == "reference" else device_of(backend)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator).to(device) for rows in (3, 31))
    target = torch.tensor([4, -100, 7], device=device)
    found = []
    for ignored in (1.0, 1e300):
        row_weight = torch.tensor([1.0, ignored, 2.0], dtype=torch.float64, device=device)
        found.append(linear_cross_entropy(hidden, weight, target, row_weight=row_weight, backend=backend))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_weights_without_a_mean_have_none(name, backend):
    device = "cpu" if backend == "reference" else device_of(backend)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator).to(device) for rows in (3, 31))
    truth = (torch.arange(3, device=device),) if name == "linear_cross_entropy" else (hidden, weight.roll(1, 0))
    for values in ([0, 0, 0], [1, torch.inf, 1], [1, torch.nan, 1]):
        row_weight = torch.tensor(values, dtype=torch.float64, device=device)
        assert OPERATIONS[name](hidden, weight, *truth, row_weight=row_weight, backend=backend).isnan(), values

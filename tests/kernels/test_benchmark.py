"""Forward and backward of the backends over small shapes, by pytest-benchmark.

    pytest tests/kernels/test_benchmark.py --benchmark-enable --benchmark-only

gives the numbers; otherwise each case runs as a plain test. What is meant to be quoted comes from bench/.
"""

from __future__ import annotations

import pytest
import torch

from mind_kernels import linear_cross_entropy
from mind_kernels.backend import BACKENDS as TABLE
from mind_kernels.testing import make_inputs

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=0.1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter is no backend to be timed.
BACKENDS = [
    name for name, backend in TABLE.items() if backend.availability().available and backend.tensors in ("any", DEVICE)
]


@pytest.fixture
def poisoned_memory():
    """Not here: filling fresh memory would be timed."""


@pytest.mark.parametrize("threshold", [None, 2.0**-12], ids=["exact", "sparse"])
@pytest.mark.parametrize("rows, size, vocabulary", [(128, 64, 4099), (512, 128, 1024)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_cross_entropy(benchmark, backend, rows, size, vocabulary, threshold):
    inputs = make_inputs(rows, size, vocabulary, device=DEVICE, peak=60.0)
    hidden, weight = (inputs[name].requires_grad_() for name in ("hidden", "weight"))

    def step():
        loss = linear_cross_entropy(
            hidden,
            weight,
            inputs["target"],
            row_weight=inputs["row_weight"],
            gradient_threshold=threshold,
            backend=backend,
        )
        gradients = torch.autograd.grad(loss, (hidden, weight))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return loss, *gradients

    assert all(bool(tensor.isfinite().all()) for tensor in benchmark(step))

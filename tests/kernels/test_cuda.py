"""The torch backend on a GPU, against float64 on the CPU; every case is skipped where there is no CUDA device."""

from __future__ import annotations

import pytest
import test_linear_mind_loss
import test_linear_pairwise_jsd
import torch

from mind_kernels import (
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
    sparse_gradient,
)
from mind_kernels.testing import assert_within_budget, make_inputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(function, inputs, dtype, device, backend, arguments):
    """Loss and gradients, on the CPU; integer tensors named in `arguments` stay on the host."""
    inputs = {name: t.to(device) if t.is_floating_point() or t.dtype == torch.bool else t for name, t in inputs.items()}
    hidden, weight = (inputs.pop(name).detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    loss = function(hidden, weight, *(inputs.pop(name) for name in arguments), **inputs, backend=backend)
    loss.backward()
    return {"loss": loss.cpu(), "d_hidden": hidden.grad.cpu(), "d_weight": weight.grad.cpu()}


def sparse(*arguments, **options):
    return linear_cross_entropy(*arguments, **options, gradient_threshold=2**-7)


def log_prob(hidden, weight, target, row_weight, **options):
    rows = linear_log_prob(hidden, weight, target, **options)
    return (row_weight * (rows.log_prob + 0.1 * rows.entropy)).sum()


def listed(hidden, weight, target, row_weight, **options):
    """Two ids and a temperature per row, and lse."""
    ids = torch.stack([target, target.clamp(min=0) // 2], 1)
    rows = linear_log_prob(hidden, weight, ids, temperature=0.5 + row_weight, **options)
    return (row_weight * (rows.log_prob.sum(1) + 0.1 * rows.lse)).sum()


def mixture(hidden, weight, pair_weight, **options):
    return linear_pairwise_jsd(hidden, weight, mixture_weight=pair_weight[:, 0], **options)


def sparse_mind(*arguments, **options):
    return linear_mind_loss(*arguments, **options, gradient_threshold=2**-7)


def divergence(hidden, weight, target, row_weight, **options):
    """From a teacher of the same head, one row off."""
    teacher = hidden.detach().roll(1, 0), weight.detach()
    return linear_divergence(hidden, weight, *teacher, kind="jsd", row_weight=row_weight, **options)


def rows():
    return make_inputs(300, 64, 1009, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("function", "make", "arguments"),
    [
        (linear_cross_entropy, rows, ("target",)),
        (sparse, rows, ("target",)),
        (log_prob, rows, ("target", "row_weight")),
        (listed, rows, ("target", "row_weight")),
        (linear_pairwise_jsd, test_linear_pairwise_jsd.make, ("pair_weight",)),
        (mixture, test_linear_pairwise_jsd.make, ("pair_weight",)),
        (linear_mind_loss, test_linear_mind_loss.make, ("target", "row_weight", "answer_rows", "pair_weight")),
        (sparse_mind, test_linear_mind_loss.make, ("target", "row_weight", "answer_rows", "pair_weight")),
        (divergence, rows, ("target", "row_weight")),
    ],
    ids=[
        "cross_entropy",
        "sparse",
        "log_prob",
        "listed",
        "pairwise_jsd",
        "mixture",
        "mind_loss",
        "sparse_mind",
        "divergence",
    ],
)
def test_matches_float64(function, make, arguments, dtype, monkeypatch):
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    inputs = make()
    rounded = {k: v.to(dtype) if k in ("hidden", "weight") else v for k, v in inputs.items()}
    truth = run(function, rounded, torch.float64, "cpu", "reference", arguments)
    peer = run(function, rounded, dtype, "cuda", "reference", arguments)
    assert_within_budget(run(function, rounded, dtype, "cuda", "torch", arguments), peer, truth, dtype)

"""Hidden states (..., D) give the numbers of (N, D) in the leading shape; indices of 32 bits those of 64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import usable
from losses import make_constants
from torch import Tensor

from mind_kernels import linear_cross_entropy, linear_divergence, linear_log_prob, linear_mind_loss
from mind_kernels.testing import make_inputs


def cross_entropy(hidden, weight, c, **options):
    rows = {name: c[name] for name in ("target", "row_weight", "segment")}
    return linear_cross_entropy(hidden, weight, **rows, num_segments=3, return_stats=True, **options)


def log_prob(hidden, weight, c, **options):
    (log_prob, entropy, lse), stats = linear_log_prob(hidden, weight, c["target"], return_stats=True, **options)
    return log_prob + entropy + lse, stats


def divergence(hidden, weight, c, **options):
    teacher = {name: c[name] for name in ("teacher_hidden", "teacher_weight", "row_weight")}
    return linear_divergence(hidden, weight, **teacher, return_stats=True, **options)


def listed_divergence(hidden, weight, c, **options):
    teacher = {name: c[name] for name in ("teacher_ids", "teacher_log_prob", "row_weight")}
    return linear_divergence(hidden, weight, **teacher, return_stats=True, **options)


def mind_loss(hidden, weight, c, **options):
    answers = c["answer_rows"][:2], c["answer_weight"][:2]
    loss, stats = linear_mind_loss(hidden, weight, c["target"], c["row_weight"], *answers, return_stats=True, **options)
    return loss, stats.rows


LOSSES = {
    "cross_entropy": (cross_entropy, "linear_cross_entropy", {}),
    "cross_entropy of each row": (cross_entropy, "linear_cross_entropy", {"reduction": "none"}),
    "sparse": (cross_entropy, "linear_cross_entropy", {"gradient_threshold": 0.05}),
    "log_prob": (log_prob, "linear_cross_entropy", {}),
    "divergence": (divergence, "linear_divergence", {"reduction": "none"}),
    "listed divergence": (listed_divergence, "linear_divergence", {"reduction": "none"}),
    "mind_loss": (mind_loss, "linear_mind_loss", {}),
}
CASES = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name, (_, operation, _) in LOSSES.items()
    for backend in usable(operation)
]


def make():
    inputs = make_inputs(12, 8, 31)
    constants = make_constants(12, 31) | {"target": inputs["target"], "segment": torch.arange(12) % 3}
    return inputs["hidden"], inputs["weight"], constants


def reshaped(constants: dict[str, Tensor], shape, dtype) -> dict[str, Tensor]:
    """Those of rows in another leading shape, integers in another dtype."""
    other = {}
    for name, value in constants.items():
        value = value if value.is_floating_point() else value.to(dtype)
        per_row = name not in ("answer_rows", "answer_weight", "teacher_weight", "pair_weight", "mixture_weight")
        other[name] = value.unflatten(0, shape) if per_row else value
    return other


def results(of, hidden, weight, constants, **options):
    """Loss, statistics of the rows, and the gradients of hidden and weight."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, stats = of(hidden, weight, constants, **options)
    loss.sum().backward()
    return loss, dataclasses.asdict(stats), hidden.grad, weight.grad


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_the_leading_shape_changes_no_number(name, backend, dtype):
    of, _, options = LOSSES[name]
    hidden, weight, constants = make()
    loss, stats, d_hidden, d_weight = results(of, hidden, weight, constants, backend=backend, **options)
    shape = (2, 3, 2)
    rows = reshaped(constants, shape, dtype)
    found = results(of, hidden.unflatten(0, shape), weight, rows, backend=backend, **options)
    assert found[0].shape == (shape if loss.dim() else ())
    assert torch.equal(found[0].flatten(), loss.flatten())
    assert torch.equal(found[2], d_hidden.unflatten(0, shape)) and torch.equal(found[3], d_weight)
    for field, value in stats.items():
        if value is None or field.startswith("segment"):
            assert value is None or torch.equal(found[1][field], value)
        else:
            assert torch.equal(found[1][field], value.unflatten(0, shape)), field


@pytest.mark.parametrize("backend", usable("linear_cross_entropy"))
def test_no_row_and_a_slice_of_positions(backend):
    """As transformers' loops cut them: hidden[:, :-1], which is not contiguous, and none at all."""
    hidden, weight, _ = make()
    states, labels = hidden.view(2, 6, 8), torch.arange(12).view(2, 6)
    found = linear_cross_entropy(states[:, :-1], weight, labels[:, 1:], backend=backend)
    alone = linear_cross_entropy(states[:, :-1].reshape(-1, 8), weight, labels[:, 1:].reshape(-1), backend=backend)
    assert torch.equal(found, alone)
    none = linear_cross_entropy(states[:, :0], weight, labels[:, :0], reduction="none", backend=backend)
    assert none.shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(12).long()}, r"target has shape \(12,\): expected \(\.\.\.\) = \(2, 6\)"),
        ({"target": torch.zeros(2, 5).long()}, r"target has shape \(2, 5\): expected \(\.\.\.\) = \(2, 6\)"),
        ({"row_weight": torch.ones(12)}, r"row_weight has shape \(12,\): expected \(\.\.\.\) = \(2, 6\)"),
        ({"target": torch.zeros(2, 6).short()}, r"target has dtype torch.int16: expected torch.int64 or torch.int32"),
    ],
)
def test_other_shapes_are_refused(change, message):
    hidden, weight, _ = make()
    arguments = {"target": torch.zeros(2, 6).long()} | change
    with pytest.raises((ValueError, TypeError), match=message):
        linear_cross_entropy(hidden.view(2, 6, 8), weight, **arguments)

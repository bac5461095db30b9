"""Hidden states that are not numbers, in rows that the loss does not depend on: nothing else changes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from cases import device_of, usable
from losses import LOSSES, Loss, make_constants, with_backends

from mind_kernels import (
    linear_cross_entropy,
    linear_divergence,
    linear_mind_loss,
    linear_pairwise_jsd,
    row_chunks,
    row_loop,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter's, of nan

OF_ERROR = partial(linear_cross_entropy, reduction="sum", gradient_error=1e-3)
OF_ROWS = [loss for loss in LOSSES if {"target", "ids"} & set(loss.constants)]
ROW = 7  # no answer of the joint loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@with_backends(
    reference=True, losses=[*OF_ROWS, Loss("error", "linear_cross_entropy", ("target", "row_weight"), OF_ERROR)]
)
def test_ignored_rows_may_hold_anything(loss, backend, value):
    if loss.name == "error" and backend == "torch":
        pytest.skip("this backend has no gradient_error")
    generator = torch.Generator().manual_seed(0)
    constants = make_constants(12, 31)
    constants["target"][ROW] = constants["ids"][ROW] = -100
    results = []
    for number in (1.0, value):
        hidden, weight = (torch.randn(rows, 8, generator=generator.manual_seed(rows)) for rows in (12, 31))
        hidden[ROW] = number
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        found = loss(*leaves, constants, backend=backend)
        results.append([found.detach(), *torch.autograd.grad(found, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert results[0][1][ROW].count_nonzero() == 0


def on_cpu(operation):
    return ["reference", *(backend for backend in usable(operation) if device_of(backend) == "cpu")]


def _of_none(*leaves, **options):
    return linear_cross_entropy(*leaves, reduction="none", **options).sum()


WEIGHTED = [
    *(loss for loss in OF_ROWS if loss.name in ("cross_entropy", "sparse", "smoothed", "forward_kl", "reverse_kl")),
    *(loss for loss in OF_ROWS if loss.name in ("listed_jsd", "joint", "sparse_joint")),
    Loss("error", "linear_cross_entropy", ("target", "row_weight"), OF_ERROR),
    Loss("none", "linear_cross_entropy", ("target", "row_weight"), _of_none),
]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The host does not select rows by their weights."""
    for module in (row_chunks, row_loop):
        monkeypatch.setattr(module, "selects_by_weight", lambda device: False)


def check_without_weight(loss, backend, value):
    """That `value` in a row of weight zero changes no bit of the loss and the gradients, and gets no gradient."""
    generator = torch.Generator().manual_seed(0)
    constants = make_constants(12, 31)
    constants["row_weight"][ROW] = 0
    results = []
    for number in (1.0, value):
        hidden, weight = (torch.randn(rows, 8, generator=generator.manual_seed(rows)) for rows in (12, 31))
        hidden[ROW, 3] = number
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        found = loss(*leaves, constants, backend=backend)
        results.append([found.detach(), *torch.autograd.grad(found, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert results[1][1][ROW].count_nonzero() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@with_backends(reference=True, losses=WEIGHTED)
def test_rows_of_weight_zero_may_hold_anything(loss, backend, value):
    if loss.name == "error" and backend == "torch":
        pytest.skip("this backend has no gradient_error")
    check_without_weight(loss, backend, value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@with_backends(losses=[loss for loss in WEIGHTED if loss.name != "error"])
def test_rows_of_weight_zero_that_take_part_may_hold_anything(as_on_a_gpu, loss, backend, value):
    check_without_weight(loss, backend, value)


@pytest.mark.parametrize("selected", [True, False])
@pytest.mark.parametrize("backend", on_cpu("linear_divergence"))
def test_statistics_of_a_row_of_weight_zero_are_nan(request, backend, selected):
    """If its hidden states are nan; the teacher's entropy does not depend on them."""
    if not selected:
        request.getfixturevalue("as_on_a_gpu")
    hidden, weight = (torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)) for rows in (12, 31))
    hidden[ROW, 3] = math.nan
    leaves, constants = (hidden.requires_grad_(), weight), make_constants(12, 31)
    constants["row_weight"][ROW] = 0
    common = {"row_weight": constants["row_weight"], "reduction": "sum", "return_stats": True, "backend": backend}
    _, rows = linear_cross_entropy(*leaves, constants["target"], **common)
    teacher = {name: constants[name] for name in ("teacher_hidden", "teacher_weight")}
    _, values = linear_divergence(*leaves, **teacher, **common)
    of_rows = [rows.nll, rows.lse, rows.entropy, values.divergence, values.entropy]
    for value in of_rows:
        assert value.isnan().nonzero().flatten().tolist() == [ROW]
    assert values.target_entropy.isfinite().all() and not rows.correct[ROW]


FORMS = {
    "pairs": ("linear_pairwise_jsd", {}),
    "jeffreys": ("linear_pairwise_jsd, jeffreys", {"kind": "jeffreys"}),
    "mixture": ("linear_pairwise_jsd", {}),
}


def in_groups(hidden, weight, form, backend, options):
    """Loss, divergences and gradients of two groups of three rows; the group weights of row 1 are 0."""
    group_weight = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    group_weight[0, 1] = group_weight[0, :, 1] = 0
    weights = {"mixture_weight": group_weight[:, 0]} if form == "mixture" else {"pair_weight": group_weight}
    if form == "mixture":
        weights["mixture_weight"][0, 1] = 0
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    common = {**weights, "backend": backend, "return_stats": True}
    if "target" in options:
        loss, stats = linear_mind_loss(*leaves, **common, **options)
        divergence, more = stats.pairs, {"nll": stats.rows.nll, "lse": stats.rows.lse, "entropy": stats.rows.entropy}
    else:
        loss, divergence = linear_pairwise_jsd(leaves[0].view(2, 3, -1), leaves[1], **common, **options)
        more = {}
    (values,) = vars(divergence).values()
    d_hidden, d_weight = torch.autograd.grad(loss, leaves)
    return {"loss": loss.detach(), "d_hidden": d_hidden, "d_weight": d_weight}, values, more


def of_groups(joint):
    for form, (operation, options) in FORMS.items():
        if joint and form == "jeffreys":
            continue
        for backend in on_cpu("linear_mind_loss" if joint else operation):
            yield pytest.param(form, options, backend, id=f"{form}-{backend}")


def check_groups(form, backend, options, value, seen):
    """That `value` in row 1 changes its own statistics alone; `seen`: those of rows, which become nan."""
    results = []
    for number in (1.0, value):
        hidden, weight = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 31))
        hidden[1] = number
        results.append(in_groups(hidden, weight, form, backend, options))
    (clean, divergence, rows), (found, spoilt, spoilt_rows) = results
    for name, expected in clean.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)
    assert found["d_hidden"][1].count_nonzero() == 0
    expected = divergence.clone()
    if form == "mixture":
        expected[0, 1] = math.nan
    else:
        expected[0, 1, 0] = expected[0, 1, 2] = expected[0, 0, 1] = expected[0, 2, 1] = math.nan
    torch.testing.assert_close(spoilt, expected, rtol=1e-6, atol=1e-8, equal_nan=True)
    for name, statistic in rows.items():
        statistic[1] = math.nan if seen else 0.0
        torch.testing.assert_close(spoilt_rows[name], statistic, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize(("form", "options", "backend"), [*of_groups(joint=False)])
def test_a_row_without_weight_is_nan_alone(form, options, backend, value):
    check_groups(form, backend, options, value, seen=True)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("form", "options", "backend"), [*of_groups(joint=True)])
def test_an_answer_without_any_weight_is_nan_alone(form, options, backend, ignored):
    """An ignored row has no statistics of its cross-entropy."""
    joint = {
        "target": torch.tensor([3, -100 if ignored else 5, 0, 7, 30, 11]),
        "row_weight": torch.tensor([0.2, 0.3 if ignored else 0.0, 0.1, 0.4, 0.0, 0.6]),
        "answer_rows": torch.arange(6).view(2, 3),
    }
    check_groups(form, backend, joint, math.nan, seen=not ignored)


@pytest.mark.parametrize("backend", on_cpu("linear_mind_loss"))
def test_an_answer_with_a_weight_is_not_hidden(backend):
    """Its cross-entropy is nan, though no divergence counts it."""
    hidden, weight = torch.randn(6, 8), torch.randn(31, 8)
    hidden[1] = math.nan
    joint = {"target": torch.arange(6), "row_weight": torch.ones(6), "answer_rows": torch.arange(6).view(2, 3)}
    found, _, _ = in_groups(hidden, weight, "pairs", backend, joint)
    assert found["loss"].isnan() and found["d_hidden"][1].isnan().all() and found["d_weight"].isnan().any()

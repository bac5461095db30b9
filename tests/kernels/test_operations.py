"""What all operations have in common: a Head in place of a weight, and no second derivative."""

from __future__ import annotations

from functools import partial

import pytest
import test_linear_divergence_contract
import test_linear_mind_loss
import test_linear_pairwise_jsd
import torch
from cases import assert_compiles_whole

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
)
from mind_kernels.testing import make_inputs


def log_prob(hidden, weight, target, row_weight, **options):
    return (row_weight * linear_log_prob(hidden, weight, target, **options).log_prob).sum()


def rows(count=9):
    return make_inputs(count, 8, 31, dtype=torch.float64)


def divergence_rows(count=9):
    return test_linear_divergence_contract.make(count, 8, 31)


def groups(count=4):
    return test_linear_pairwise_jsd.make(groups=count)


def rows_and_groups(count=60):
    return test_linear_mind_loss.make(rows=count)


OPERATIONS = [
    pytest.param(linear_cross_entropy, rows, id="cross_entropy"),
    pytest.param(partial(linear_cross_entropy, gradient_threshold=0.05), rows, id="sparse"),
    pytest.param(partial(linear_cross_entropy, reduction="none"), rows, id="none"),
    pytest.param(log_prob, rows, id="log_prob"),
    pytest.param(linear_pairwise_jsd, groups, id="pairwise_jsd"),
    pytest.param(linear_divergence, divergence_rows, id="divergence"),
    pytest.param(linear_mind_loss, rows_and_groups, id="mind_loss"),
]


def options_of(weight):
    return {"bias": torch.linspace(-1, 1, len(weight)).to(weight), "softcap": 5.0, "temperature": 0.7}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("operation", "make"), OPERATIONS)
def test_a_head_is_its_weight_bias_softcap_and_temperature(operation, make, backend):
    inputs = make()
    hidden, weight = inputs.pop("hidden"), inputs.pop("weight")
    results = []
    for as_head in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, options_of(weight)["bias"])]
        options = options_of(weight) | {"bias": leaves[2]}
        head = Head(leaves[1], **options) if as_head else leaves[1]
        loss = operation(leaves[0], head, **inputs, **({} if as_head else options), backend=backend)
        loss.sum().backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for apart, together in zip(*results, strict=True):
        torch.testing.assert_close(together, apart, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("operation", "make"),
    [
        pytest.param(*one.values, id=one.id, marks=[pytest.mark.nightly] * (one.id not in ("sparse", "mind_loss")))
        for one in OPERATIONS
    ],
)
def test_a_head_in_a_graph(operation, make):
    """One that is made there of its inputs, and one that comes from outside."""
    inputs = make()
    hidden, weight = inputs.pop("hidden"), inputs.pop("weight")
    bias, outside = options_of(weight)["bias"], Head(weight, softcap=5.0)

    def step(hidden, weight, bias):
        made = operation(hidden * 2, Head(weight, bias, softcap=5.0), **inputs)
        return (made + operation(hidden * 3, outside, **inputs)).sum()

    assert_compiles_whole(step, hidden, weight, bias)


@pytest.mark.parametrize("name", ["bias", "softcap", "temperature"])
@pytest.mark.parametrize(("operation", "make"), OPERATIONS)
def test_a_head_has_its_options_already(operation, make, name):
    inputs = make()
    hidden, weight = inputs.pop("hidden"), inputs.pop("weight")
    option = {name: options_of(weight)[name]}
    with pytest.raises(ValueError, match=f"^{name}: expected none beside a Head as weight, which has its own"):
        operation(hidden, Head(weight), **inputs, **option)


def test_the_teachers_head():
    inputs = test_linear_divergence_contract.make(9, 8, 31)
    row_weight, student = inputs.pop("row_weight"), (inputs["hidden"], inputs["weight"])
    teacher_hidden, weight = inputs["teacher_hidden"], inputs["teacher_weight"]
    bias = options_of(weight)["bias"]
    divergence = partial(linear_divergence, row_weight=row_weight)
    expected = divergence(*student, teacher_hidden, weight, teacher_bias=bias, teacher_softcap=3.0, temperature=0.7)
    teacher = Head(weight, bias, 3.0, 0.7)
    torch.testing.assert_close(divergence(*student, teacher_hidden, teacher, temperature=0.7), expected)
    heads = Head(student[1], temperature=0.7), teacher
    torch.testing.assert_close(divergence(student[0], heads[0], teacher_hidden, heads[1]), expected)
    own = divergence(*student, teacher_hidden, teacher)  # the Head's temperature, whatever the student's
    scaled = Head(weight / 0.7, bias / 0.7, 3.0 / 0.7)
    torch.testing.assert_close(own, divergence(*student, teacher_hidden, scaled))
    with pytest.raises(ValueError, match="^teacher_temperature: expected none beside a Head as teacher_weight"):
        divergence(*student, teacher_hidden, teacher, teacher_temperature=1.0)
    with pytest.raises(ValueError, match="teacher_bias: expected none beside a Head as teacher_weight"):
        divergence(*student, teacher_hidden, teacher, teacher_bias=bias, temperature=0.7)


@pytest.mark.parametrize(("operation", "make"), OPERATIONS)
def test_higher_order_gradients_raise(operation, make):
    inputs = make()
    inputs["hidden"].requires_grad_()
    loss = operation(**inputs).sum()
    with pytest.raises(RuntimeError, match="higher-order gradients are not supported .* use backend='reference'"):
        torch.autograd.grad(loss, inputs["hidden"], create_graph=True)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize(("dtype", "wide"), [(torch.float64, torch.float64), (torch.float16, torch.float32)], ids=str)
def test_logits_are_the_definition(dtype, wide, softcap):
    inputs = make_inputs(5, 8, 31, dtype=dtype)
    bias = torch.linspace(-1, 1, 31).to(dtype)
    z = (inputs["hidden"] @ inputs["weight"].T + bias).to(wide)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    found = Head(inputs["weight"], bias, softcap, 0.7).logits(inputs["hidden"])
    assert found.dtype == wide
    rounding = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, z / 0.7, rtol=rounding, atol=rounding)

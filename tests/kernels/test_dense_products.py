"""The products of a gradient that is in memory, by csrc/cpu/gradient.h, with every instruction set, against float64."""

from __future__ import annotations

import functools

import implementations
import pytest
import torch
from test_projected_logits import CPP, DTYPES, SIZES

from mind_kernels import extension
from mind_kernels.compiled_head import CompiledHead
from mind_kernels.head import Head, HeadGradients

each = functools.partial(implementations.each, of=CPP)
pytestmark = pytest.mark.skipif(not CPP, reason="no compiled library")


def inputs_of(rows, size, vocabulary, dtype):
    """gradient (n, V) float32, hidden and weight."""
    generator = torch.Generator().manual_seed(0)
    gradient, hidden, weight = (
        torch.randn(shape, generator=generator) for shape in ((rows, vocabulary), (rows, size), (vocabulary, size))
    )
    gradient[rows // 2] = 0
    return gradient, hidden.to(dtype), weight.to(dtype)


def check(found, truth, size):
    """That each entry is within the rounding of what is summed."""
    assert ((found - truth).abs() <= 1e-6 * size).all()


@each(SIZES, names="sizes", dtypes=DTYPES)
def test_products(implementation, dtype, sizes):
    gradient, hidden, weight = inputs_of(*sizes, dtype)
    rows, size, vocabulary = sizes
    of_hidden, of_weight, of_bias = torch.full((rows, size), 7.0), torch.ones(vocabulary, size), torch.ones(vocabulary)
    g, h, w = gradient.double(), hidden.double(), weight.double()
    for add in (False, True):
        extension.operators("cpp").dense_products(gradient, hidden, weight, of_hidden, of_weight, add, of_bias)
        check(of_hidden, g @ w, g.abs() @ w.abs())
        check(of_weight, (1 + add) * (g.T @ h), 2 * g.abs().T @ h.abs())
    check(of_bias, 1 + 2 * g.sum(0), 1 + 2 * g.abs().sum(0))


@each([(True, False, False), (False, True, False), (False, False, True)], names="needs")
def test_only_what_is_needed(implementation, needs):
    gradient, hidden, weight = inputs_of(49, 33, 301, torch.float32)
    results = []
    for needed in (needs, (True, True, True)):
        outs = torch.zeros(49, 33), torch.zeros(301, 33), torch.zeros(301)
        given = [out if need else None for out, need in zip(outs, needed, strict=True)]
        extension.operators("cpp").dense_products(gradient, hidden, weight, *given[:2], False, given[2])
        results.append(outs)
    for need, alone, all_together in zip(needs, *results, strict=True):
        assert torch.equal(alone, all_together) if need else not alone.any()


@each()
def test_a_row_that_is_not_finite_spoils_its_own_hidden_states_alone(implementation):
    gradient, hidden, weight = inputs_of(20, 33, 301, torch.float32)
    of_hidden = torch.zeros(20, 33)
    gradient[3] = float("nan")
    extension.operators("cpp").dense_products(gradient, hidden, weight, of_hidden, None, False, None)
    assert of_hidden[3].isnan().all() and of_hidden[torch.arange(20) != 3].isfinite().all()


@pytest.mark.parametrize(
    ("rows", "dtype", "ours"),
    [(15, torch.float32, False), (16, torch.float32, True), (16, torch.bfloat16, True), (16, torch.float64, False)],
)
def test_which_products_a_head_takes(rows, dtype, ours):
    gradient, hidden, weight = inputs_of(rows, 24, 301, dtype)
    gradient = gradient.double() if dtype == torch.float64 else gradient
    assert (CompiledHead(weight).gradient_products(hidden, gradient) is not None) is ours
    found = []
    for head in (CompiledHead(weight, weight[:, 0]), Head(weight, weight[:, 0])):
        gradients = HeadGradients(hidden, head, [True, True, True])
        for part in (slice(0, 8), slice(8, rows)):  # the second one is added to the first
            gradients.add(part, hidden[part], gradient[part])
        gradients.add(slice(0, rows), hidden, gradient)
        found.append(gradients.results(hidden.shape))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=tolerance, atol=30 * tolerance)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda t: t[:, :7], r"gradient has shape \(17, 7\): expected \(17, 101\)"),
        (0, lambda t: t.bfloat16(), "gradient has dtype BFloat16: expected Float"),
        (0, lambda t: t.T.contiguous().T, "gradient is not contiguous"),
        (1, lambda t: t.T.contiguous().T, "hidden has rows that are not contiguous"),
        (2, lambda t: t.half(), "weight has dtype Half: expected Float"),
        (3, lambda t: t[:5], r"of_hidden has shape \(5, 8\): expected \(17, 8\)"),
        (4, lambda t: t.double(), "of_weight has dtype Double: expected Float"),
        (6, lambda t: t[:5], r"of_bias has shape \(5\): expected \(101\)"),
    ],
)
def test_wrong_arguments_are_named(argument, change, message):
    results = [torch.zeros(17, 8), torch.zeros(101, 8), False, torch.zeros(101)]
    arguments = [*inputs_of(17, 8, 101, torch.float32), *results]
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        extension.operators("cpp").dense_products(*arguments)

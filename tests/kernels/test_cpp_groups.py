"""What only the compiled CPU group kernels have: spans of columns, threads, precision, and errors that name a tensor.

Everything else is in the suite of test_group_kernels.py.
"""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from cases import usable
from kernel_cases import truth_and_peer_of_groups

from mind_kernels import backend, extension
from mind_kernels.linear_pairwise_jsd import backend_torch
from mind_kernels.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    "cpp" not in usable("linear_pairwise_jsd"), reason="the CPU library is not here: see test_backend.py"
)

FORMS = ["pairs", "mixture"]
CPP = [each for each in implementations.of("linear_pairwise_jsd") if each.backend == "cpp"]  # every instruction set
each = functools.partial(implementations.each, of=CPP)
SPAN = 4096  # columns of a work item, kSpan in run_groups.cpp


def make(groups, count, vocabulary, *, form="pairs", scale=2.0, seed=0):
    """logits (G, K, V) float32, group_weight and mask (G, K)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(groups, 1, vocabulary, generator=generator)
    logits = logits + torch.randn(groups, count, vocabulary, generator=generator)
    shape = (groups, count, count) if form == "pairs" else (groups, count)
    weight = torch.rand(shape, generator=generator)
    return logits, weight, torch.ones(groups, count, dtype=torch.bool)


def run(logits, weight, mask, with_gradient=True, kernels=None):
    kernels = kernels or backend.kernels("linear_pairwise_jsd", "cpp")
    kernel = kernels.pair_divergences if weight.dim() == 3 else kernels.mixture_divergences
    values, gradient = kernel(logits, weight, mask, with_gradient)
    return {"values": values, "gradient": gradient}


def assert_right(found, inputs):
    truth, peer = truth_and_peer_of_groups(*inputs)
    assert_within_budget(found, peer, truth, torch.float32)


def assert_identical(found, expected):
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@each(FORMS, [4, 6, 7], names="form count")  # those that the suite has not
def test_rows_of_a_group(implementation, form, count):
    inputs = make(3, count, 203, form=form)
    assert_right(run(*inputs), inputs)


@each(FORMS, [1, 7, 8, 9, 16, 17, 33, SPAN - 1, SPAN, SPAN + 3, (1 << 16) + 3], names="form vocabulary")
def test_columns(implementation, form, vocabulary):
    inputs = make(2, 3, vocabulary, form=form)
    assert_right(run(*inputs), inputs)


@each(FORMS, names="form")
def test_without_a_gradient(implementation, form):
    inputs = make(2, 5, SPAN + 77, form=form)
    assert torch.equal(run(*inputs, with_gradient=False)["values"], run(*inputs)["values"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2, 9, 30])
def test_threads_change_nothing(groups, form, threads):
    """1 to 3 threads take whole groups of 30, and spans of columns of 2."""
    inputs = make(groups, 4, 2 * SPAN + 100, form=form)
    threads(1)
    alone = run(*inputs)
    for number in (2, 3, 7):
        threads(number)
        assert_identical(run(*inputs), alone)


@pytest.mark.parametrize("form", FORMS)
def test_groups_do_not_depend_on_one_another(form):
    logits, weight, mask = make(9, 3, SPAN + 5, form=form)
    whole = run(logits, weight, mask)
    for part in (slice(0, 1), slice(1, 4), slice(4, 9)):
        expected = {name: value[part] for name, value in whole.items()}
        assert_identical(run(logits[part], weight[part], mask[part]), expected)


@each([math.nan, math.inf], [0, 64, 130], names="bad column")
def test_non_finite_rows_reach_their_pairs_only(implementation, bad, column):
    inputs = make(2, 4, 131)
    inputs[0][1, 2, column] = bad
    found, kept = run(*inputs), torch.tensor([0, 1, 3])
    of_row = torch.ones(4, dtype=torch.bool)
    of_row[2] = False
    assert found["values"][1, 2][of_row].isnan().all() and found["values"][1, :, 2][of_row].isnan().all()
    assert found["gradient"][1].isnan().any(-1).all()
    assert found["values"][0].isfinite().all() and found["gradient"][0].isfinite().all()
    finite = run(*make(2, 4, 131))["values"]
    torch.testing.assert_close(found["values"][1][kept][:, kept], finite[1][kept][:, kept])


@each(FORMS, [-1e30, torch.finfo(torch.float32).min], names="form lowest")
def test_the_lowest_logits(implementation, form, lowest):
    """Columns that are ruled out by the most negative numbers, in all rows or in one."""
    inputs = make(2, 3, 100, form=form)
    inputs[0][..., 90:] = lowest
    inputs[0][:, 1, :10] = lowest
    assert_right(run(*inputs), inputs)


@each(FORMS, [20.0, 60.0], names="form peak")
def test_gradient_of_saturated_rows(implementation, form, peak):
    """The gradient is far smaller than p and F' where a row is nearly all in one column."""
    inputs = make(3, 4, 500, form=form)
    for k in range(4):
        inputs[0][:, k, 7 * (k // 2)] += peak
    found, truth = run(*inputs), truth_and_peer_of_groups(*inputs)[0]
    error = (found["gradient"].double() - truth["gradient"]).abs().amax((1, 2))
    largest = truth["gradient"].abs().amax((1, 2))
    assert (largest < 1e-2).all() and (error < 1e-5 * largest).all()


@each(FORMS, names="form")
def test_agrees_with_float64_kernels_on_large_groups(implementation, form):
    """Far below the error of plain float32, which the budget allows."""
    inputs = make(2, 6, 3 * SPAN + 11, form=form)
    found, exact = run(*inputs), run(*inputs, kernels=backend_torch)
    for name, rtol in (("values", 1e-6), ("gradient", 1e-6)):
        scale = exact[name].abs().max()
        assert (found[name] - exact[name]).abs().max() < rtol * scale, name


def arguments(form):
    logits, weight, mask = make(2, 3, 10, form=form)
    name = "pair_weight" if form == "pairs" else "mixture_weight"
    return {
        "logits": logits,
        name: weight,
        "mask": mask,
        "divergence": torch.empty_like(weight),
        "gradient": torch.empty_like(logits),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name, change",
    [
        ("logits", lambda t: t[0]),
        ("logits", lambda t: t.double()),
        ("logits", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)),
        ("logits", lambda t: t[..., :0]),
        ("weight", lambda t: t[:1]),
        ("weight", lambda t: t.double()),
        ("weight", lambda t: t.repeat(*[1] * (t.dim() - 1), 2)[..., ::2]),
        ("mask", lambda t: t[:, :2]),
        ("mask", lambda t: t.float()),
        ("divergence", lambda t: t[..., :2]),
        ("divergence", lambda t: t.bfloat16()),
        ("gradient", lambda t: t[..., :9]),
        ("gradient", lambda t: t.half()),
    ],
)
def test_wrong_arguments_are_named(name, change, form):
    values = arguments(form)
    if name == "weight":
        name = "pair_weight" if form == "pairs" else "mixture_weight"
    values[name] = change(values[name])
    operators = extension.operators("cpp")
    operator = operators.pair_divergences if form == "pairs" else operators.mixture_divergences
    with pytest.raises(RuntimeError, match=f"{name} (is|have|has)"):
        operator(*values.values())

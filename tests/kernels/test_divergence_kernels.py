"""The contract of linear_divergence's RowKernels, for every implementation: divergences from logits and from lists."""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from divergence_cases import EXTREME_KINDS, KINDS
from kernel_cases import unluckiest

from mind_kernels.head import Head
from mind_kernels.linear_divergence import backend_torch, reference
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import divergence_of
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

each = functools.partial(implementations.each, of=implementations.of("linear_divergence"))


def kind(kind, beta=None, skew=None, interpolation=None):
    return divergence_of(kind, beta, skew, interpolation)


class Heads:
    """Softcap and temperature of both heads; the teacher's temperature is the student's if it is not given."""

    def __init__(self, softcap, teacher_softcap, temperature, teacher_temperature=None):
        nothing = torch.empty(0)
        self.student = Head(nothing, None, softcap, temperature)
        self.teacher = Head(nothing, None, teacher_softcap, teacher_temperature or temperature)

    def __str__(self):
        return f"softcap={self.student.softcap}"


DIVERGENCES = [kind(**parameters) for parameters in KINDS]
EXTREME = [kind(**parameters) for parameters in EXTREME_KINDS]
PLAIN, SOFTCAPPED = Heads(None, None, 1.0), Heads(5.0, 9.0, 0.7, 1.6)
# Less than a vector, rows that are not aligned, whole vectors; several tiles of Triton's kernels of both forms.
VOCABULARIES = [7, 67, 1024, 2311, 4112]
FORMS = ["logits", "list"]


def make(implementation, vocabulary, form, rows=32, ragged=True):
    """The student's logits, the teacher's or its events (5 ids and 6 log-probabilities), and weights of both signs.

    `ragged`: of the rows, in turn, two listed tokens are no events, none is missing, the last is, all but the last are.
    """
    rows = min(rows, 4) if implementation.slow else rows
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(2, rows, vocabulary, generator=generator)
    logits[:, :, ::5] += 3
    logits[1] = (logits[0] + logits[1]) / 2
    weights = torch.linspace(-1, 2, rows)
    weights[1] = 0
    teacher = (logits[1],)
    if form == "list":
        ids = torch.rand(rows, vocabulary, generator=generator).argsort(1)[:, :5]
        log_p = torch.randn(rows, 6, generator=generator)
        if ragged:
            log_p[::4, 1:3] = log_p[2::4, 5:] = log_p[3::4, :5] = -math.inf
        teacher = ids, torch.log_softmax(log_p, 1)
    return tuple(tensor.to(implementation.device) for tensor in (logits[0], *teacher, weights))


def run(implementation, inputs, heads, divergence, weighted=True):
    """The rows' values, and what takes the place of a copy of the logits."""
    logits, *teacher, weights = (tensor.clone() for tensor in inputs)
    kernels, weights = implementation.kernels("linear_divergence"), weights if weighted else None
    if len(teacher) == 2:
        values = kernels.listed_divergence_(logits, *teacher, weights, heads.student, divergence)
    else:
        values = kernels.divergence_(logits, *teacher, weights, heads.student, heads.teacher, divergence)
    return values, logits


def in_order(inputs, order):
    """The same with another order (V,) of the vocabulary."""
    logits, *teacher, weights = inputs
    if len(teacher) == 2:
        return logits[:, order], order.argsort()[teacher[0]], teacher[1], weights
    return logits[:, order], teacher[0][:, order], weights


def defined(inputs, heads, divergence, dtype):
    """Values and gradient by autograd, in `dtype`."""
    logits, *teacher, weights = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
    leaf = logits.detach().clone().requires_grad_()
    log_q = torch.log_softmax(heads.student.to_logits(leaf), 1)
    entropy = -(log_q.exp() * log_q).sum(1)
    if len(teacher) == 2:
        log_q, log_p = reference.events(log_q, *teacher), teacher[1]
    else:
        log_p = torch.log_softmax(heads.teacher.to_logits(*teacher), 1)
    log_p = divergence.target(log_q, log_p)
    target_entropy = torch.special.entr(log_p.exp()).sum(1)
    values = RowValues(divergence.of(log_q, log_p), entropy, target_entropy)
    (weights * values.divergence).sum().backward()
    return {name: value.detach() for name, value in values._asdict().items()} | {"gradient": leaf.grad}


def check(implementation, inputs, heads, divergence):
    values, gradient = run(implementation, inputs, heads, divergence)
    truth = defined(inputs, heads, divergence, torch.float64)

    def eager(order):
        order = order.to(implementation.device)
        found = defined(in_order(inputs, order), heads, divergence, torch.float32)
        return found | {"gradient": found["gradient"][:, order.argsort()]}

    peer = unluckiest(eager, inputs[0].shape[1], truth)
    assert_within_budget(values._asdict() | {"gradient": gradient}, peer, truth, torch.float32)
    return values, gradient


@each(DIVERGENCES, FORMS, VOCABULARIES, [PLAIN, SOFTCAPPED], names="divergence form vocabulary heads")
def test_matches_float64(implementation, divergence, form, vocabulary, heads):
    _, gradient = check(implementation, make(implementation, vocabulary, form), heads, divergence)
    assert gradient[1].count_nonzero() == 0  # a row of weight zero


@each(EXTREME, FORMS, names="divergence form")
def test_extreme_mixtures(implementation, divergence, form):
    check(implementation, make(implementation, 101, form), PLAIN, divergence)


@each(FORMS, [PLAIN, SOFTCAPPED], names="form heads")
def test_statistics_alone_are_those_of_the_gradient(implementation, form, heads):
    inputs = make(implementation, 67, form)
    alone, _ = run(implementation, inputs, heads, DIVERGENCES[2], weighted=False)
    assert all(map(torch.equal, alone, run(implementation, inputs, heads, DIVERGENCES[2])[0]))


@each(DIVERGENCES, [PLAIN, SOFTCAPPED], names="divergence heads")
def test_equal_logits_give_exactly_zero(implementation, divergence, heads):
    logits, _, weights = make(implementation, 67, "logits")
    same = Heads(heads.student.softcap, heads.student.softcap, heads.student.temperature)
    values, gradient = run(implementation, (logits, logits, weights), same, divergence)
    assert values.divergence.count_nonzero() == 0 and gradient.count_nonzero() == 0


@each(DIVERGENCES, [math.nan, math.inf], ["student", "teacher"], names="divergence value place")
def test_non_finite_logits_show(implementation, divergence, value, place):
    logits, theirs, weights = make(implementation, 67, "logits", rows=3)
    (theirs if place == "teacher" else logits)[1, 40] = value
    values, gradient = run(implementation, (logits, theirs, weights + 2), PLAIN, divergence)
    assert values.divergence.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


@each(DIVERGENCES, ["listed", "other"], names="divergence place")
def test_non_finite_logits_show_in_a_list(implementation, divergence, place):
    logits, ids, log_p, weights = make(implementation, 67, "list", rows=3)
    others = torch.ones(67, dtype=torch.bool, device=logits.device).scatter_(0, ids[1], False).nonzero()
    logits[1, ids[1, 2] if place == "listed" else others[3]] = math.nan
    values, gradient = run(implementation, (logits, ids, log_p, weights + 2), PLAIN, divergence)
    assert values.divergence.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


@each([1, 2], names="vocabulary")
def test_the_smallest_vocabularies(implementation, vocabulary):
    """Of one token every distribution is the same."""
    values, gradient = check(implementation, make(implementation, vocabulary, "logits"), PLAIN, DIVERGENCES[2])
    assert vocabulary == 2 or (values.divergence.count_nonzero() == 0 and gradient.count_nonzero() == 0)


@each(FORMS, names="form")
def test_deterministic(implementation, form):
    inputs = make(implementation, 1003, form)
    first, second = (run(implementation, inputs, SOFTCAPPED, DIVERGENCES[3]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.filterwarnings("error")  # PyTorch's, of a buffer that does not fit
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_rows_change_nothing(form, monkeypatch):
    """Of backend torch; the last block has fewer rows."""
    [torch_backend] = [one for one in implementations.of("linear_divergence") if one.backend == "torch"]
    inputs, divergence = make(torch_backend, 67, form), DIVERGENCES[0]
    at_once = run(torch_backend, inputs, SOFTCAPPED, divergence)
    monkeypatch.setattr(backend_torch, "rows_per_block", lambda *_: 10)
    for found, expected in zip(run(torch_backend, inputs, SOFTCAPPED, divergence), at_once, strict=True):
        torch.testing.assert_close(found, expected)

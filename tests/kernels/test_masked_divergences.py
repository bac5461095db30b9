"""The contract of linear_divergence's RowKernels where logits are minus infinity, for every implementation."""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from divergence_cases import NEARLY_THE_TEACHER
from masked_cases import LOWEST, defined_divergence, interpolated
from test_divergence_kernels import DIVERGENCES, EXTREME, PLAIN, Heads, defined, kind, make, run

from mind_kernels.linear_divergence import teachers, terms

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ALL = implementations.of("linear_divergence")
TORCH = [implementation for implementation in ALL if implementation.backend == "torch"]
each = functools.partial(implementations.each, of=ALL)
INTERPOLATIONS = [kind("taid", interpolation=t) for t in (0.0, 0.7, 1.0)]
PLACES = ["student", "teacher", "both", "each"]


def make_logits(implementation, vocabulary):
    """Logits of both sides and weights; the interpreter has two rows, since all are masked alike."""
    return make(implementation, vocabulary, "logits", rows=2 if implementation.slow else 32)


def masked(logits, theirs, place, lowest):
    """Copies of both sides with columns that one of them masks, or both, or each of them others."""
    logits, theirs = logits.clone(), theirs.clone()
    if place != "teacher":
        logits[:, 10:25] = lowest
    if place != "student":
        theirs[:, 20:35] = lowest
    if place == "both":
        logits[:, 25:35] = theirs[:, 10:20] = lowest
    return logits, theirs


def is_infinite(divergence, place):
    """Whether one side has probability where the other, in whose logarithm it is, has none."""
    places = {0: ("student", "each"), 1: ("teacher", "each")}.get(divergence.mixture, ())
    return place in places and divergence.interpolation == 1


def expected(logits, theirs, weights, divergence):
    """Divergence, both entropies and gradient (n, V), float64, by the definition."""
    q, p = torch.softmax(logits.double(), 1), torch.softmax(theirs.double(), 1)
    if divergence.interpolation != 1:
        p = interpolated(logits, theirs, divergence.interpolation)
    value, gradient = defined_divergence(q, p, divergence)
    return value, *(torch.special.entr(x).sum(1) for x in (q, p)), weights.double()[:, None] * gradient


def assert_right(found, truth):
    """Of a row with an infinite divergence of the kinds whose gradient the definition has not, no entry is finite."""
    values, gradient = found
    *numbers, of_logits = truth
    for value, number in zip(values, numbers, strict=True):
        torch.testing.assert_close(value.double(), number, rtol=1e-5, atol=1e-6)
    finite = of_logits.isfinite().all(1)
    torch.testing.assert_close(gradient[finite].double(), of_logits[finite], rtol=1e-5, atol=1e-6)
    assert not bool(gradient[~finite].isfinite().any())


@each([*DIVERGENCES, *EXTREME, *INTERPOLATIONS], PLACES, [67, 1024], names="divergence place vocabulary")
def test_masked_logits(implementation, divergence, place, vocabulary):
    """KL(x, m) is infinite where m alone has no probability. 0 on both sides adds nothing."""
    logits, theirs, weights = make_logits(implementation, vocabulary)
    inputs = *masked(logits, theirs, place, -math.inf), weights + 2
    truth = expected(*inputs, divergence)
    assert bool((truth[0] == math.inf).all()) == is_infinite(divergence, place)
    found = run(implementation, inputs, PLAIN, divergence)
    assert_right(found, truth)
    if place == "both":
        assert found[1][:, 10:35].count_nonzero() == 0


@each([kind(**parameters) for parameters in NEARLY_THE_TEACHER], ["teacher", "each"], names="divergence place")
def test_a_mixture_that_is_nearly_the_teacher(implementation, divergence, place):
    """What it has of the student counts where the teacher has nothing."""
    logits, theirs, weights = make_logits(implementation, 67)
    inputs = *masked(logits, theirs, place, -math.inf), weights + 2
    assert_right(run(implementation, inputs, PLAIN, divergence), expected(*inputs, divergence))


@each(DIVERGENCES, names="divergence")
def test_a_nan_of_a_token_that_is_not_listed(implementation, divergence):
    """Nor is it renormalized away."""
    logits, ids, log_p, weights = make(implementation, 67, "list", rows=3, ragged=False)
    log_p[:, -1] = -math.inf
    others = torch.ones_like(logits).scatter_(1, ids, 0)
    logits[1, others[1].argmax()] = math.nan
    values, gradient = run(implementation, (logits, ids, torch.log_softmax(log_p, 1), weights), PLAIN, divergence)
    assert values.divergence.isnan().tolist() == [False, True, False]
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


@each(DIVERGENCES, LOWEST[1:], PLACES, names="divergence lowest place")
def test_low_logits(implementation, divergence, lowest, place):
    """Finite ones: what they make large is as large as it is."""
    logits, theirs, weights = make_logits(implementation, 67)
    inputs = *masked(logits, theirs, place, lowest), weights + 2
    found = run(implementation, inputs, PLAIN, divergence)
    if is_infinite(divergence, place):
        assert bool((found[0].divergence > 1e20).all())
    else:
        assert_right(found, expected(*inputs, divergence))


@each([*DIVERGENCES, *INTERPOLATIONS], ["student", "teacher"], names="divergence side")
def test_a_row_of_minus_infinity_alone_is_nan(implementation, divergence, side):
    logits, theirs, weights = make(implementation, 67, "logits", rows=3)
    (logits if side == "student" else theirs)[1] = -math.inf
    values, gradient = run(implementation, (logits, theirs, weights + 2), PLAIN, divergence)
    assert values.divergence.isnan().tolist() == [False, True, False]
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


@each(DIVERGENCES, PLACES, names="divergence place")
def test_a_softcap_makes_masked_logits_finite(implementation, divergence, place):
    logits, theirs, weights = make_logits(implementation, 67)
    heads = Heads(5.0, 5.0, 0.7)
    values, gradient = run(implementation, (*masked(logits, theirs, place, -math.inf), weights), heads, divergence)
    truth = defined((*masked(logits, theirs, place, -1e3), weights), heads, divergence, torch.float64)
    assert_right((values, gradient), tuple(truth.values()))


def events(logits, ids, log_p, softcap=None):
    """The student's probabilities of the events, and within the last one of its tokens, float64."""
    q = torch.softmax(logits.double() if softcap is None else softcap * torch.tanh(logits.double() / softcap), 1)
    others = q.scatter(1, ids, 0)
    total = others.sum(1, keepdim=True)
    return torch.cat([q.gather(1, ids), total], 1), torch.where(total > 0, others / total, 0), q


@each(
    [*DIVERGENCES, *INTERPOLATIONS],
    ["others", "all others", "listed", "teacher's", "listed and teacher's"],
    [None, 5.0],
    names="divergence place softcap",
)
def test_lists(implementation, divergence, place, softcap):
    logits, ids, log_p, weights = make(implementation, 67, "list", ragged=False)
    if divergence.mixture == 1 and "teacher's" in place:
        pytest.skip("infinite, and teachers.LOWEST stands for it: ListTeacher has no such event")
    listed = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    if place == "others":
        logits[(torch.arange(67, device=logits.device) % 3 == 0) & ~listed] = -math.inf
    if place == "all others":
        logits[~listed] = -math.inf
    if place.startswith("listed"):
        logits.scatter_(1, ids[:, 2:3], -math.inf)
    if place.endswith("teacher's"):
        log_p[:, 2] = teachers.LOWEST  # as ListTeacher has minus infinity
        log_p = torch.log_softmax(log_p, 1)
    heads = Heads(softcap, None, 1.0)
    values, gradient = run(implementation, (logits, ids, log_p, weights), heads, divergence)
    q, within, of_all = events(logits, ids, log_p, softcap)
    p = torch.softmax(log_p.double(), 1)
    if divergence.interpolation != 1:
        p = interpolated(q.log(), log_p, divergence.interpolation)
    value, of_events = defined_divergence(q, p, divergence)
    entropy = -torch.special.xlogy(of_all, of_all).sum(1)
    of_logits = (of_events[:, -1:] * within).scatter(1, ids, of_events[:, :-1]) * weights.double()[:, None]
    if softcap is not None:
        of_logits = of_logits * (1 - torch.tanh(logits.double() / softcap).square())
    assert_right((values, gradient), (value, entropy, torch.special.entr(p).sum(1), of_logits))
    infinite = softcap is None and divergence.mixture == 0 and divergence.interpolation == 1
    assert bool((value == math.inf).all()) == (infinite and place in ("all others", "listed"))


@pytest.mark.parametrize("place", ["neither", "both"])
@pytest.mark.parametrize("form", ["logits", "list"])
@each(DIVERGENCES, names="divergence", of=TORCH)
def test_what_a_gpu_does_without_looking(implementation, divergence, form, place, monkeypatch):
    """The torch backend asks on a CPU whether an infinity is there. A GPU is spared the question, with one result."""
    inputs = make(implementation, 67, form)
    if place == "both":
        inputs[0][:, 10:15] = -math.inf
        if form == "logits":
            inputs[1][:, 10:15] = -math.inf
    expected = run(implementation, inputs, PLAIN, divergence)
    kernels = implementation.kernels("linear_divergence")
    monkeypatch.setattr(kernels, "may_be_nan", lambda _: True)
    for module in (kernels, terms):
        monkeypatch.setattr(module, "known_finite", lambda _: False)
    torch.testing.assert_close(run(implementation, inputs, PLAIN, divergence), expected, rtol=1e-6, atol=1e-7)

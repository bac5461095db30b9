"""The contract of linear_cross_entropy's RowKernels, for every implementation: values, gradients, kept entries.

What only one of them has, such as a launch or a trap, is in the file of its backend; gather_rows has a file of its own.
"""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import (
    EVERYTHING,
    OPTIONS,
    PLAIN,
    Options,
    eager_rows,
    from_lse,
    kept_entries,
    make_rows,
    truth_and_peer_of_rows,
    unluckiest,
)

from mind_kernels import sparse_gradient
from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ALL = implementations.of("linear_cross_entropy")
STREAMING = [implementation for implementation in ALL if implementation.backend == "triton_streaming"]
# The row_kernel_ of the other ones is Triton's.
ON_LOGITS = [implementation for implementation in ALL if implementation not in STREAMING]
VOCABULARIES = [7, 67, 101, 1000, 1024]  # less than a vector, rows that are not aligned, parts of vectors, whole ones
each = functools.partial(implementations.each, of=ON_LOGITS, dtypes=DTYPES)


def make(implementation, vocabulary, dtype, rows=24):
    """As `make_rows`, with a row of weight zero."""
    if implementation.slow:
        rows = min(rows, 6)
        if implementation in STREAMING:  # whose product with an identity takes V^2 steps
            vocabulary = min(vocabulary, 260)
    logits, target, *weights = make_rows(rows, vocabulary, dtype, device=implementation.device)
    for weight in weights:
        weight[1] = 0
    return logits, target, *(weight.to(accumulation_dtype(dtype)) for weight in weights)


def run(implementation, logits, target, scale, entropy_scale, options):
    """The values of the row kernel, and the gradient that it puts in place of a copy of the logits."""
    out = logits.clone()
    kernels = implementation.kernels("linear_cross_entropy")
    return kernels.row_kernel_(out, target, options.weights(scale, entropy_scale), options.spec(logits.shape[1])), out


def sparse_rows(implementation, logits, target, options):
    """The sparse rows of logits: hidden states that an identity for a head leaves as they are, in any precision."""
    head = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    rows = implementation.kernels("linear_cross_entropy").sparse_rows(logits, target, options.spec(head))
    rows.means()
    return rows


@pytest.fixture(autouse=True)
def never_given_up(monkeypatch):
    """The small vocabularies of these tests are denser than any limit."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})


def assert_right(values, gradient, inputs, options):
    """Values and gradient, if there is one, are within the budget of eager PyTorch's, and `correct` is exact."""
    truth, peer = truth_and_peer_of_rows(*inputs, options)
    true_gradient = {"gradient": truth.pop("gradient")}
    assert_within_budget(values._asdict(), peer, truth, accumulation_dtype(inputs[0].dtype))
    if gradient is not None:
        assert_within_budget({"gradient": gradient}, peer, true_gradient, inputs[0].dtype)
    assert torch.equal(values.correct, options.condition(inputs[0].double()).argmax(1) == inputs[1])


def assert_follows(formula, found, logits):
    """Results are within the budget of formula(logits, order) in eager PyTorch."""
    truth, wide = formula(logits.double()), accumulation_dtype(logits.dtype)
    peer = unluckiest(lambda order: formula(logits.to(wide), order), logits.shape[1], truth)
    assert_within_budget(found, peer, truth, wide)


@each(OPTIONS, VOCABULARIES, names="options vocabulary")
def test_row_kernel_matches_float64(implementation, dtype, options, vocabulary):
    inputs = make(implementation, vocabulary, dtype)
    assert_right(*run(implementation, *inputs, options), inputs, options)


@each(OPTIONS, names="options")
def test_a_vocabulary_of_one(implementation, dtype, options):
    """Its only probability is 1, so nll and entropy are 0; label smoothing leaves the rounding of its three parts."""
    inputs = make(implementation, 1, dtype, rows=3)
    truth = eager_rows(inputs[0].double(), *inputs[1:], options)
    values, gradient = run(implementation, *inputs, options)
    torch.testing.assert_close(gradient, truth.pop("gradient").to(dtype), rtol=1e-2, atol=1e-6)
    for name, value in truth.items():
        torch.testing.assert_close(getattr(values, name).double(), value, rtol=1e-5, atol=1e-6)
    assert bool(values.correct.all()) and values.nll.count_nonzero() == 0
    assert sparse_rows(implementation, *inputs[:2], options).kept.tolist() == [1, 1, 1]


@each([PLAIN, EVERYTHING], names="options", dtypes=DTYPES[1:])  # float64 has no truth where a softcap saturates
def test_large_logits(implementation, dtype, options):
    logits, *rest = make(implementation, 1009, dtype)
    inputs = (logits * 3000).clamp(-1e4, 1e4), *rest
    assert_right(*run(implementation, *inputs, options), inputs, options)


@each(dtypes=())
def test_a_saturated_softcap_keeps_the_order_of_logits(implementation):
    """Up to x = 9 the nearest number to tanh x is below 1, its value at the other logit."""
    options, x = Options(softcap=1e4), torch.linspace(5.0, 8.9, 16, device=implementation.device)
    logits = 1e4 * torch.stack([x, torch.full_like(x, 22.0)], 1)
    target, scale = torch.ones_like(x, dtype=torch.int64), torch.ones_like(x)
    values, _ = run(implementation, logits, target, scale, scale, options)
    assert bool(values.correct.all())


@each(dtypes=())
def test_the_mean_of_like_logits_keeps_its_digits(implementation):
    """Label smoothing adds the differences to the largest logit, here one number 2,039 times: the roundings of such a
    sum all go the same way."""
    options, logits = Options(label_smoothing=0.5), torch.zeros(1, 2040, device=implementation.device)
    logits[0, 7] = 50 / 7
    inputs = logits, logits.new_zeros(1, dtype=torch.int64), logits.new_ones(1), logits.new_ones(1)
    assert_right(*run(implementation, *inputs, options), inputs, options)


@each()
def test_rows_do_not_depend_on_one_another(implementation, dtype):
    inputs = make(implementation, 1024, dtype, rows=3)
    values, gradient = run(implementation, *inputs, EVERYTHING)
    of_one, gradient_of_one = run(implementation, *(tensor[2:] for tensor in inputs), EVERYTHING)
    assert torch.equal(gradient_of_one, gradient[2:])
    assert all(torch.equal(of_one[k], value[2:]) for k, value in enumerate(values))


@each([-1e4, 1e4], names="shift", dtypes=())
def test_shifted_logits_keep_their_gradient(implementation, shift):
    """All logits near 1e4: lse is rounded to 1e-3 there, and the gradient must not be."""
    logits, *rest = make(implementation, 257, torch.float32)
    inputs = (logits * 1024).round() / 1024 + shift, *rest
    assert_right(*run(implementation, *inputs, Options(entropy=True)), inputs, Options(entropy=True))


@each()
def test_statistics_alone_leave_the_logits(implementation, dtype):
    inputs = make(implementation, 101, dtype, rows=3)
    before, (expected, _) = inputs[0].clone(), run(implementation, *inputs, EVERYTHING)
    kernels = implementation.kernels("linear_cross_entropy")
    values = kernels.row_kernel_(*inputs[:2], None, EVERYTHING.spec(101))
    assert torch.equal(inputs[0], before) and all(map(torch.equal, values, expected))


@each([PLAIN, EVERYTHING], of=ALL, names="options")
def test_statistics_of_hidden_states(implementation, dtype, options):
    inputs = make(implementation, 101, dtype)
    head = torch.eye(101, dtype=dtype, device=implementation.device)
    values = implementation.kernels("linear_cross_entropy").statistics(*inputs[:2], options.spec(head))
    assert_right(values, None, inputs, options)


@each([(13, 64), (8, 9), (0, 100)], of=ALL, names="places", dtypes=())
def test_correct_is_the_first_maximum(implementation, places):
    first, second = places
    logits = torch.zeros(4, 101, device=implementation.device)
    logits[:, [first, second]] = 7.0
    target = torch.tensor([first, second, 50, 1 if first else 100], device=implementation.device)
    head = torch.eye(101, device=implementation.device)
    values = implementation.kernels("linear_cross_entropy").statistics(logits, target, PLAIN.spec(head))
    assert values.correct.tolist() == [True, False, False, False]


@each([0, 1, 3], names="offset")
def test_rows_of_a_wider_buffer(implementation, dtype, offset):
    """Whatever the rows' alignment, what is around them is neither read nor written."""
    inputs = make(implementation, 67, dtype, rows=3)
    buffer = torch.full((3, 89), math.nan, dtype=dtype, device=implementation.device)
    view = buffer[:, offset : offset + 67]
    view.copy_(inputs[0])
    weights, spec = EVERYTHING.weights(*inputs[2:]), EVERYTHING.spec(67)
    values = implementation.kernels("linear_cross_entropy").row_kernel_(view, inputs[1], weights, spec)
    expected, gradient = run(implementation, *inputs, EVERYTHING)
    torch.testing.assert_close(view, gradient)
    torch.testing.assert_close(values.loss, expected.loss)
    assert bool(buffer[:, :offset].isnan().all()) and bool(buffer[:, offset + 67 :].isnan().all())


@each([math.nan, math.inf], names="value", dtypes=())
def test_non_finite_logits_show(implementation, value):
    logits, target, scale, entropy_scale = make(implementation, 1009, torch.float32, rows=3)
    logits[1, 700] = value
    values, gradient = run(implementation, logits, target, scale + 2, entropy_scale, PLAIN)
    for statistic in (value for value in values if value.is_floating_point()):
        assert statistic.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


@each([math.inf, -math.inf], names="value", dtypes=())
def test_a_row_with_infinite_logits_is_not_correct(implementation, value):
    """Even if the target's logit is the largest: nothing is known of the others."""
    logits, target, *_ = make(implementation, 1009, torch.float32, rows=3)
    logits[:] = torch.where(logits < 0, logits, -logits)
    logits.scatter_(1, target[:, None], 1.0)
    logits[1] = value if value < 0 else logits[1]
    logits[1, target[1]] = value
    kernels = implementation.kernels("linear_cross_entropy")
    values = kernels.row_kernel_(logits, target, None, PLAIN.spec(logits.shape[1]))
    assert values.nll.isfinite().tolist() == values.correct.tolist() == [True, False, True]


@each([PLAIN, Options(entropy=True), EVERYTHING], VOCABULARIES, of=ALL, names="options vocabulary")
def test_entries_are_the_kept_part_of_the_gradient(implementation, dtype, options, vocabulary):
    inputs = make(implementation, vocabulary, dtype)
    logits, target = inputs[:2]
    before = logits.clone()
    rows = sparse_rows(implementation, logits, target, options)
    entries = rows.entries(options.weights(*inputs[2:]))
    assert torch.equal(logits, before) and torch.equal(entries.counts, rows.kept)

    row = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), rows.kept)
    assert bool(((row * logits.shape[1] + entries.columns).diff() > 0).all())  # each once, by row and column
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    mask[row, entries.columns.long()] = True
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close)

    def formula(logits, order=None):
        p, dz, _, gradient = from_lse(logits, *inputs[1:], options, order)
        return {"kept_mass": (p * mask).sum(1), "kept_sum": (dz * mask).sum(1), "values": gradient[mask]}

    found = {"kept_mass": 1 - rows.dropped_mass, "kept_sum": entries.kept_sum, "values": entries.values}
    assert_follows(formula, found, logits)


@each([EVERYTHING], of=ALL, names="options")
def test_sparse_rows_agree_with_the_row_kernel(implementation, dtype, options):
    """Bit by bit, save for the values of a product that never was in memory."""
    inputs = make(implementation, 101, dtype, rows=4)
    rows = sparse_rows(implementation, *inputs[:2], options)
    values, gradient = run(implementation, *inputs, options)
    if implementation not in STREAMING:
        assert all(map(torch.equal, rows.values, values))
    others = 1 - (-values.nll.double()).exp()
    share = (rows.dropped_mass / others).mean().item()
    assert rows.means() == pytest.approx((rows.kept.double().mean().item(), share), rel=1e-4)
    assert torch.equal(rows.dense(slice(None), options.weights(*inputs[2:])), gradient)


@each(of=ALL, dtypes=())
def test_every_entry_is_kept(implementation):
    """Several entries per lane, vector and tile, in all of them: they still come in order."""
    logits = torch.zeros(2, 201, device=implementation.device)
    rows = sparse_rows(implementation, logits, torch.tensor([0, 77], device=implementation.device), PLAIN)
    columns = rows.entries(RowWeights(torch.ones(2, device=implementation.device))).columns
    assert rows.kept.tolist() == [201, 201]
    assert torch.equal(columns, torch.arange(201, dtype=torch.int32, device=implementation.device).repeat(2))
    torch.testing.assert_close(rows.dropped_mass, torch.zeros_like(rows.dropped_mass), rtol=0, atol=1e-6)


@each(
    [PLAIN, EVERYTHING],
    [[0], [4, 1, 3], list(range(5)) * 9],
    [101, 1009, 1024],
    of=ALL,
    names="options chosen vocabulary",
)
def test_background(implementation, dtype, options, chosen, vocabulary):
    inputs = make(implementation, vocabulary, dtype, rows=5)
    logits, target = inputs[:2]
    chosen = torch.tensor(chosen, device=implementation.device)
    weight = torch.linspace(0.5, 2, len(chosen), device=implementation.device, dtype=accumulation_dtype(dtype))
    background, mass = sparse_rows(implementation, logits, target, options).background(chosen, weight)
    kept, close = kept_entries(logits, target, options)
    assert not bool((close & ~kept).any())

    def formula(logits, order=None):
        terms = from_lse(logits, *inputs[1:], options, order)
        return {"background": weight.to(logits.dtype) @ torch.where(kept, 0, terms.p * terms.slope)[chosen]}

    assert_follows(formula, {"background": background}, logits)
    dropped = torch.where(kept, 0, from_lse(logits.double(), *inputs[1:], options).p).sum(1)
    torch.testing.assert_close(mass.double(), weight.double() @ dropped[chosen], rtol=1e-5, atol=1e-6)


@each(of=ALL, dtypes=())
def test_non_finite_rows_keep_their_target_alone(implementation):
    logits, target, scale, _ = make(implementation, 67, torch.float32, rows=3)
    logits[1, 5], scale[1] = math.nan, 1.0
    rows = sparse_rows(implementation, logits, target, PLAIN)
    entries = rows.entries(RowWeights(scale))
    assert rows.kept[1] == 1 and rows.dropped_mass[1].isnan()
    at = rows.kept[0]
    assert entries.columns[at] == target[1] and entries.values[at].isnan()


@each(of=ALL, dtypes=())
def test_deterministic(implementation):
    inputs = make(implementation, 1003, torch.float32, rows=4)

    def everything():
        rows = sparse_rows(implementation, *inputs[:2], EVERYTHING)
        entries = rows.entries(EVERYTHING.weights(*inputs[2:]))
        background = rows.background(torch.arange(4, device=implementation.device), inputs[2])
        return *run(implementation, *inputs, EVERYTHING), *rows.values, vars(entries), *background

    torch.testing.assert_close(everything(), everything(), rtol=0, atol=0)


@each(of=[implementation for implementation in ON_LOGITS if implementation.backend != "torch"], dtypes=())
def test_no_rows(implementation):
    """Not that the loop asks for none, and the PyTorch form needs one; an empty launch would be an error."""
    logits, none = torch.empty(0, 67, device=implementation.device), torch.empty(0, device=implementation.device)
    values, _ = run(implementation, logits, none.long(), none, none, PLAIN)
    assert values.loss.shape == (0,)

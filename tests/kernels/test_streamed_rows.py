"""The rows of backend `cpp` straight from hidden states (csrc/cpu/stream.h), with every instruction set."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import EVERYTHING, OPTIONS, PLAIN, Options, inputs_of, statistics, unluckiest
from test_row_kernels import make, never_given_up

from mind_kernels import linear_cross_entropy, row_chunks, sparse_gradient
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.testing import assert_within_budget

pytestmark = pytest.mark.usefixtures(never_given_up.__name__)

CPP = [
    implementation for implementation in implementations.of("linear_cross_entropy") if implementation.backend == "cpp"
]
each = functools.partial(implementations.each, of=CPP)
SPAN = 96 * 64  # vocabulary entries that are summed at a time: kSpan in csrc/cpu/stream_operators.cpp


def kernels(implementation):
    return implementation.kernels("linear_cross_entropy")


def streamed(implementation, hidden, target, spec):
    """Sparse rows without a logit in memory."""
    rows = kernels(implementation).sparse_rows(hidden, target, spec, False)
    assert not hasattr(rows, "_logits")
    return rows


@each(OPTIONS, [7, 101, 1000], [24, 100], names="options vocabulary rows", dtypes=DTYPES)
def test_entries_are_those_of_logits_in_memory(implementation, dtype, options, vocabulary, rows):
    """An identity for a head leaves the logits as they are, whichever way they go."""
    logits, target, *weights = make(implementation, vocabulary, dtype, rows)
    spec, weight = options.spec(torch.eye(vocabulary, dtype=dtype)), options.weights(*weights)
    found = streamed(implementation, logits, target, spec)
    expected = kernels(implementation).sparse_rows(logits, target, spec, True)
    assert torch.equal(found.kept, expected.kept) and torch.equal(found.values.correct, expected.values.correct)
    assert found.means() == pytest.approx(expected.means(), rel=1e-4)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(found.dropped_mass, expected.dropped_mass)
    for one, other in zip(found.values, expected.values, strict=True):
        close(one, other)
    one, other = found.entries(weight), expected.entries(weight)
    assert torch.equal(one.counts, other.counts) and torch.equal(one.columns, other.columns)
    close(one.values, other.values)
    close(one.kept_sum, other.kept_sum)


@each(
    [PLAIN, EVERYTHING],
    [(1, 321, 193), (15, 33, 97), (16, 1, 5), (17, 33, 97), (49, 321, 193), (100, 7, SPAN + 13)],
    names="options shape",
    dtypes=DTYPES,
)
def test_statistics_match_float64(implementation, dtype, options, shape):
    """Rows, depths and vocabularies that end inside a vector, a panel, a part of the depth, a span."""
    options = replace(options, label_smoothing=0.0)  # beside which no entry may be ruled out
    for bias in (False, True):
        hidden, weight, added, target = inputs_of(*shape, dtype, bias)
        spec = options.spec(weight)
        spec = replace(spec, head=replace(spec.head, bias=added))
        values = kernels(implementation).statistics(hidden, target, spec)

        def eager(wide, order, inputs=(hidden, weight, added, target)):
            rows, head, shift, labels = inputs
            logits = torch.nn.functional.linear(rows.to(wide), head.to(wide), None if shift is None else shift.to(wide))
            z = options.condition(logits[:, order])
            found = statistics(z, order.argsort()[labels], options)
            log_p = z.log_softmax(1)
            loss = found["nll"] + options.z_loss * found["lse"].square()  # 0 times minus infinity is not in it
            return found | {"loss": loss, "entropy": -(log_p.exp() * log_p.clamp(min=-1e30)).sum(1)}

        truth = eager(torch.float64, torch.arange(shape[2]))
        peer = unluckiest(functools.partial(eager, torch.float32), shape[2], truth)
        conditioning = max(1.0, float(truth["lse"].abs().max()))  # of nll, which is a difference
        assert_within_budget(values._asdict(), peer, truth, torch.float32, conditioning=conditioning)


@each([1, 15], names="rows", dtypes=[torch.bfloat16, torch.float16])
def test_half_precision_does_not_depend_on_the_number_of_rows(implementation, dtype, rows):
    """Statistics without a gradient, which a rounding of the logits would change."""
    hidden, weight, _, target = inputs_of(40, 33, 97, dtype)
    many, few = (
        linear_cross_entropy(
            hidden[:count], weight, target[:count], reduction="none", return_stats=True, backend="cpp"
        )[1]
        for count in (40, rows)
    )
    for name in ("nll", "lse", "entropy", "correct"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:rows]), name


@each([1, 40], names="rows")
def test_hidden_states_without_columns(implementation, rows):
    """All logits are the bias."""
    bias, target = torch.linspace(-1, 1, 97), torch.arange(rows)
    loss = linear_cross_entropy(
        torch.empty(rows, 0), torch.empty(97, 0), target, bias=bias, reduction="none", backend="cpp"
    )
    torch.testing.assert_close(loss, bias.logsumexp(0) - bias[target])


@each([(13, 64), (8, 9), (0, 100), (100, SPAN)], names="places")
def test_correct_is_the_first_maximum(implementation, places):
    first, second = places
    weight = torch.zeros(SPAN + 1, 1)
    weight[[first, second]] = 7.0
    target = torch.tensor([first, second, 50, SPAN]).repeat(5)
    values = kernels(implementation).statistics(torch.ones(20, 1), target, PLAIN.spec(weight))
    assert values.correct.tolist() == [True, False, False, False] * 5


@each([torch.nan, torch.inf, -torch.inf], names="value")
def test_non_finite_rows_keep_their_target_alone(implementation, value):
    hidden, weight, _, target = inputs_of(20, 8, 101)
    hidden[3] = value
    rows = streamed(implementation, hidden, target, PLAIN.spec(weight))
    assert rows.values.loss.isfinite().tolist() == [row != 3 for row in range(20)]
    assert rows.kept[3] == 1 and not rows.values.correct[3]
    entries = rows.entries(RowWeights(torch.ones(20)))
    place = int(rows.kept[:3].sum())
    assert entries.columns[place] == target[3] and not entries.values[place].isfinite()


@each([1e4, 1e8], names="scale")
def test_large_logits(implementation, scale):
    hidden, weight, _, target = inputs_of(33, 16, 211)
    values = kernels(implementation).statistics(hidden * scale, target, PLAIN.spec(weight))
    z = (hidden * scale).double() @ weight.double().T
    torch.testing.assert_close(values.lse.double(), z.logsumexp(1), rtol=1e-6, atol=0)
    assert torch.equal(values.correct, z.argmax(1) == target)


@each([20, 700], names="rows")
def test_threads_change_nothing(implementation, rows):
    """A thread takes spans of the vocabulary if the rows are few, else rows; the same bits either way."""
    hidden, weight, _, target = inputs_of(rows, 9, SPAN + 500)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found = streamed(implementation, hidden, target, PLAIN.spec(weight))
            entries = found.entries(RowWeights(torch.ones(rows)))
            results.append((*found.values, found.kept, found.dropped_mass, entries.columns, entries.values))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@each([(4000, 1 / 32), (2 * SPAN + 13, 1 / 4)], names="limit")
def test_flat_rows_are_given_up(implementation, monkeypatch, limit):
    """More candidates than the limit allows: they are not collected, and the statistics are right all the same. Each
    strip of rows and span of the vocabulary may be below what the whole vocabulary is allowed."""
    vocabulary, share = limit
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", share)
    hidden, weight, _, target = inputs_of(60, 8, vocabulary)
    spec = Options().spec(weight * 0.01, threshold=0.97 / vocabulary)
    rows = streamed(implementation, hidden, target, spec)
    assert rows.means()[0] == vocabulary and (rows.kept == vocabulary).all()
    z = hidden.double() @ spec.head.weight.double().T
    torch.testing.assert_close(rows.values.lse.double(), z.logsumexp(1), rtol=1e-6, atol=0)


@each()
def test_a_few_flat_rows_are_collected(implementation, monkeypatch):
    """The limit is one of the mean over the rows."""
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", 1 / 4)
    hidden, weight, _, target = inputs_of(60, 8, 4000)
    hidden *= 4
    hidden[7:17] *= 1e-4
    spec = PLAIN.spec(weight, threshold=2.0**-16)
    rows = streamed(implementation, hidden, target, spec)
    assert (rows.kept[7:17] == 4000).all()
    z = hidden.double() @ weight.double().T
    others = z.scatter(1, target[:, None], -torch.inf).softmax(1)
    kept = (others > 2.0**-16).sum(1) + 1
    assert float((rows.kept - kept).abs().max()) <= 2 and float(kept.double().mean()) < 1000


@each()
def test_gathers_take_rows_in_order(implementation, monkeypatch):
    """The sampled ones, which are visited first, and then the others: a block of the matrix is then in the cache
    (csrc/cpu/gather.h). Those of the weight's gradient come in the order of all rows."""
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 8)
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    hidden, weight, _, target = inputs_of(100, 16, 301)
    leaves, bags, gather = (hidden.requires_grad_(), weight.requires_grad_()), [], kernels(implementation).gather_rows

    def recorded(values, indices, offsets, *others):
        bags.append([indices[start:end] for start, end in itertools.pairwise(offsets.tolist())])
        gather(values, indices, offsets, *others)

    monkeypatch.setattr(kernels(implementation), "gather_rows", recorded)
    loss = linear_cross_entropy(*leaves, target, gradient_threshold=2.0**-7, reduction="sum", backend="cpp")
    found = torch.autograd.grad(loss, leaves)
    assert [len(each) for each in bags] == [9, 91, 301] and max(map(len, bags[2])) > 8
    assert all(bool((bag.diff() > 0).all()) for each in bags for bag in each)
    exact = torch.autograd.grad(torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum"), leaves)
    for one, other in zip(found, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.05


@each()
def test_no_more_than_a_chunk_of_logits(implementation, monkeypatch):
    """Sharp rows, flat ones, which fall back, and sharp ones again: whenever logits are needed, of one chunk only."""
    vocabulary, size, chunk, rows = 301, 16, 20, 1600
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1 / 16)
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 4)
    monkeypatch.setattr(row_chunks, "_SPARSE_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * chunk * vocabulary))
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * chunk * vocabulary))
    hidden, weight, _, target = inputs_of(rows, size, vocabulary)
    hidden[401:800] *= 0.01  # none of them is sampled
    hidden.requires_grad_()
    products, project = [], Head.project

    def counted(head, rows):
        products.append(len(rows))
        return project(head, rows)

    monkeypatch.setattr(Head, "project", counted)
    loss, stats = linear_cross_entropy(
        hidden, weight, target, gradient_threshold=2.0**-7, return_stats=True, reduction="sum", backend="cpp"
    )
    loss.backward()
    exact = stats.kept_entries == vocabulary
    assert not exact[:300].any() and exact[500:790].all() and not exact[850:].any()
    assert products and max(products) <= chunk
    z = hidden.detach().double() @ weight.double().T
    dz = z.softmax(1).scatter_add(1, target[:, None], torch.full_like(z[:, :1], -1.0))
    truth = (dz @ weight.double())[exact]
    torch.testing.assert_close(hidden.grad[exact].double(), truth, rtol=1e-4, atol=1e-4)
